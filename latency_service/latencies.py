"""Answering "how long does this operator take there?", and taking in what devices measured."""

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache, lru_cache, partial
from typing import Any

from sqlalchemy import ColumnElement, Insert, Row, Select, Table, bindparam, func, insert, select
from sqlalchemy.orm import Session

from latency_contract.jobs import Failed, JobState, Lease, LeasedJob, LeaseReport
from latency_contract.measurements import Measurement
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import Subject
from latency_contract.protocols import Protocol
from latency_contract.tables import Latency, LatencyEntry, LatencyQuery, LatencyStatus
from latency_service import conversion_queue, devices, model_files, queue, units
from latency_service.drift import impose, watch
from latency_service.errors import UnknownMeasurement, WrongMeasurement
from latency_service.models import DeviceRow, MeasurementRow
from latency_service.queue import JOBS, OwnedJob
from latency_service.settings import Settings
from latency_service.subjects import LISTED, REMEMBERED, listed, load_protocol, store_subjects, the_list

MEASUREMENTS = MeasurementRow.metadata.tables[MeasurementRow.__tablename__]  # without the session's bookkeeping
AnyRow = Row[*tuple[Any, ...]]
LATENCY = (
    MeasurementRow.id,
    MeasurementRow.latency_ms,
    MeasurementRow.low_ms,
    MeasurementRow.high_ms,
    MeasurementRow.confidence,
    MeasurementRow.verdict,
    MeasurementRow.rounds,
    MeasurementRow.device_serial,
    MeasurementRow.measured_at,
)


def look_up(
    session: Session,
    subjects: Sequence[Subject],
    *,
    device_model: str,
    protocol: Protocol,
    newer_than: int = 0,
) -> list[LatencyEntry]:
    """What is known of each subject, in the order asked. The newest measurement by a unit that was as usual counts, if
    its id is above `newer_than`.
    """
    ids = {subject.id for subject in subjects}
    newest = partial(newest_latencies, session, device_model=device_model, protocol=protocol, newer_than=newer_than)
    latencies = newest(ids)
    jobs: dict[str, AnyRow] = {}
    if missing := ids - latencies.keys():
        jobs = _last_jobs(session, missing, device_model=device_model, protocol=protocol)
        # Of a job that has ended between the two questions, the result must be seen.
        latencies |= newest(missing)
    return [_entry(subject, latencies.get(subject.id), jobs.get(subject.id)) for subject in subjects]


def newest_latencies(
    session: Session, subject_ids: Collection[str], *, device_model: str, protocol: Protocol, newer_than: int = 0
) -> dict[str, Latency]:
    """By subject, of those that have one. A measurement by a unit that had drifted does not count."""
    asked = {"model": device_model, "protocol": protocol.id, LISTED: the_list(subject_ids), "newer_than": newer_than}
    return {row[0]: _latency(*row[1:]) for row in session.execute(_newest_measurements(), asked)}


def _last_jobs(
    session: Session, subject_ids: Collection[str], *, device_model: str, protocol: Protocol
) -> dict[str, AnyRow]:
    """State and error by subject."""
    asked = {"model": device_model, "protocol": protocol.id, LISTED: the_list(subject_ids)}
    return {row.subject_id: row for row in session.execute(_newest_jobs(), asked)}


# Made once, as the queue's are.


@cache
def _newest_measurements() -> Select[*tuple[Any, ...]]:
    # Not whole rows: their documents hold every sample.
    columns = [MEASUREMENTS.c[column.key] for column in (MeasurementRow.subject_id, *LATENCY)]
    newer = MEASUREMENTS.c.id > bindparam("newer_than")
    return _newest(MEASUREMENTS, columns, MEASUREMENTS.c.drifted.is_(False), newer)


@cache
def _newest_jobs() -> Select[*tuple[Any, ...]]:
    return _newest(JOBS, [JOBS.c.subject_id, JOBS.c.state, JOBS.c.error])


def _newest(
    table: Table, columns: Sequence[ColumnElement[Any]], *conditions: ColumnElement[bool]
) -> Select[*tuple[Any, ...]]:
    """Of the rows of each listed subject, the last: one look into the index for each."""
    asked = listed()
    of_one = select(func.max(table.c.id)).where(
        queue.of_table(table.c), table.c.subject_id == asked.c.value, *conditions
    )
    return select(*columns).join_from(asked, table, table.c.id == of_one.correlate(asked).scalar_subquery())


@cache
def _storing() -> Insert:
    return insert(MEASUREMENTS)


def queue_missing(
    session: Session,
    query: LatencyQuery,
    entries: Sequence[LatencyEntry],
    *,
    device_model: str,
    protocol: Protocol,
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
    known = partial(look_up, session, device_model=device_model, protocol=protocol, newer_than=query.newer_than)
    entries = known(subjects)
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
        layers={subject.id: layers for subject, layers in zip(query.subjects, query.layers, strict=False)},
        now=now,
    )
    queue.refuse_above(session, query.client, owner=owner, max_waiting=max_waiting)
    return known(query.subjects)


def nothing_to_lease(session: Session, device: DeviceRow, *, now: datetime) -> bool:
    """Whether `lease` would find nothing. Reads alone, for the many who ask in vain."""
    unfit = device.quarantine is not None or devices.at_rest(device, now)
    return unfit or not queue.work_for(session, device, now=now)


def lease(session: Session, device: DeviceRow, *, max_jobs: int, settings: Settings, now: datetime) -> Lease | None:
    """A batch of jobs for a device; None where there is nothing to do, or the device rests or is in quarantine.

    The device's row may have been read in another session, a moment before.
    """
    devices.note_seen(session, device.serial, now=now)
    if device.quarantine is not None or devices.at_rest(device, now):
        return None
    protocol, reference_sha256 = conversion_queue.with_reference(session, device.protocol_id)
    if reference_sha256 is None:
        return None
    claim = queue.claim(
        session, device, max_jobs=max_jobs, lease_s=settings.lease_s, max_attempts=settings.max_attempts, now=now
    )
    if claim is None:
        return None
    subject_ids = [job.subject_id for job in claim.jobs]
    converted = conversion_queue.converted(session, subject_ids, precision=protocol.precision)
    jobs = []
    for job in claim.jobs:
        subject, sha256 = converted[job.subject_id]
        jobs.append(
            LeasedJob(job_id=job.job_id, subject=subject, model_sha256=sha256, attempt=job.attempt, layers=job.layers)
        )
    return Lease(
        token=claim.token,
        lease_s=settings.lease_s,
        expires_at=claim.expires_at,
        protocol=protocol,
        reference_sha256=reference_sha256,
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
    measured = []
    for outcome in report.outcomes:
        job = owned.pop(outcome.job_id, None)
        if job is None:
            continue
        if isinstance(outcome, Failed):
            queue.fail(session, job.id, error=outcome.error, now=now)
        else:
            measured.append((job, outcome.measurement))
    if measured:
        _store(session, token, measured, settings=settings, now=now)
    return queue.remaining(session, token)


def _store(
    session: Session,
    token: str,
    measured: Sequence[tuple[OwnedJob, Measurement]],
    *,
    settings: Settings,
    now: datetime,
) -> None:
    """What one device has measured under one lease, and so under one protocol. Raises WrongMeasurement."""
    first, _ = measured[0]
    protocol = load_protocol(session, first.protocol_id)
    for job, made in measured:
        _check_belongs(job, made, protocol=protocol)
    session.execute(_storing(), [_measurement_values(job, made) for job, made in measured])
    queue.complete(session, [job.id for job, _ in measured])
    device = devices.known(session, first.leased_by)
    drift = watch(session, device, protocol=protocol, settings=settings, now=now)
    if drift is not None and queue.remaining(session, token):  # before the device's row is written (decision 15)
        max_attempts = settings.max_attempts
        queue.release(session, token, device_fault=None, suspects=(), max_attempts=max_attempts, now=now)
    devices.note_measured(
        session,
        device.serial,
        [made.verdict for _, made in measured],
        temperature_c=measured[-1][1].provenance.after.temperature_c,
        now=now,
    )
    if drift is not None:
        impose(session, device, drift)


def measurement(session: Session, measurement_id: int) -> Measurement:
    """The whole measurement, as far as it is kept (retention.py). Raises UnknownMeasurement."""
    row = session.get(MeasurementRow, measurement_id)
    if row is None:
        raise UnknownMeasurement(f"There is no measurement {measurement_id}; latencies name those that exist.")
    return Measurement.model_validate_json(row.document)


def latency_of(row: MeasurementRow | AnyRow) -> Latency:
    """Of a row with the columns LATENCY."""
    return _latency(*(getattr(row, column.key) for column in LATENCY))


@lru_cache(maxsize=REMEMBERED)
def _latency(measurement_id: int, *columns: Any) -> Latency:
    """Of the columns LATENCY, which are read each time: what is remembered follows from them alone."""
    names = (column.key for column in LATENCY[1:])
    return Latency(measurement_id=measurement_id, **dict(zip(names, columns, strict=True)))


def _entry(subject: Subject, latency: Latency | None, job: AnyRow | None) -> LatencyEntry:
    """A latency that was once measured stands, whatever became of later jobs."""
    if latency is not None:
        return LatencyEntry(subject_id=subject.id, key=subject.key, status=LatencyStatus.MEASURED, latency=latency)
    status, error = LatencyStatus.MISSING, None
    if job is not None and job.state == JobState.FAILED:
        status, error = LatencyStatus.FAILED, job.error
    elif job is not None and job.state == JobState.QUEUED:
        status = LatencyStatus.QUEUED
    elif job is not None and job.state == JobState.LEASED:
        status = LatencyStatus.LEASED
    return LatencyEntry(subject_id=subject.id, key=subject.key, status=status, error=error)


def _check_belongs(job: OwnedJob, measured: Measurement, *, protocol: Protocol) -> None:
    for what, expected, found in (
        ("subject", job.subject_id, measured.subject_id),
        ("device", job.leased_by, measured.provenance.device_serial),
        ("model file", job.model_sha256, measured.provenance.model_sha256),
        ("confidence", protocol.stopping.confidence, measured.confidence),
    ):
        if expected != found:
            raise WrongMeasurement(f"The measurement for job {job.id} is of another {what}: {found}, not {expected}.")
    if measured.pooled is None:
        raise WrongMeasurement(
            f"The measurement for job {job.id} does not say how far those of its lease spread ('pooled'), without which"
            " its interval is too narrow. Update the agent."
        )
    if measured.quiet_reference_ms is None:
        raise WrongMeasurement(
            f"The measurement for job {job.id} does not say what its device reads of the reference operator in a quiet"
            " moment ('quiet_reference_ms'), without which nobody knows whether it is steady. Update the agent."
        )
    if any(r.statistic != protocol.statistic for r in measured.rounds):
        raise WrongMeasurement(
            f"Of the measurement for job {job.id}, something else stands for a block than the protocol's"
            f" {protocol.statistic}. Update the agent."
        )
    rule = protocol.stopping
    rightful = measured.verdict_under(rule)
    if measured.verdict != rightful or not rule.min_rounds <= len(measured.rounds) <= rule.max_rounds:
        raise WrongMeasurement(
            f"The measurement for job {job.id} says '{measured.verdict}' after {len(measured.rounds)} rounds; under the"
            f" protocol it is '{rightful}', and {rule.min_rounds} to {rule.max_rounds} rounds are needed."
        )


def _measurement_values(job: OwnedJob, measured: Measurement) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "subject_id": job.subject_id,
        "device_model": job.device_model,
        "protocol_id": job.protocol_id,
        "device_serial": measured.provenance.device_serial,
        "latency_ms": measured.latency_ms,
        "low_ms": measured.low_ms,
        "high_ms": measured.high_ms,
        "confidence": measured.confidence,
        "verdict": measured.verdict,
        "rounds": len(measured.rounds),
        "measured_at": measured.measured_at,
        "reference_ms": units.reference_floor_ms(measured.rounds),
        "document": measured.model_dump_json(),
        "has_samples": True,
        "has_evidence": bool(measured.rejected),
    }
