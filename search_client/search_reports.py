"""A search says to the service how far it is, where it was asked to. Whatever becomes of that, the search goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from latency_contract.connection import ServiceConnection, ServiceError, ServiceUnreachable
from latency_contract.searches import BestFound, SearchReport, SearchState
from search_client.search_problem import Evaluated

EVERY_S = 5.0  # between two reports
SIGN_OF_LIFE_S = 30.0  # and without news
FAREWELL_S = 5.0  # for the last one; whoever waits for the shell's prompt need not wait longer
LONGEST_WORDS = 100  # of the contract


class SearchReports:
    """Heard in the thread of the search, sent in one of its own: a slow service does not slow the search down."""

    def __init__(self, service: str, search_id: str, first: SearchReport, *, say: Callable[[str], None]) -> None:
        self._service, self._path, self._say = service, f"/v1/searches/{search_id}", say
        self._now = first
        self._lock, self._end = threading.Lock(), threading.Event()

    def doing(self, task: str, done: int, total: int) -> None:
        self._change(doing=words(task), done=done, total=total)

    def stage(self, number: int, best: Evaluated | None) -> None:
        """A stage begins, or its best architecture is this one now."""
        found = None if best is None else BestFound(accuracy=best.accuracy, latency_ms=best.latency_ms)
        self._change(stage=number, best=found)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Report until the search has finished, or was stopped."""
        thread = threading.Thread(target=self._report, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._change(state=SearchState.STOPPED)
            raise
        else:
            self._change(state=SearchState.FINISHED, doing="finished")
        finally:
            self._end.set()
            thread.join(FAREWELL_S)

    def _change(self, **fields: object) -> None:
        with self._lock:
            self._now = SearchReport.model_validate(dict(self._now) | fields)

    def _report(self) -> None:
        try:
            with ServiceConnection(self._service) as connection:
                sent, silent_s, ended = None, 0.0, False
                while True:
                    with self._lock:
                        now = self._now
                    if now != sent or silent_s >= SIGN_OF_LIFE_S:
                        with suppress(ServiceUnreachable):  # it may be back next time
                            connection.request("PUT", self._path, body=now)
                            sent, silent_s = now, 0.0
                    if ended:
                        return
                    ended = self._end.wait(EVERY_S)
                    silent_s += EVERY_S
        except ServiceError as error:
            self._say(f"The search goes on without being shown at {self._service}: {error}")


def first_report(out: Path, *, device: str, space: str, stages: int, started_at: datetime) -> SearchReport:
    return SearchReport(
        name=words(out.resolve().name), device=device, space=words(Path(space).stem), state=SearchState.RUNNING,
        started_at=started_at, stage=0, stages=stages, doing="starting", done=0, total=0,
    )  # fmt: skip


def words(text: str) -> str:
    """As the contract wants them: some, not too many, on one line."""
    return " ".join(text.split())[:LONGEST_WORDS] or "search"
