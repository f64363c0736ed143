from datetime import timedelta

import pytest

from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.searches import SearchState
from latency_service import searches
from latency_service.database import Database
from tests.conftest import Clock
from tests.latency_service.shown_farm import search


def names(database: Database) -> list[tuple[str, str]]:
    with database.reading() as session:
        return [(found.owner, found.report.name) for found in searches.recent(session, limit=100)]


def test_the_last_word_of_a_search_counts(database: Database, clock: Clock) -> None:
    for state in (SearchState.RUNNING, SearchState.FINISHED):
        clock.advance(1)
        with database.writing() as session:
            searches.report(session, "s", search("s", state=state, now=clock()), owner="", now=clock())
    with database.reading() as session:
        (found,) = searches.recent(session, limit=100)
    assert (found.report.state, found.reported_at) == (SearchState.FINISHED, clock())


def test_of_each_token_the_newest_are_kept(database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "KEPT", 2)
    for owner, name in (("ana", "a"), ("bob", "b"), ("ana", "c"), ("ana", "d"), ("bob", "a")):
        clock.now += timedelta(seconds=1)
        with database.writing() as session:
            said = search(name, state=SearchState.RUNNING, now=clock())
            searches.report(session, name, said, owner=owner, now=clock())
    assert names(database) == [("bob", "a"), ("ana", "d"), ("ana", "c"), ("bob", "b")]


def test_a_report_of_a_stage_that_there_is_not_is_refused(connection: ServiceConnection, clock: Clock) -> None:
    said = search("s", state=SearchState.RUNNING, now=clock())
    assert connection.request("PUT", "/v1/searches/s", body=said).status_code == 204
    with pytest.raises(ServiceRefused, match="stage 9 of 3"):
        connection.request("PUT", "/v1/searches/s", body=said.model_copy(update={"stage": 9}))
