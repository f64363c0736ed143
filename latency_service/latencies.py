"""Answering "how long does this operator take there?", and taking in what devices measured."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from latency_contract.jobs import Failed, JobState, Lease, LeasedJob, LeaseReport
from latency_contract.measurements import Measurement, Verdict
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import Subject
from latency_contract.tables import Latency, LatencyEntry, LatencyQuery, LatencyStatus
from latency_service import conversion_queue, devices, model_files, queue, units
from latency_service.drift import impose, watch
from latency_service.errors import UnknownMeasurement, WrongMeasurement
from latency_service.models import DeviceRow, JobRow, MeasurementRow, ProtocolRow
from latency_service.settings import Settings
from latency_service.subjects import load_protocol, load_subject, protocol_row, store_subjects


def look_up(
    session: Session,
    subjects: Sequence[Subject],
    *,
    device_model: str,
    protocol: ProtocolRow,
) -> list[LatencyEntry]:
    """What is known of each subject, in the order asked. The newest measurement by a unit that was as usual counts."""
    ids = list({subject.id for subject in subjects})
    last_job = (
        select(func.max(JobRow.id))
        .where(JobRow.device_model == device_model, JobRow.protocol_id == protocol.id, JobRow.subject_id.in_(ids))
        .group_by(JobRow.subject_id)
    )
    # Jobs before measurements: of a job that ends between the two questions, the result must be seen.
    last_jobs = select(JobRow).where(JobRow.id.in_(last_job)).execution_options(populate_existing=True)
    jobs = {row.subject_id: row for row in session.scalars(last_jobs)}
    table = (
        MeasurementRow.device_model == device_model,
        MeasurementRow.protocol_id == protocol.id,
        MeasurementRow.subject_id.in_(ids),
        MeasurementRow.drifted.is_(False),
    )
    newest = select(func.max(MeasurementRow.id)).where(*table).group_by(MeasurementRow.subject_id)
    measured = session.scalars(select(MeasurementRow).where(MeasurementRow.id.in_(newest)))
    latencies = {row.subject_id: latency_of(row) for row in measured}
    return [_entry(subject, latencies.get(subject.id), jobs.get(subject.id)) for subject in subjects]


def queue_missing(
    session: Session,
    query: LatencyQuery,
    entries: Sequence[LatencyEntry],
    *,
    device_model: str,
    protocol: ProtocolRow,
    owner: str = "",
    max_waiting: int = Settings.max_waiting,
    now: datetime,
) -> list[LatencyEntry]:
    """Queue what has no measurement, or with `measure_again` everything; returns the entries as they are afterwards.

    `owner` is the name of the token.

    A subject that failed is tried again too: whoever asks for it to be queued has read that it failed.

    Raises:
        QueueFull: the client would wait for more than `max_waiting` jobs.
        UnknownModel: a TFLite file is to be measured whose bytes the service was never given.
    """
    wanted = {e.subject_id for e in entries if query.measure_again or e.status != LatencyStatus.MEASURED}
    subjects = [subject for subject in query.subjects if subject.id in wanted]
    if not subjects:
        return list(entries)
    store_subjects(session, subjects)
    # They are locked now; what a device has reported until then must not be measured once more.
    entries = look_up(session, subjects, device_model=device_model, protocol=protocol)
    wanted = {e.subject_id for e in entries if query.measure_again or e.status != LatencyStatus.MEASURED}
    subjects = [subject for subject in subjects if subject.id in wanted]
    files = {subject.id: subject for subject in subjects if isinstance(subject, TFLiteModel)}
    for _, file in sorted(files.items()):
        model_files.make_ready(session, file, precision=protocol.precision, now=now)
    conversion_queue.request(session, sorted(wanted - files.keys()), precision=protocol.precision, now=now)
    in_order = list(dict.fromkeys(subject.id for subject in subjects))
    queue.request(
        session,
        in_order,
        device_model=device_model,
        protocol=protocol,
        client=query.client,
        owner=owner,
        purpose=query.purpose,
        now=now,
    )
    queue.refuse_above(session, query.client, owner=owner, max_waiting=max_waiting)
    return look_up(session, query.subjects, device_model=device_model, protocol=protocol)


def nothing_to_lease(session: Session, device: DeviceRow, *, now: datetime) -> bool:
    """Whether `lease` would find nothing. Reads alone, for the many who ask in vain."""
    unfit = device.quarantine is not None or devices.at_rest(device, now)
    return unfit or not queue.work_for(session, device, now=now)


def lease(session: Session, device: DeviceRow, *, max_jobs: int, settings: Settings, now: datetime) -> Lease | None:
    """A batch of jobs for a device; None where there is nothing to do, or the device rests or is in quarantine."""
    device.last_seen_at = now
    if device.quarantine is not None or devices.at_rest(device, now):
        return None
    protocol = protocol_row(session, device.protocol_id)
    reference = conversion_queue.model_sha256(session, protocol.reference_id, precision=protocol.precision)
    if reference is None:
        return None  # still being converted
    claim = queue.claim(
        session, device, max_jobs=max_jobs, lease_s=settings.lease_s, max_attempts=settings.max_attempts, now=now
    )
    if claim is None:
        return None
    jobs = []
    for claimed in claim.jobs:
        sha256 = conversion_queue.model_sha256(session, claimed.subject_id, precision=protocol.precision)
        assert sha256 is not None, "only jobs with a model are claimed"
        subject = load_subject(session, claimed.subject_id)
        jobs.append(LeasedJob(job_id=claimed.job_id, subject=subject, model_sha256=sha256, attempt=claimed.attempt))
    return Lease(
        token=claim.token,
        lease_s=settings.lease_s,
        expires_at=claim.expires_at,
        protocol=load_protocol(protocol),
        reference_sha256=reference,
        jobs=tuple(jobs),
    )


def accept(session: Session, token: str, report: LeaseReport, *, settings: Settings, now: datetime) -> int:
    """Store what a device measured; all of it or, where one outcome is refused, nothing. Returns the jobs left.

    A report that arrives twice is accepted twice and stored once. A device that has drifted away from its history is
    quarantined, and what is left of its lease goes back to the queue.

    Raises:
        StaleLease: a job does not belong to this lease any more.
        WrongMeasurement: a measurement of another subject, model, device, or with another confidence.
    """
    owned = queue.owned_jobs(session, token, (outcome.job_id for outcome in report.outcomes))
    accepted: list[tuple[JobRow, Measurement]] = []
    for outcome in report.outcomes:
        job = owned.pop(outcome.job_id, None)
        if job is None:
            continue
        if isinstance(outcome, Failed):
            queue.fail(job, error=outcome.error, now=now)
            continue
        _check_belongs(session, job, outcome.measurement)
        session.add(_measurement_row(job, outcome.measurement))
        queue.complete(job)
        accepted.append((job, outcome.measurement))
    session.flush()
    remaining = queue.remaining(session, token)
    if not accepted:
        return remaining
    job, measured = accepted[-1]
    device = devices.known(session, measured.provenance.device_serial)
    protocol = load_protocol(protocol_row(session, job.protocol_id))
    drift = watch(session, device, protocol=protocol, settings=settings, now=now)
    if drift is not None and remaining:  # before the device's row is written, as everybody locks (docs/decisions/0015)
        max_attempts = settings.max_attempts
        queue.release(session, token, device_fault=None, suspects=(), max_attempts=max_attempts, now=now)
        remaining = 0
    device.last_seen_at = now
    devices.close_breaker(device)
    for _, measured in accepted:
        temperature_c = measured.provenance.after.temperature_c
        devices.count_measured(session, device, measured.verdict, temperature_c=temperature_c, now=now)
    if drift is not None:
        impose(session, device, drift)
    session.flush()
    return remaining


def measurement(session: Session, measurement_id: int) -> Measurement:
    """The whole measurement, as far as it is kept (retention.py). Raises UnknownMeasurement."""
    row = session.get(MeasurementRow, measurement_id)
    if row is None:
        raise UnknownMeasurement(f"There is no measurement {measurement_id}; latencies name those that exist.")
    return Measurement.model_validate_json(row.document)


def latency_of(row: MeasurementRow) -> Latency:
    return Latency(
        measurement_id=row.id,
        latency_ms=row.latency_ms,
        low_ms=row.low_ms,
        high_ms=row.high_ms,
        confidence=row.confidence,
        verdict=Verdict(row.verdict),
        rounds=row.rounds,
        device_serial=row.device_serial,
        measured_at=row.measured_at,
    )


def _entry(subject: Subject, latency: Latency | None, job: JobRow | None) -> LatencyEntry:
    """A latency that was once measured stands, whatever became of later jobs."""
    status, error = LatencyStatus.MISSING, None
    if latency is not None:
        status = LatencyStatus.MEASURED
    elif job is not None and job.state == JobState.FAILED:
        status, error = LatencyStatus.FAILED, job.error
    elif job is not None and job.state == JobState.QUEUED:
        status = LatencyStatus.QUEUED
    elif job is not None and job.state == JobState.LEASED:
        status = LatencyStatus.LEASED
    return LatencyEntry(subject_id=subject.id, key=subject.key, status=status, latency=latency, error=error)


def _check_belongs(session: Session, job: JobRow, measured: Measurement) -> None:
    protocol = load_protocol(protocol_row(session, job.protocol_id))
    sha256 = conversion_queue.model_sha256(session, job.subject_id, precision=job.precision)
    for what, expected, found in (
        ("subject", job.subject_id, measured.subject_id),
        ("device", job.leased_by, measured.provenance.device_serial),
        ("model file", sha256, measured.provenance.model_sha256),
        ("confidence", protocol.stopping.confidence, measured.confidence),
    ):
        if expected != found:
            raise WrongMeasurement(f"The measurement for job {job.id} is of another {what}: {found}, not {expected}.")
    rule = protocol.stopping
    rightful = Measurement.from_rounds(
        measured.rounds,
        subject_id=measured.subject_id,
        stopping=rule,
        provenance=measured.provenance,
        pooled=measured.pooled,
    )
    if measured.verdict != rightful.verdict or not rule.min_rounds <= len(measured.rounds) <= rule.max_rounds:
        raise WrongMeasurement(
            f"The measurement for job {job.id} says '{measured.verdict}' after {len(measured.rounds)} rounds; under the"
            f" protocol it is '{rightful.verdict}', and {rule.min_rounds} to {rule.max_rounds} rounds are needed."
        )


def _measurement_row(job: JobRow, measured: Measurement) -> MeasurementRow:
    return MeasurementRow(
        job_id=job.id,
        subject_id=job.subject_id,
        device_model=job.device_model,
        protocol_id=job.protocol_id,
        device_serial=measured.provenance.device_serial,
        latency_ms=measured.latency_ms,
        low_ms=measured.low_ms,
        high_ms=measured.high_ms,
        confidence=measured.confidence,
        verdict=measured.verdict,
        rounds=len(measured.rounds),
        measured_at=measured.measured_at,
        reference_ms=units.reference_floor_ms(measured.rounds),
        document=measured.model_dump_json(),
        has_evidence=bool(measured.rejected),
    )
