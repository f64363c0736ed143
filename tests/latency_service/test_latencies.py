from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import event, select, update

from latency_contract.devices import DeviceReport
from latency_contract.jobs import Failed, Lease, LeaseReport, LeaseRequest, Measured
from latency_contract.measurements import Measurement, Verdict
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import IBConv, Network
from latency_contract.protocols import BlockStatistic
from latency_contract.tables import LatencyEntry, LatencyQuery, LatencyStatus, Purpose
from latency_service import conversion_queue, devices, latencies, queue
from latency_service.app import create_app
from latency_service.database import Database
from latency_service.errors import StaleLease, UnknownMeasurement, WrongMeasurement
from latency_service.models import DeviceRow, MeasurementRow
from latency_service.routes.leases import lease_jobs
from latency_service.settings import Settings
from tests.conftest import Clock, sha256

SETTINGS = Settings()
Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]


class Laboratory:
    """One unit, whose models are some bytes and whose measurements are made by hand."""

    def __init__(self, database: Database, clock: Clock, report: DeviceReport) -> None:
        self.database, self.clock = database, clock
        with database.writing() as session:
            devices.report(session, report, now=clock())
        self.convert_all()

    def convert_all(self) -> None:
        with self.database.writing() as session:
            while (conversion := conversion_queue.claim(session, claim_s=60, now=self.clock())) is not None:
                content = conversion.subject_id.encode()
                conversion_queue.store(session, conversion, content=content, conversion_s=0.1)

    def ask(
        self, *operators: IBConv | Network | TFLiteModel, queue_missing: bool = False, **options: Any
    ) -> list[LatencyEntry]:
        query = LatencyQuery(device="Pixel 3", subjects=operators, queue_missing=queue_missing, **options)
        with self.database.writing() as session:
            model, protocol = devices.resolve(session, query.device, protocol_id=None)
            entries = latencies.look_up(
                session, operators, device_model=model, protocol=protocol, newer_than=query.newer_than
            )
            if queue_missing:
                entries = latencies.queue_missing(
                    session, query, entries, device_model=model, protocol=protocol, now=self.clock()
                )
        self.convert_all()
        return entries

    def lease(self) -> Lease | None:
        with self.database.writing() as session:
            device = session.get_one(DeviceRow, "A1")
            return latencies.lease(session, device, max_jobs=16, settings=SETTINGS, now=self.clock())

    def leased(self) -> Lease:
        lease = self.lease()
        assert lease is not None
        return lease

    def accept(self, lease: Lease, *outcomes: Measured | Failed) -> int:
        with self.database.writing() as session:
            return latencies.accept(
                session, lease.token, LeaseReport(outcomes=outcomes), settings=SETTINGS, now=self.clock()
            )

    def stored(self) -> int:
        with self.database.reading() as session:
            return len(session.scalars(select(MeasurementRow.id)).all())


@pytest.fixture
def laboratory(database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> Laboratory:
    return Laboratory(database, clock, report())


def result(
    lease: Lease,
    measurement: MakeMeasurement,
    *medians_ms: float,
    job: int = 0,
    serial: str = "A1",
    reference_ms: float = 1.0,
) -> Measured:
    leased = lease.jobs[job]
    made = measurement(
        leased.subject.id,
        medians_ms or (1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
        model_sha256=leased.model_sha256,
        serial=serial,
        reference_ms=reference_ms,
    )
    return Measured(job_id=leased.job_id, measurement=made)


def test_an_unmeasured_operator_is_missing_and_has_no_number(laboratory: Laboratory, operator: Make) -> None:
    (entry,) = laboratory.ask(operator())
    assert (entry.status, entry.latency, entry.error) == (LatencyStatus.MISSING, None, None)
    assert laboratory.lease() is None


def test_what_is_measured_already_is_measured_again_only_where_that_is_asked_for_and_last(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement
) -> None:
    known, new = operator(height=1), operator(height=2)
    laboratory.ask(known, queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement))
    laboratory.ask(known, queue_missing=True)
    assert laboratory.lease() is None
    (entry,) = laboratory.ask(known, queue_missing=True, measure_again=True, purpose=Purpose.REFINEMENT)
    assert entry.status == LatencyStatus.MEASURED
    laboratory.ask(new, queue_missing=True)
    lease = laboratory.leased()
    assert [job.subject.id for job in lease.jobs] == [new.id, known.id]
    laboratory.accept(lease, result(lease, measurement, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, job=1))
    (entry,) = laboratory.ask(known)
    assert entry.latency is not None
    assert entry.latency.latency_ms == 2.0


def test_an_operator_goes_from_queued_over_leased_to_measured(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement
) -> None:
    assert laboratory.ask(operator(), queue_missing=True)[0].status == LatencyStatus.QUEUED
    lease = laboratory.leased()
    assert lease.jobs[0].model_sha256 == sha256(operator().id.encode())
    assert laboratory.ask(operator())[0].status == LatencyStatus.LEASED
    assert laboratory.accept(lease, result(lease, measurement)) == 0
    (entry,) = laboratory.ask(operator())
    assert entry.status == LatencyStatus.MEASURED
    assert entry.latency is not None
    assert (entry.latency.latency_ms, entry.latency.rounds, entry.latency.device_serial) == (1.0, 6, "A1")


def test_the_reading_of_the_reference_operator_is_stored_with_a_measurement(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement, database: Database
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement, reference_ms=0.7))
    with database.reading() as session:
        assert session.scalars(select(MeasurementRow.reference_ms)).one() == 0.7


def test_in_how_many_layers_an_operator_is_used_travels_to_who_measures_it(
    laboratory: Laboratory, operator: Make
) -> None:
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True, layers=(3, 1))
    laboratory.ask(operator(height=3), queue_missing=True)
    assert [job.layers for job in laboratory.leased().jobs] == [3, 1, 1]
    with pytest.raises(ValidationError, match="layers are given for 1 of 2 subjects"):
        laboratory.ask(operator(height=1), operator(height=2), layers=(3,))


def test_answers_come_in_the_order_of_the_question(laboratory: Laboratory, operator: Make) -> None:
    asked = [operator(height=h) for h in (3, 1, 2, 1)]
    assert [entry.subject_id for entry in laboratory.ask(*asked)] == [o.id for o in asked]


def test_the_newest_measurement_counts_and_the_older_is_kept(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement, database: Database
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5))
    (before,) = laboratory.ask(operator())
    # Measured once more, as a later drift check does: a job of its own.
    with database.writing() as session:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        queue.request(
            session,
            [operator().id],
            device_model=model,
            protocol=protocol,
            client="me",
            purpose=Purpose.TABLE,
            now=laboratory.clock(),
        )
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5))
    (after,) = laboratory.ask(operator())
    assert before.latency is not None
    assert after.latency is not None
    assert after.latency.latency_ms == 2.0
    with database.reading() as session:
        assert latencies.measurement(session, before.latency.measurement_id).latency_ms == 1.0


def test_a_latency_that_was_asked_about_before_is_read_anew(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement, database: Database
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement))
    first, again = laboratory.ask(operator()), laboratory.ask(operator())
    latencies._latency.cache_clear()
    assert first == again == laboratory.ask(operator())
    with database.writing() as session:
        session.execute(update(MeasurementRow).values(drifted=True))
    (entry,) = laboratory.ask(operator())
    assert (entry.status, entry.latency) == (LatencyStatus.MISSING, None)


def test_a_failure_is_kept_with_its_reason_and_no_number(laboratory: Laboratory, operator: Make) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, Failed(job_id=lease.jobs[0].job_id, error="the runner was ended by signal 11"))
    (entry,) = laboratory.ask(operator())
    assert (entry.status, entry.latency) == (LatencyStatus.FAILED, None)
    assert entry.error == "the runner was ended by signal 11"
    assert laboratory.ask(operator(), queue_missing=True)[0].status == LatencyStatus.QUEUED


def test_a_report_that_arrives_twice_is_stored_once(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    for _ in range(2):
        assert laboratory.accept(lease, result(lease, measurement)) == 0
    assert laboratory.stored() == 1


def test_a_report_with_a_stale_token_stores_nothing(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement, clock: Clock
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    stale = laboratory.leased()
    clock.advance(SETTINGS.lease_s + 1)
    fresh = laboratory.leased()
    with pytest.raises(StaleLease):
        laboratory.accept(stale, result(stale, measurement))
    assert laboratory.stored() == 0
    laboratory.accept(fresh, result(fresh, measurement))
    assert laboratory.stored() == 1


def test_one_refused_outcome_refuses_the_whole_report(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement
) -> None:
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True)
    lease = laboratory.leased()
    wrong = result(lease, measurement, job=1, serial="A2")
    with pytest.raises(WrongMeasurement, match="of another device: A2, not A1"):
        laboratory.accept(lease, result(lease, measurement), wrong)
    assert laboratory.stored() == 0


def test_a_measurement_of_another_subject_or_model_is_refused(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement
) -> None:
    laboratory.ask(operator(height=1), operator(height=2), queue_missing=True)
    lease = laboratory.leased()
    mixed_up = Measured(job_id=lease.jobs[0].job_id, measurement=result(lease, measurement, job=1).measurement)
    with pytest.raises(WrongMeasurement, match="of another subject"):
        laboratory.accept(lease, mixed_up)
    other_file = Measured(job_id=lease.jobs[0].job_id, measurement=measurement(lease.jobs[0].subject.id))
    with pytest.raises(WrongMeasurement, match="of another model file"):
        laboratory.accept(lease, other_file)


@pytest.mark.parametrize(
    ("medians_ms", "verdict"),
    [
        ((1.0, 1.5, 2.0, 2.5, 3.0, 3.5), Verdict.STEADY),  # the interval is far from inside the target
        ((1.0, 1.001, 1.002, 1.003), Verdict.STEADY),  # too few rounds
    ],
)
def test_a_verdict_that_the_protocol_does_not_give_is_refused(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement, medians_ms: list[float], verdict: Verdict
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    honest = result(lease, measurement, *medians_ms)
    claimed = honest.model_copy(update={"measurement": honest.measurement.model_copy(update={"verdict": verdict})})
    with pytest.raises(WrongMeasurement, match="under the protocol it is"):
        laboratory.accept(lease, claimed)
    assert laboratory.stored() == 0


def without_pooled(honest: Measurement) -> Measurement:
    return honest.model_copy(update={"pooled": None})


def by_fifth_percentiles(honest: Measurement) -> Measurement:
    rounds = tuple(r.model_copy(update={"statistic": BlockStatistic.P5}) for r in honest.rounds)
    return honest.model_copy(update={"rounds": rounds})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (without_pooled, "Update the agent"),
        (by_fifth_percentiles, "something else stands for a block than the protocol's median"),
    ],
)
def test_a_number_that_was_made_in_another_way_than_the_protocols_is_refused(
    laboratory: Laboratory,
    operator: Make,
    measurement: MakeMeasurement,
    changed: Callable[[Measurement], Measurement],
    says: str,
) -> None:
    """As old agents made intervals, or by another number for a block."""
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    honest = result(lease, measurement)
    with pytest.raises(WrongMeasurement, match=says):
        laboratory.accept(lease, honest.model_copy(update={"measurement": changed(honest.measurement)}))
    assert laboratory.stored() == 0


def test_a_device_at_rest_gets_no_lease_until_its_time_is_over(
    laboratory: Laboratory, operator: Make, clock: Clock, database: Database, measurement: MakeMeasurement
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    with database.writing() as session:
        phone = session.get_one(DeviceRow, "A1")
        devices.open_breaker(phone, fault="51 °C", settings=SETTINGS, random=Random(0), now=clock())
    assert laboratory.lease() is None
    clock.advance(SETTINGS.fault_backoff_s + 1)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement))
    with database.reading() as session:
        device = session.get_one(DeviceRow, "A1")
        assert (device.faults, device.blocked_until, device.last_fault) == (0, None, "51 °C")


def test_nothing_is_leased_before_the_reference_operator_is_converted(
    database: Database, clock: Clock, report: Callable[..., DeviceReport]
) -> None:
    with database.writing() as session:
        device = devices.report(session, report(), now=clock())
        assert latencies.lease(session, device, max_jobs=1, settings=SETTINGS, now=clock()) is None


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.usefixtures("laboratory")
def test_an_agent_that_asks_in_vain_costs_three_questions_and_is_noted_every_few_seconds(
    database: Database, clock: Clock
) -> None:
    service = create_app(database, settings=SETTINGS, clock=clock).state.parts

    def sent() -> list[str]:
        with statements(database) as texts:
            response: Any = lease_jobs(LeaseRequest(serial="A1"), service)
        assert response.status_code == 204
        return [word for word in (text.split()[0] for text in texts) if word != "BEGIN"]

    assert sent() == ["SELECT"] * 3
    clock.advance(SETTINGS.seen_s + 1)
    assert sent() == ["SELECT"] * 3 + ["UPDATE"]
    assert sent() == ["SELECT"] * 3
    with database.reading() as session:
        assert devices.known(session, "A1").last_seen_at == clock()


def test_there_is_something_to_lease_when_a_job_waits_or_its_lease_has_run_out(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make
) -> None:
    def nothing() -> bool:
        with database.reading() as session:
            return latencies.nothing_to_lease(session, devices.known(session, "A1"), now=clock())

    laboratory.ask(operator(), queue_missing=True)
    assert not nothing()
    laboratory.leased()
    assert nothing()
    clock.advance(SETTINGS.lease_s + 1)
    assert not nothing()
    with database.writing() as session:
        devices.open_breaker(
            devices.known(session, "A1"), fault="51 °C", settings=SETTINGS, random=Random(0), now=clock()
        )
    assert nothing()


def test_an_unknown_measurement_is_refused(database: Database) -> None:
    with pytest.raises(UnknownMeasurement, match="no measurement 7"), database.reading() as session:
        latencies.measurement(session, 7)


def test_what_is_older_than_asked_for_is_missing_until_it_is_measured_again(
    laboratory: Laboratory, operator: Make, measurement: MakeMeasurement
) -> None:
    laboratory.ask(operator(), queue_missing=True)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement))
    (known,) = laboratory.ask(operator())
    assert known.latency is not None
    old: dict[str, Any] = {"newer_than": known.latency.measurement_id}
    assert [entry.status for entry in laboratory.ask(operator(), **old)] == [LatencyStatus.MISSING]
    assert [entry.status for entry in laboratory.ask(operator(), queue_missing=True, **old)] == [LatencyStatus.QUEUED]
    lease = laboratory.leased()
    laboratory.accept(lease, Failed(job_id=lease.jobs[0].job_id, error="the kernel is gone"))
    assert [entry.status for entry in laboratory.ask(operator(), **old)] == [LatencyStatus.FAILED]
    assert laboratory.ask(operator()) == [known]  # whoever asks for no newer one
    laboratory.ask(operator(), queue_missing=True, **old)
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5))
    (again,) = laboratory.ask(operator(), **old)
    assert again.latency is not None
    assert (again.latency.latency_ms, again.latency.measurement_id > old["newer_than"]) == (2.0, True)
