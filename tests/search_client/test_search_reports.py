"""What a search says of itself reaches a live service, and cannot stop the search."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from latency_contract.searches import SearchReport, SearchState
from latency_service import searches
from latency_service.database import Database
from latency_service.searches import ReportedSearch
from search_client import search_reports
from search_client.search_problem import Evaluated
from search_client.search_reports import SearchReports, first_report, words
from tests.conftest import live_service


@pytest.fixture
def first(tmp_path: Path) -> SearchReport:
    started_at = datetime.now(UTC)
    return first_report(tmp_path / "run", device="Pixel 3", space="my/space.toml", stages=3, started_at=started_at)


def heard(url: str) -> list[ReportedSearch]:
    database = Database(url)
    with database.reading() as session:
        found = searches.recent(session, limit=10)
    database.dispose()
    return found


def test_the_service_hears_the_stage_the_best_and_the_end(first: SearchReport, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    with live_service(url) as address:
        reports = SearchReports(address, "s", first, say=pytest.fail)
        with reports.running():
            reports.stage(2, None)
            reports.doing("stage 2: searching", 3, 41)
            reports.stage(2, Evaluated(("a",), 64.2, 0.713, 0))
        (found,) = heard(url)
        said = found.report
        assert (said.name, said.space, said.state, said.stage) == ("run", "space", SearchState.FINISHED, 2)
        assert said.best is not None
        assert (said.best.accuracy, said.best.latency_ms) == (0.713, 64.2)
        with pytest.raises(KeyboardInterrupt), SearchReports(address, "s", first, say=pytest.fail).running():
            raise KeyboardInterrupt
        assert heard(url)[0].report.state == SearchState.STOPPED


def test_a_service_that_is_away_stops_no_search(first: SearchReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_reports, "FAREWELL_S", 0.1)
    with SearchReports("http://127.0.0.1:9", "s", first, say=lambda _: None).running():
        pass


def test_an_address_that_is_none_is_said_once(first: SearchReport) -> None:
    said: list[str] = []
    with SearchReports("nowhere", "s", first, say=said.append).running():
        pass
    assert len(said) == 1
    assert "goes on without being shown" in said[0]


def test_words_are_as_the_contract_wants_them() -> None:
    assert words("a\n b") == "a b"
    assert words("") == "search"
    assert len(words("x" * 300)) == 100
