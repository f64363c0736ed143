from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import Programs
from benchmarks.processes import Program


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """One that runs for as long as it is let."""
    programs = Programs()
    programs.start["one"] = lambda: Program("http.server", "--bind", "127.0.0.1", "0", log=tmp_path / "one.log")
    programs.keep_running(now=0.0)
    yield programs
    programs.stop()


def test_what_was_killed_is_away_until_it_is_due_and_did_not_end_by_itself(programs: Programs) -> None:
    programs.kill("one", down_until=2.0)
    for now in (0.0, 1.0, 1.9):
        programs.keep_running(now=now)
        assert programs.away() == ["one"]
    programs.keep_running(now=2.0)
    assert programs.away() == []
    assert programs.ended_by_themselves == []


def test_what_ended_by_itself_is_started_at_once_and_counted(programs: Programs) -> None:
    programs.running["one"].stop()
    assert programs.away() == ["one"]
    programs.keep_running(now=0.0)
    programs.keep_running(now=1.0)
    assert programs.away() == []
    assert len(programs.ended_by_themselves) == 1
