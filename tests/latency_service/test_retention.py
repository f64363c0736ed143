from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.devices import Device, DeviceReport
from latency_contract.estimators import UNKNOWN
from latency_contract.jobs import Failed, Lease, LeaseReport, Measured
from latency_contract.measurements import DeviceState, Measurement, RejectedRound, Round
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import IBConv
from latency_contract.protocols import StoppingRule
from latency_contract.tables import LatencyStatus, Purpose, Table
from latency_service import conversion_queue, devices, latencies, model_files, queue, retention, tables
from latency_service.database import Database
from latency_service.errors import UnknownModel
from latency_service.models import MeasurementRow, ModelFileRow, ModelRow, ModelState
from latency_service.retention import Freed
from latency_service.subjects import store_subjects
from tests.conftest import START, Clock, live_service, sha256
from tests.latency_service.test_app import ask, lease
from tests.latency_service.test_latencies import Laboratory, result

Make = Callable[..., IBConv]
MakeMeasurement = Callable[..., Measurement]
LATER = START + timedelta(days=1)  # than anything is


@pytest.fixture
def laboratory(database: Database, clock: Clock, report: Callable[..., DeviceReport]) -> Laboratory:
    return Laboratory(database, clock, report())


def noisy(lease: Lease, measurement: MakeMeasurement, *, rejected: int = 2) -> Measured:
    """Six rounds of five samples, and rounds that were rejected."""
    plain = result(lease, measurement).measurement
    rounds = tuple(
        Round(
            started_at=START,
            samples_ms=tuple(1 + (i + j * j) / 700 for j in range(4 + i % 2)),
            reference_before_ms=2.0 + i,
            reference_after_ms=3.0 + i,
        )
        for i in range(6)
    )
    evidence = RejectedRound(round=rounds[0], reason="too hot", before=DeviceState(), after=DeviceState())
    made = Measurement.from_rounds(
        rounds,
        subject_id=plain.subject_id,
        stopping=StoppingRule(),
        pooled=UNKNOWN,
        quiet_reference_ms=2.0,
        provenance=plain.provenance,
        rejected=(evidence,) * rejected,
    )
    return Measured(job_id=lease.jobs[0].job_id, measurement=made)


def measured(laboratory: Laboratory, operator: IBConv, measurement: MakeMeasurement) -> tuple[int, Measurement]:
    laboratory.ask(operator, queue_missing=True)
    lease = laboratory.leased()
    outcome = noisy(lease, measurement)
    laboratory.accept(lease, outcome)
    (entry,) = laboratory.ask(operator)
    assert entry.latency is not None
    return entry.latency.measurement_id, outcome.measurement


def kept(database: Database, measurement_id: int) -> Measurement:
    with database.reading() as session:
        return latencies.measurement(session, measurement_id)


def published(database: Database, clock: Clock) -> Table:
    with database.writing() as session:
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        return tables.publish(session, device_model=model, protocol=protocol, now=clock())


def model_states(database: Database) -> dict[str, ModelState]:
    with database.reading() as session:
        return {row.subject_id: ModelState(row.state) for row in session.scalars(select(ModelRow))}


def stored_files(database: Database) -> set[str]:
    with database.reading() as session:
        return set(session.scalars(select(ModelFileRow.sha256)))


def test_without_samples_a_measurement_keeps_its_number_its_rounds_and_where_it_comes_from(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make, measurement: MakeMeasurement
) -> None:
    number, before = measured(laboratory, operator(), measurement)
    table = published(database, clock)
    assert retention.drop_samples(database, before=LATER) == 1
    after = kept(database, number)
    assert after == before.without_samples()
    for name in ("latency_ms", "low_ms", "high_ms", "confidence", "verdict", "provenance", "subject_id", "rejected"):
        assert getattr(after, name) == getattr(before, name)
    for was, remains in zip(before.rounds, after.rounds, strict=True):
        assert (remains.samples_ms, remains.summary_of) == ((was.block_ms,), len(was.samples_ms))
        assert remains.reference_before_ms == was.reference_before_ms
    with database.reading() as session:
        assert tables.find(session, table.table_id, version=1).model_dump_json() == table.model_dump_json()
    assert published(database, clock) == table  # nothing has changed, so there is no new version


def test_without_evidence_it_is_known_how_many_rounds_were_rejected(
    laboratory: Laboratory, database: Database, operator: Make, measurement: MakeMeasurement
) -> None:
    number, before = measured(laboratory, operator(), measurement)
    assert retention.drop_evidence(database, before=LATER) == 1
    after = kept(database, number)
    assert (after.rejected, after.rejected_dropped) == ((), 2)
    assert after.rounds == before.rounds


def test_what_is_younger_or_was_dropped_already_is_left_alone(
    laboratory: Laboratory, database: Database, operator: Make, measurement: MakeMeasurement
) -> None:
    number, before = measured(laboratory, operator(), measurement)
    assert retention.drop_samples(database, before=START) == retention.drop_evidence(database, before=START) == 0
    assert kept(database, number) == before
    for drop in (retention.drop_samples, retention.drop_evidence):
        assert [drop(database, before=LATER) for _ in range(2)] == [1, 0]
    assert kept(database, number) == before.without_samples().without_evidence()


def test_more_than_one_batch_is_dropped_at_once(
    laboratory: Laboratory,
    database: Database,
    operator: Make,
    measurement: MakeMeasurement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for height in range(1, 6):
        measured(laboratory, operator(height=height), measurement)
    assert retention.drop_samples(database, before=LATER) == 5
    with database.reading() as session:
        assert not any(session.scalars(select(MeasurementRow.has_samples)))
    assert retention.drop_models(database, before=LATER).files == 5


def test_a_model_that_nothing_needs_is_dropped_and_made_again_when_asked_for(
    laboratory: Laboratory, database: Database, operator: Make, measurement: MakeMeasurement
) -> None:
    number, before = measured(laboratory, operator(), measurement)
    content = operator().id.encode()
    assert retention.drop_models(database, before=LATER) == Freed(1, len(content))
    assert model_states(database)[operator().id] == ModelState.DROPPED
    assert sha256(content) not in stored_files(database)
    assert kept(database, number) == before
    assert laboratory.ask(operator())[0].status == LatencyStatus.MEASURED

    with database.writing() as session:  # measured once more, as in a check for drift
        model, protocol = devices.resolve(session, "Pixel 3", protocol_id=None)
        conversion_queue.request(session, [operator().id], precision=protocol.precision, now=laboratory.clock())
        queue.request(
            session,
            [operator().id],
            device_model=model,
            protocol=protocol,
            client="me",
            purpose=Purpose.TABLE,
            now=laboratory.clock(),
        )
    assert laboratory.lease() is None
    laboratory.convert_all()
    lease = laboratory.leased()
    assert lease.jobs[0].model_sha256 == sha256(content)
    assert laboratory.accept(lease, result(lease, measurement)) == 0


def test_models_of_queued_and_leased_jobs_and_of_reference_operators_stay(
    laboratory: Laboratory, database: Database, operator: Make
) -> None:
    laboratory.ask(operator(height=1), queue_missing=True)
    laboratory.leased()
    laboratory.ask(operator(height=2), queue_missing=True)
    before = stored_files(database)
    assert len(before) == 3
    assert retention.drop_models(database, before=LATER) == Freed(0, 0)
    assert stored_files(database) == before


def test_a_file_that_was_sent_here_stays_whoever_else_has_the_same_bytes(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make, measurement: MakeMeasurement
) -> None:
    measured(laboratory, operator(), measurement)
    given, same = b"....TFL3 sent by somebody", operator().id.encode()
    files = [TFLiteModel(sha256=sha256(content)) for content in (given, same)]
    with database.writing() as session:
        model_files.store(session, sha256(given), given)
    with database.writing() as session:
        store_subjects(session, files)
        for file in files:
            model_files.make_ready(session, file, precision="float32", now=clock())
    assert retention.drop_models(database, before=LATER) == Freed(0, 0)
    assert {sha256(given), sha256(same)} <= stored_files(database)
    assert model_states(database)[operator().id] == ModelState.DROPPED


def test_a_file_that_was_sent_here_is_dropped_where_that_is_said_and_measured_when_it_is_sent_again(
    laboratory: Laboratory, database: Database, operator: Make, measurement: MakeMeasurement
) -> None:
    measured(laboratory, operator(), measurement)
    content = b"....TFL3 sent by somebody"
    file = TFLiteModel(sha256=sha256(content))

    def send() -> None:
        with database.writing() as session:
            model_files.store(session, file.sha256, content)

    send()
    laboratory.ask(file, queue_missing=True)
    assert retention.drop_models(database, before=LATER, given=True) == Freed(0, 0), "it waits to be measured"
    lease = laboratory.leased()
    laboratory.accept(lease, result(lease, measurement))
    assert retention.drop_models(database, before=LATER, given=True) == Freed(1, len(content))
    assert laboratory.ask(file)[0].status == LatencyStatus.MEASURED
    assert model_states(database)[operator().id] == ModelState.READY
    with pytest.raises(UnknownModel, match="Send them first"):
        laboratory.ask(file, queue_missing=True, measure_again=True)
    send()
    laboratory.ask(file, queue_missing=True, measure_again=True)
    assert laboratory.leased().jobs[0].model_sha256 == file.sha256


def test_a_file_that_was_sent_and_never_asked_for_stays(database: Database) -> None:
    with database.writing() as session:
        model_files.store(session, sha256(b"given"), b"given")
    retention.drop_models(database, before=LATER)
    with database.reading() as session:
        assert model_files.content(session, sha256(b"given")) == b"given"
        with pytest.raises(UnknownModel):
            model_files.content(session, sha256(b"never"))


def test_a_subject_that_is_asked_for_again_is_young(
    laboratory: Laboratory, database: Database, clock: Clock, operator: Make, measurement: MakeMeasurement
) -> None:
    measured(laboratory, operator(), measurement)
    retention.drop_models(database, before=LATER)
    clock.advance(7 * 86400)
    with database.writing() as session:
        conversion_queue.request(session, [operator().id], precision="float32", now=clock())
    laboratory.convert_all()
    assert retention.drop_models(database, before=LATER) == Freed(0, 0)
    assert model_states(database)[operator().id] == ModelState.READY


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_converter_makes_a_dropped_model_again_with_the_same_bytes(
    database: Database, database_url: str, report: Callable[..., DeviceReport], operator: Make
) -> None:
    """Over the wire, with the real converter: measurements of the one model are still those of the other."""
    phone, seen = report(), []
    with live_service(database_url) as url, ServiceConnection(url) as connection:
        connection.ask("PUT", f"/v1/devices/{phone.serial}", Device, body=phone)
        for _ in range(2):
            ask(connection, phone, operator(), queue_missing=True)
            batch = lease(connection, phone)
            sha256_of_model = batch.jobs[0].model_sha256
            seen.append((sha256_of_model, connection.request("GET", f"/v1/models/{sha256_of_model}").content))
            failed = LeaseReport(outcomes=(Failed(job_id=batch.jobs[0].job_id, error="the runner was ended"),))
            connection.request("POST", f"/v1/leases/{batch.token}/report", body=failed)
            assert retention.drop_models(database, before=datetime.now(UTC) + timedelta(days=1)).files == 1
            with pytest.raises(ServiceRefused, match="There is no model"):
                connection.request("GET", f"/v1/models/{sha256_of_model}")
    assert seen[0] == seen[1]
