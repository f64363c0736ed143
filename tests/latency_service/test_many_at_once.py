"""Several services on one PostgreSQL: what no order of their transactions may break.

Each test about one race holds one transaction open where it hurts, lets another run into it, and waits until the
database says that it is waiting. The last test lets many loose at once.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from random import Random
from typing import Any, TypeVar

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import Session

from latency_contract.devices import DeviceReport
from latency_contract.jobs import Failed, JobState, Lease, LeaseReport, Measured
from latency_contract.measurements import Measurement
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_contract.tables import LatencyEntry, LatencyQuery, LatencyStatus, Table
from latency_service import conversion_queue, devices, latencies, queue, retention, tables
from latency_service.database import Database
from latency_service.errors import StaleLease
from latency_service.models import JobRow, MeasurementRow, ModelRow, ModelState, TableVersionRow
from latency_service.retention import Freed
from latency_service.settings import Settings
from latency_service.subjects import store_subjects
from tests.conftest import Clock

Make = Callable[..., IBConv]
MakeReport = Callable[..., DeviceReport]
MakeMeasurement = Callable[..., Measurement]
Result = TypeVar("Result")
SETTINGS = Settings(max_attempts=1000)
PATIENCE_S = 20.0
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


class Service:
    """The service's rules on one database, each call in a transaction of its own, from as many threads as one likes."""

    def __init__(self, database: Database, clock: Clock, measurement: MakeMeasurement) -> None:
        self.database, self.clock, self.measurement = database, clock, measurement

    def ask(self, *operators: IBConv, client: str = "me", queue_missing: bool = True) -> list[LatencyEntry]:
        query = LatencyQuery(device="Pixel 3", subjects=operators, queue_missing=queue_missing, client=client)
        with self.database.writing() if queue_missing else self.database.reading() as session:
            return self.ask_in(session, query)

    def ask_in(self, session: Session, query: LatencyQuery) -> list[LatencyEntry]:
        model, protocol = devices.resolve(session, query.device, protocol_id=None)
        entries = latencies.look_up(session, query.subjects, device_model=model, protocol=protocol)
        if not query.queue_missing:
            return entries
        return latencies.queue_missing(session, query, entries, device_model=model, protocol=protocol, now=self.clock())

    def convert_one(self) -> bool:
        with self.database.writing() as session:
            conversion = conversion_queue.claim(session, claim_s=60, now=self.clock())
            if conversion is None:
                return False
            content = conversion.subject_id.encode()
            conversion_queue.store(session, conversion, content=content, conversion_s=0.1)
            return True

    def convert_all(self) -> None:
        while self.convert_one():
            pass

    def lease(self, serial: str = "A1", max_jobs: int = 16) -> Lease | None:
        with self.database.writing() as session:
            return self.lease_in(session, serial, max_jobs)

    def lease_in(self, session: Session, serial: str, max_jobs: int) -> Lease | None:
        device = devices.known(session, serial)
        return latencies.lease(session, device, max_jobs=max_jobs, settings=SETTINGS, now=self.clock())

    def leased(self, serial: str = "A1", max_jobs: int = 16) -> Lease:
        lease = self.lease(serial, max_jobs)
        assert lease is not None
        return lease

    def measured(self, lease: Lease, serial: str = "A1") -> list[Measured]:
        return [
            Measured(
                job_id=job.job_id,
                measurement=self.measurement(job.subject.id, model_sha256=job.model_sha256, serial=serial),
            )
            for job in lease.jobs
        ]

    def accept(self, lease: Lease, *outcomes: Measured | Failed) -> None:
        with self.database.writing() as session:
            self.accept_in(session, lease, *outcomes)

    def accept_in(self, session: Session, lease: Lease, *outcomes: Measured | Failed) -> None:
        latencies.accept(session, lease.token, LeaseReport(outcomes=outcomes), settings=SETTINGS, now=self.clock())

    def publish(self, session: Session) -> Table:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        return tables.publish(session, device_model=model, protocol=protocol, now=self.clock())

    def states(self) -> list[str]:
        with self.database.reading() as session:
            return list(session.scalars(select(JobRow.state).order_by(JobRow.id)))

    def count(self, table: type[MeasurementRow | JobRow | TableVersionRow]) -> int:
        with self.database.reading() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
def service(database: Database, clock: Clock, report: MakeReport, measurement: MakeMeasurement) -> Service:
    with database.writing() as session:
        for number in range(1, 7):
            devices.report(session, report(serial=f"A{number}"), now=clock())
    service = Service(database, clock, measurement)
    service.convert_all()
    return service


@contextmanager
def overtaken(
    database: Database, rival: Callable[[], Result]
) -> Iterator[tuple[Session, Callable[[], Future[Result]]]]:
    """A transaction, and a way to let a rival run into it: returns once the rival waits for the transaction."""
    with ThreadPoolExecutor(1) as threads, database.writing() as session:

        def start() -> Future[Result]:
            result = threads.submit(rival)
            deadline = time.monotonic() + PATIENCE_S
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            with database.engine.connect() as watcher:
                while watcher.scalar(waiting) == 0:
                    assert not result.done(), "the rival did not wait"
                    assert time.monotonic() < deadline, "the rival neither waits nor ends"
            return result

        yield session, start


@on_postgresql
def test_a_claim_passes_over_what_a_rival_is_claiming(service: Service, database: Database, operator: Make) -> None:
    service.ask(*(operator(height=h) for h in range(1, 6)))
    service.convert_all()
    with database.writing() as session:
        first = service.lease_in(session, "A1", 3)
        second = service.leased("A2", 3)
    assert first is not None
    assert [len(first.jobs), len(second.jobs)] == [3, 2]
    assert service.lease("A3") is None


@on_postgresql
def test_the_model_of_a_subject_that_is_being_asked_for_is_not_dropped(
    service: Service, database: Database, operator: Make
) -> None:
    """Nobody could lease the new job: its model would be gone, and nobody would be told to convert it."""
    service.ask(operator())
    service.convert_all()
    lease = service.leased()
    with database.writing() as session:
        service.accept_in(session, lease, Failed(job_id=lease.jobs[0].job_id, error="the runner was ended"))
    later = service.clock() + timedelta(days=1)
    with overtaken(database, lambda: retention.drop_models(database, before=later)) as (session, rival):
        service.ask_in(session, LatencyQuery(device="Pixel 3", subjects=(operator(),), queue_missing=True))
        dropped = rival()
    assert dropped.result() == Freed(0, 0)
    assert service.leased().jobs[0].subject == operator()


@on_postgresql
def test_a_job_leased_alone_does_not_leave_a_rival_empty_handed(
    service: Service, database: Database, operator: Make
) -> None:
    """Both see the same first job; the second one must not take it for the only one."""
    service.ask(operator(height=1), operator(height=2), operator(height=3))
    service.convert_all()
    tried = service.leased()
    with database.writing() as session:
        queue.release(
            session,
            tried.token,
            device_fault="the phone rebooted",
            suspects=[job.job_id for job in tried.jobs],
            max_attempts=SETTINGS.max_attempts,
            now=service.clock(),
        )
    with database.writing() as session:
        first = service.lease_in(session, "A1", 16)
        second = service.leased("A2", 16)
    assert first is not None
    assert (len(first.jobs), len(second.jobs)) == (1, 1)
    assert first.jobs != second.jobs


@on_postgresql
def test_an_expired_lease_is_taken_by_one_alone(service: Service, database: Database, operator: Make) -> None:
    service.ask(operator())
    service.convert_all()
    service.leased("A1")
    service.clock.advance(SETTINGS.lease_s + 1)
    with database.writing() as session:
        assert service.lease_in(session, "A2", 16) is not None
        assert service.lease("A3") is None
    assert service.lease("A3") is None


@on_postgresql
def test_a_late_report_and_a_claim_of_the_same_job_exclude_each_other(
    service: Service, database: Database, operator: Make
) -> None:
    service.ask(operator())
    service.convert_all()
    late = service.leased("A1")
    service.clock.advance(SETTINGS.lease_s + 1)
    with database.writing() as session:  # the report first: its job is passed over
        service.accept_in(session, late, *service.measured(late))
        assert service.lease("A2") is None
    service.ask(operator(height=3))
    service.convert_all()
    late = service.leased("A1")
    service.clock.advance(SETTINGS.lease_s + 1)
    with overtaken(database, lambda: service.accept(late, *service.measured(late))) as (session, rival):  # the claim
        assert service.lease_in(session, "A2", 16) is not None
        refused = rival()
    with pytest.raises(StaleLease):
        refused.result()
    assert service.count(MeasurementRow) == 1


@on_postgresql
def test_a_report_holds_its_whole_lease_and_waits_in_no_circle_with_who_renews_it(
    service: Service, database: Database, operator: Make
) -> None:
    """A unit that has drifted gives the rest of its lease back as it reports: jobs before the one that it reports."""
    service.ask(*(operator(height=h) for h in (1, 2, 3)))
    service.convert_all()
    lease = service.leased()

    def renew() -> int:
        with database.writing() as session:
            return queue.renew(session, lease.token, lease_s=60, now=service.clock()).remaining

    with overtaken(database, renew) as (session, rival):
        queue.owned_jobs(session, lease.token, [lease.jobs[-1].job_id])
        renewed = rival()
        queue.release(session, lease.token, device_fault=None, suspects=(), max_attempts=3, now=service.clock())
    with pytest.raises(StaleLease):
        renewed.result(PATIENCE_S)


@on_postgresql
def test_a_question_waits_for_a_report_and_does_not_have_it_measured_again(
    service: Service, database: Database, operator: Make
) -> None:
    service.ask(operator())
    service.convert_all()
    lease = service.leased()
    with overtaken(database, lambda: service.ask(operator())) as (session, rival):
        service.accept_in(session, lease, *service.measured(lease))
        session.flush()
        answer = rival()
    assert [entry.status for entry in answer.result()] == [LatencyStatus.MEASURED]
    assert service.states() == [JobState.DONE]


@on_postgresql
def test_a_job_that_is_cancelled_with_its_lease_is_queued_anew_for_who_was_about_to_want_it(
    service: Service, database: Database, operator: Make
) -> None:
    """The lease is given back after the job was found and before it is locked."""
    service.ask(operator(), client="fickle")
    service.convert_all()
    lease = service.leased()
    with database.writing() as session:
        assert queue.withdraw(session, "fickle", subject_ids=None, now=service.clock()) == 0
    released = False

    def give_back(*seen: Any) -> None:
        nonlocal released
        if not released and "FROM jobs" in seen[2] and "FOR NO KEY UPDATE" in seen[2]:
            released = True
            with database.writing() as other:
                queue.release(other, lease.token, device_fault=None, suspects=(), max_attempts=5, now=service.clock())

    event.listen(database.engine, "before_cursor_execute", give_back)
    (entry,) = service.ask(operator(), client="steadfast")
    event.remove(database.engine, "before_cursor_execute", give_back)
    assert (entry.status, service.states()) == (LatencyStatus.QUEUED, [JobState.CANCELLED, JobState.QUEUED])


@on_postgresql
def test_a_job_is_not_cancelled_while_somebody_else_begins_to_want_it(
    service: Service, database: Database, operator: Make
) -> None:
    service.ask(operator(), client="fickle")

    def withdraw() -> int:
        with database.writing() as session:
            return queue.withdraw(session, "fickle", subject_ids=None, now=service.clock())

    query = LatencyQuery(device="Pixel 3", subjects=(operator(),), queue_missing=True, client="steadfast")
    with overtaken(database, withdraw) as (session, rival):
        service.ask_in(session, query)
        cancelled = rival()
    assert cancelled.result() == 0
    with overtaken(database, lambda: service.ask(operator(), client="third")) as (session, rival_asks):
        assert queue.withdraw(session, "steadfast", subject_ids=None, now=service.clock()) == 1
        answer = rival_asks()
    assert [entry.status for entry in answer.result()] == [LatencyStatus.QUEUED]
    assert service.states() == [JobState.CANCELLED, JobState.QUEUED]


@on_postgresql
def test_a_job_queued_while_its_conversion_fails_does_not_wait_for_ever(
    service: Service, database: Database, operator: Make
) -> None:
    service.ask(operator(), client="first")
    with database.writing() as session:
        conversion = conversion_queue.claim(session, claim_s=60, now=service.clock())
    assert conversion is not None
    with overtaken(database, lambda: service.ask(operator(), client="second")) as (session, rival):
        conversion_queue.fail(session, conversion, error="no such kernel", now=service.clock())
        session.flush()
        answer = rival()
    assert [entry.status for entry in answer.result()] == [LatencyStatus.QUEUED]
    with database.reading() as session:
        model = session.get_one(ModelRow, (operator().id, "float32"))
        assert model.state == ModelState.PENDING


@on_postgresql
def test_who_publishes_second_is_given_the_version_of_the_first(
    service: Service, database: Database, operator: Make
) -> None:
    service.ask(operator())
    service.convert_all()
    lease = service.leased()
    service.accept(lease, *service.measured(lease))

    def publish() -> Table:
        with database.writing() as session:
            return service.publish(session)

    with overtaken(database, publish) as (session, rival):
        first = service.publish(session)
        second = rival()
    assert second.result() == first
    assert service.count(TableVersionRow) == 1


def test_units_that_report_at_once_under_a_new_protocol_are_all_known(database: Database, report: MakeReport) -> None:
    """A farm that is switched on after an update of its runtime."""
    newer, together, clock = Protocol(runtime="litert", runtime_version="9.9.9"), threading.Barrier(8), Clock()

    def switch_on(number: int) -> None:
        together.wait()
        with database.writing() as session:
            devices.report(session, report(serial=f"B{number // 2}", protocol=newer), now=clock())

    at_once(*((switch_on, number) for number in range(8)))
    with database.reading() as session:
        assert {row.serial for row in devices.everyone(session)} == {"B0", "B1", "B2", "B3"}


def test_many_converters_convert_each_subject_once(database: Database, clock: Clock, operator: Make) -> None:
    operators = [operator(height=h) for h in range(1, 61)]
    with database.writing() as session:
        store_subjects(session, operators)
        conversion_queue.request(session, [o.id for o in operators], precision="float32", now=clock())
    claimed: list[str] = []

    def convert() -> None:
        while True:
            with database.writing() as session:
                conversion = conversion_queue.claim(session, claim_s=60, now=clock())
            if conversion is None:
                return
            claimed.append(conversion.subject_id)
            with database.writing() as session:
                conversion_queue.store(session, conversion, content=b"model", conversion_s=0.1)

    at_once(*[(convert,)] * 8)
    assert sorted(claimed) == sorted(o.id for o in operators)


@on_postgresql
def test_whatever_many_agents_and_clients_do_at_once_each_operator_is_measured_once(
    service: Service, database: Database, operator: Make
) -> None:
    """Ten agents on six units lease, renew, report, give back, fall silent and come too late; clients ask and change
    their minds; converters convert. Nothing may fail but a report that comes too late, nothing may be lost or done
    twice."""
    operators = [operator(height=1 + n % 8, width=1 + n // 8) for n in range(72)]
    accepted: list[int] = []
    finished = threading.Event()
    serials = [f"A{1 + n % 6}" for n in range(10)]

    def agent(serial: str, seed: int) -> None:
        random = Random(seed)
        while not finished.is_set():
            lease = service.lease(serial, random.randint(1, 5))
            if lease is None:
                service.clock.advance(SETTINGS.lease_s / 1000)
                continue
            with suppress(StaleLease):
                use(lease, serial, random)

    def use(lease: Lease, serial: str, random: Random) -> None:
        outcomes = service.measured(lease, serial)
        random.shuffle(outcomes)
        match random.randrange(8):
            case 0:
                return  # falls silent
            case 1:
                with database.writing() as session:
                    queue.release(
                        session,
                        lease.token,
                        device_fault=None,
                        suspects=(),
                        max_attempts=SETTINGS.max_attempts,
                        now=service.clock(),
                    )
                return
            case 2:
                with database.writing() as session:
                    queue.release(
                        session,
                        lease.token,
                        device_fault="hot",
                        suspects=(),
                        max_attempts=SETTINGS.max_attempts,
                        now=service.clock(),
                    )
                return
            case 3:
                with database.writing() as session:
                    devices.report(session, reported[serial], now=service.clock())
            case 4:
                service.clock.advance(SETTINGS.lease_s)  # comes too late, perhaps
        middle = random.randint(0, len(outcomes))
        for part in (outcomes[:middle], outcomes[middle:]):
            with database.writing() as session:
                queue.renew(session, lease.token, lease_s=SETTINGS.lease_s, now=service.clock())
            if part:
                service.accept(lease, *part)
                accepted.extend(outcome.job_id for outcome in part)

    def steadfast(seed: int) -> None:
        random = Random(seed)
        while not finished.is_set():
            mine = random.sample(operators, len(operators))
            if all(entry.status == LatencyStatus.MEASURED for entry in service.ask(*mine)):
                finished.set()

    def fickle(seed: int) -> None:
        random = Random(seed)
        while not finished.is_set():
            mine = random.sample(operators, 20)
            service.ask(*mine, client=f"fickle-{seed % 2}")
            with database.writing() as session:
                given_up = [o.id for o in mine[:10]]
                queue.withdraw(session, f"fickle-{seed % 2}", subject_ids=given_up, now=service.clock())

    def converter(_: int) -> None:
        while not finished.is_set():
            service.convert_one()

    with database.reading() as session:
        reported = {row.serial: DeviceReport.model_validate_json(row.document) for row in devices.everyone(session)}
    agents = [(agent, serial, seed) for seed, serial in enumerate(serials)]
    crowd: list[tuple[Any, ...]] = [*agents, (steadfast, 1), (steadfast, 2), (fickle, 3), (fickle, 4), (fickle, 5)]
    at_once(*crowd, (converter, 0), (converter, 1), over=finished)
    with database.reading() as session:
        measured = Counter(session.scalars(select(MeasurementRow.subject_id)))
        done = Counter(session.scalars(select(JobRow.id).where(JobRow.state == JobState.DONE)))
    assert measured == Counter(o.id for o in operators)
    assert Counter(accepted) == done


def at_once(*calls: tuple[Any, ...], over: threading.Event | None = None) -> None:
    """Call each, with its arguments, in a thread of its own; raise what any of them raises, and tell the others."""
    with ThreadPoolExecutor(len(calls)) as threads:
        for result in as_completed([threads.submit(call, *arguments) for call, *arguments in calls]):
            if result.exception() is not None and over is not None:
                over.set()
            result.result()


def release(session: Session, lease: Lease, *, fault: str | None, now: datetime) -> None:
    queue.release(session, lease.token, device_fault=fault, suspects=(), max_attempts=SETTINGS.max_attempts, now=now)
