"""How things are, for people: devices, queue, conversions, tables, and first of all what needs attention."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import AwareDatetime
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from latency_contract.canonical import Contract
from latency_contract.devices import Device
from latency_contract.jobs import JobState
from latency_contract.tables import Purpose
from latency_service import devices
from latency_service.models import (
    ACTIVE_STATES,
    FAILED_STATE,
    DeviceRow,
    JobRow,
    ModelState,
    ProtocolRow,
    SubjectRow,
    TableVersionRow,
)
from latency_service.overview import Overview, overview
from latency_service.settings import Settings
from latency_service.subjects import read_protocol

RECENT = timedelta(days=1)
SHOWN_FAILURES = 3
SHOWN_OF_AN_ERROR = 100  # characters
UNCONVERTED = timedelta(minutes=1)  # a converter that lives looks for work twice a second
SIZES = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
    "postgresql": "SELECT pg_database_size(current_database())",
}


class Queued(Contract):
    device_model: str
    purpose: Purpose
    state: JobState  # queued or leased
    jobs: int
    oldest_at: AwareDatetime


class Unit(Contract):
    device: Device
    last_measured_at: AwareDatetime | None
    measured: int
    temperature_c: float | None  # after the last measurement


class Failure(Contract):
    job_id: int
    key: str
    device_model: str
    error: str | None
    failed_at: AwareDatetime


class Status(Contract):
    at: AwareDatetime
    database: str
    size_bytes: int
    units: tuple[Unit, ...]
    queue: tuple[Queued, ...]
    conversions_pending: int
    conversions_failed: int
    tables: int
    table_versions: int
    last_published_at: AwareDatetime | None
    failed_recently: int
    failures: tuple[Failure, ...]  # the last ones of those
    attention: tuple[str, ...]


class _Waiting(NamedTuple):
    """Jobs that only a unit of this model takes which measures under this protocol."""

    device_model: str
    protocol_id: str
    jobs: int
    protocol: str  # as it is stored


class _Failed(NamedTuple):
    jobs: int
    last: tuple[Failure, ...]


def status(
    session: Session, *, database: str, settings: Settings, now: datetime, shown_failures: int = SHOWN_FAILURES
) -> Status:
    found = overview(session, now=now)
    units = tuple(unit(row, settings=settings, now=now) for row in found.devices)
    failed = _failed(session, since=now - RECENT, shown=shown_failures)
    tables, versions, last = session.execute(
        select(
            func.count(TableVersionRow.table_id.distinct()),
            func.count(),
            func.max(TableVersionRow.published_at),
        )
    ).one()
    return Status(
        at=now,
        database=database,
        size_bytes=session.scalar(text(SIZES[session.get_bind().dialect.name])) or 0,
        units=units,
        queue=tuple(Queued(**b._asdict()) for b in found.backlog),
        conversions_pending=found.conversions[ModelState.PENDING] + found.conversions[ModelState.CONVERTING],
        conversions_failed=found.conversions[ModelState.FAILED],
        tables=tables,
        table_versions=versions,
        last_published_at=last,
        failed_recently=failed.jobs,
        failures=failed.last,
        attention=tuple(_attention(found, units, failed, _waiting(session), now=now)),
    )


def unit(row: DeviceRow, *, settings: Settings, now: datetime) -> Unit:
    return Unit(
        device=devices.shown(row, settings=settings, now=now),
        last_measured_at=row.last_measured_at,
        measured=row.measured_steady + row.measured_unsteady,
        temperature_c=row.last_temperature_c,
    )


def _failed(session: Session, *, since: datetime, shown: int) -> _Failed:
    recent = (text(FAILED_STATE), JobRow.failed_at >= since)
    last = session.execute(
        select(JobRow.id, SubjectRow.key, JobRow.device_model, JobRow.error, JobRow.failed_at)
        .join(SubjectRow, SubjectRow.id == JobRow.subject_id)
        .where(*recent)
        .order_by(JobRow.failed_at.desc(), JobRow.id.desc())
        .limit(shown)
    )
    return _Failed(
        session.scalar(select(func.count()).select_from(JobRow).where(*recent)) or 0,
        tuple(
            Failure(job_id=job_id, key=key, device_model=model, error=error, failed_at=at)
            for job_id, key, model, error, at in last
        ),
    )


def _waiting(session: Session) -> list[_Waiting]:
    table = JobRow.device_model, JobRow.protocol_id
    active = select(*table, func.count().label("jobs")).where(text(ACTIVE_STATES)).group_by(*table).subquery()
    rows = session.execute(
        select(active, ProtocolRow.document)
        .join(ProtocolRow, ProtocolRow.id == active.c.protocol_id)
        .order_by(active.c.device_model, active.c.protocol_id)
    )
    return [_Waiting(*row) for row in rows]


def _attention(
    found: Overview, units: tuple[Unit, ...], failed: _Failed, waiting: Sequence[_Waiting], *, now: datetime
) -> list[str]:
    """Sentences, the worst first."""
    said = []
    able = {(unit.device.model, unit.device.protocol.id) for unit in units if unit.device.alive}
    models = {model for model, _ in able}
    for one in waiting:
        jobs = f"{_count(one.jobs, 'job')} for {one.device_model}"
        if one.device_model not in models:
            said.append(f"{jobs}, and no agent of one is at work: start padnas-agent there")
        elif (one.device_model, one.protocol_id) not in able:
            wanted = read_protocol(one.protocol)
            said.append(
                f"{jobs} under protocol {one.protocol_id[:8]} ({wanted.runtime} {wanted.runtime_version}), and every"
                " agent of one at work measures under another: start one with that runtime, and the options of then"
            )
    nobody_converts = not found.conversions[ModelState.CONVERTING]
    if found.pending_since is not None and nobody_converts and now - found.pending_since > UNCONVERTED:
        pending = _count(found.conversions[ModelState.PENDING], "subject")
        said.append(
            f"{pending} to convert, the oldest for {ago(now - found.pending_since)}, and no service does: start one"
            " without --no-convert; where one runs, its log says why"
        )
    for unit in units:
        device = unit.device
        if device.quarantine is not None:
            said.append(f"{device.model} {device.serial} is in quarantine: {device.quarantine.reason}")
        if device.blocked_until is not None:
            faults = _count(device.faults, "fault")
            said.append(f"{device.model} {device.serial} rests after {faults} in a row: {_cut(device.last_fault)}")
    if failed.last:
        last = failed.last[0]
        said.append(f"{_count(failed.jobs, 'job')} failed since yesterday, the last {last.key}: {_cut(last.error)}")
    if crashed := found.conversions[ModelState.FAILED]:
        said.append(f"{_count(crashed, 'subject')} cannot be converted; asking for one again tries again")
    return said


def text_of(status: Status) -> str:
    """One screen."""
    now = status.at
    lines = [f"{status.database}, {status.size_bytes / 1e6:,.1f} MB", "", "needs attention"]
    lines += [f"  ! {sentence}" for sentence in status.attention] or ["  nothing"]
    lines += ["", "devices"]
    lines += [f"  {_unit(unit, now)}" for unit in status.units] or ["  none has reported; start padnas-agent run"]
    lines += ["", "queue"]
    lines += [
        f"  {entry.device_model}: {entry.jobs:,} {entry.state} for {ASKED[entry.purpose]},"
        f" the oldest {ago(now - entry.oldest_at)} old"
        for entry in status.queue
    ] or ["  empty"]
    lines += ["", "conversions", f"  {status.conversions_pending:,} wait, {status.conversions_failed:,} failed"]
    lines += ["", "tables"]
    if status.last_published_at is None:
        lines += ["  none is published"]
    else:
        lines += [
            f"  {_count(status.tables, 'table')} in {_count(status.table_versions, 'version')},"
            f" the last published {ago(now - status.last_published_at)} ago"
        ]
    if status.failures:
        lines += ["", f"failed since yesterday: {status.failed_recently:,}, the last of them"]
        lines += [
            f"  {failure.key} on {failure.device_model}, {ago(now - failure.failed_at)} ago: {_cut(failure.error)}"
            for failure in status.failures
        ]
    return "\n".join(lines)


ASKED = {Purpose.SEARCH: "searches", Purpose.TABLE: "tables", Purpose.REFINEMENT: "refinement"}


class Condition(NamedTuple):
    """How a unit is, in words."""

    well: bool
    said: str
    reason: str | None = None  # why, where it is not well


def condition(device: Device, now: datetime) -> Condition:
    if device.quarantine is not None:
        failed = _count(device.quarantine.failed_checks, "time")
        return Condition(False, f"in quarantine, checked in vain {failed}", device.quarantine.reason)
    if device.blocked_until is not None:
        return Condition(False, f"rests for {ago(device.blocked_until - now)} more", device.last_fault)
    if device.alive:
        return Condition(True, "at work")
    return Condition(False, f"silent for {ago(now - device.last_seen_at)}", "Its agent does not speak; is it running?")


def _unit(unit: Unit, now: datetime) -> str:
    measured = "nothing measured yet"
    if unit.last_measured_at is not None:
        measured = f"{_count(unit.measured, 'measurement')}, the last {ago(now - unit.last_measured_at)} ago"
    return f"{unit.device.model}  {unit.device.serial}  {condition(unit.device, now).said}; {measured}"


def _cut(error: str | None) -> str:
    said = " ".join((error or "no reason is known").split())
    return said if len(said) <= SHOWN_OF_AN_ERROR else f"{said[:SHOWN_OF_AN_ERROR]}…"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def ago(age: timedelta) -> str:
    seconds = max(age.total_seconds(), 0)
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.0f} s"
