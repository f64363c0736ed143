import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from latency_contract.devices import DeviceReport
from latency_contract.jobs import Failed, JobState
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_contract.tables import LatencyStatus, Purpose
from latency_service import latencies, queue
from latency_service.database import Database
from latency_service.models import DeviceRow, ModelState
from latency_service.overview import Backlog, Overview, leased, overview
from latency_service.settings import Settings
from tests.conftest import Clock
from tests.latency_service.test_latencies import Laboratory, result

Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]


@pytest.fixture
def laboratory(database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> Laboratory:
    return Laboratory(database, clock, report())


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is sent to the database meanwhile, but for the beginning and end of transactions."""
    sent: list[str] = []

    def note(*seen: Any) -> None:
        if not seen[2].startswith("BEGIN"):
            sent.append(seen[2])

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


def seen(database: Database, clock: Clock) -> Overview:
    with database.reading() as session:
        return overview(session, now=clock())


def test_jobs_are_counted_by_model_state_and_purpose_with_the_oldest(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True)
    leased_at = clock()
    laboratory.leased()
    clock.advance(10)
    laboratory.ask(operator(height=3), queue_missing=True)
    clock.advance(10)
    laboratory.ask(operator(height=4), queue_missing=True)
    found = seen(database, clock)
    assert found.backlog == (
        Backlog("Pixel 3", JobState.QUEUED, Purpose.TABLE, 2, leased_at.replace(second=10)),
        Backlog("Pixel 3", JobState.LEASED, Purpose.TABLE, 2, leased_at),
    )
    assert found.oldest_queued_at == {"Pixel 3": leased_at.replace(second=10)}
    assert found.conversions == dict.fromkeys((ModelState.PENDING, ModelState.CONVERTING, ModelState.FAILED), 0)


def test_an_accepted_measurement_counts_once_by_its_verdict(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make, measurement: MakeMeasurement
) -> None:
    laboratory.ask(*(operator(height=h) for h in (1, 2, 3, 4)), queue_missing=True)
    lease = laboratory.leased()
    steady = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    unsteady = result(lease, measurement, *[1.0 + i / 10 for i in range(24)], job=2)
    outcomes = [result(lease, measurement, *steady), result(lease, measurement, *steady, job=1), unsteady]
    for _ in range(2):  # the answer to the first report was lost
        laboratory.accept(lease, *outcomes, Failed(job_id=lease.jobs[3].job_id, error="no such kernel"))
    found = seen(database, clock)
    (device,) = found.devices
    assert (device.measured_steady, device.measured_unsteady) == (2, 1)
    assert device.last_measured_at == laboratory.clock()
    assert found.failed == {"Pixel 3": 1}


def test_a_lease_expiry_counts_when_another_takes_the_job_or_it_is_given_up(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    settings = Settings(max_attempts=2)
    laboratory.ask(operator(), queue_missing=True)
    expiries = []
    for _ in range(3):
        with database.writing() as session:
            latencies.lease(session, session.get_one(DeviceRow, "A1"), max_jobs=16, settings=settings, now=clock())
        expiries.append(seen(database, clock).expiries)
        clock.advance(settings.lease_s + 1)
    assert expiries == [{}, {"Pixel 3": 1}, {"Pixel 3": 2}]
    assert seen(database, clock).failed == {"Pixel 3": 1}
    assert laboratory.ask(operator())[0].status == LatencyStatus.FAILED


def test_what_a_lease_holds_after_its_deadline_waits_and_is_measured_by_nobody(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    asked_at = clock()
    laboratory.leased()

    def held() -> list[str]:
        with database.reading() as session:
            return [one.serial for one in leased(session, limit=9, now=clock())]

    assert held() == ["A1"]
    clock.advance(Settings().lease_s)
    assert held() == []
    assert seen(database, clock).backlog == (Backlog("Pixel 3", JobState.QUEUED, Purpose.TABLE, 1, asked_at),)


def test_a_lease_given_back_is_no_expiry(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    with database.writing() as session:
        queue.release(session, lease.token, device_fault="hot", suspects=(), max_attempts=5, now=laboratory.clock())
    laboratory.leased()
    assert seen(database, clock).expiries == {}


def test_the_queries_are_five_however_much_there_is(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    with statements(database) as for_nothing:
        seen(database, clock)
    laboratory.ask(*(operator(height=h) for h in range(1, 40)), queue_missing=True)
    laboratory.leased()
    with statements(database) as for_much:
        seen(database, clock)
    assert len(for_nothing) == len(for_much) == 5


def test_no_query_reads_all_jobs_or_any_measurement(database: Database, clock: Clock) -> None:
    """Finished jobs are never deleted: figures come from indexes that hold none of them."""
    with statements(database) as sent:
        seen(database, clock)
    asked = [statement for statement in sent if "FROM jobs" in statement]
    assert len(asked) == 3
    assert not any("FROM measurements" in statement for statement in sent)
    for statement in asked:
        without_finished = ("ix_jobs_active", "ix_jobs_claim", "ix_jobs_failed", "ix_jobs_expired")
        assert any(index in plan(database, statement) for index in without_finished)


def plan(database: Database, statement: str) -> str:
    """How the database would answer, whatever the parameters. An empty table is read as a whole unless forbidden."""
    statement = re.sub(r"%\(\w+\)s|\?", "NULL", statement)
    explain = "EXPLAIN QUERY PLAN " if database.engine.dialect.name == "sqlite" else "EXPLAIN "
    with database.writing() as session:  # in a transaction, which ends what is set here
        if database.engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL enable_seqscan = off"))
        return "\n".join(str(row) for row in session.connection().exec_driver_sql(explain + statement))
