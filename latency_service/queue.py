"""The queue of profiling jobs, and the only code that writes a job's state.

    queued ──lease──▶ leased ──complete──▶ done
      ▲                 │ ╰────fail──────▶ failed
      │                 ▼
      ╰── release, or the deadline passes
    queued ──nobody wants it──▶ cancelled

Leases are fenced: every job carries the token of the lease that owns it, and whoever writes must know that token.
An expired lease needs no sweeper: the claim itself takes jobs whose deadline has passed.
"""

import secrets
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, CursorResult, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from latency_contract.jobs import JobState
from latency_contract.tables import Purpose
from latency_service.errors import StaleLease
from latency_service.models import DeviceRow, JobRow, ModelRow, ModelState, ProtocolRow, WantRow
from latency_service.subjects import insert_if_absent

# What a running search waits for comes first, then table builds, oldest first.
PRIORITIES = {Purpose.SEARCH: 0, Purpose.TABLE: 1}


class ClaimedJob(NamedTuple):
    job_id: int
    subject_id: str
    attempt: int


class Claim(NamedTuple):
    """A new lease."""

    token: str
    expires_at: datetime
    jobs: list[ClaimedJob]


class Renewal(NamedTuple):
    expires_at: datetime
    remaining: int  # jobs of the lease without an outcome
    serial: str  # of the device that holds it


def request(
    session: Session,
    subject_ids: Sequence[str],
    *,
    device_model: str,
    protocol: ProtocolRow,
    client: str,
    purpose: Purpose,
    now: datetime,
) -> None:
    """Queue one job for each subject that has no active one, and note that `client` wants them all."""
    if not subject_ids:
        return
    priority = PRIORITIES[purpose]
    session.execute(
        insert_if_absent(session, JobRow)
        .values(
            [
                {
                    "subject_id": subject_id,
                    "device_model": device_model,
                    "protocol_id": protocol.id,
                    "precision": protocol.precision,
                    "state": JobState.QUEUED,
                    "priority": priority,
                    "created_at": now,
                    "attempts": 0,
                }
                for subject_id in subject_ids
            ]
        )
        .on_conflict_do_nothing()
    )
    active = and_(
        JobRow.subject_id.in_(subject_ids),
        JobRow.device_model == device_model,
        JobRow.protocol_id == protocol.id,
        JobRow.state.in_((JobState.QUEUED, JobState.LEASED)),
    )
    session.execute(update(JobRow).where(active, JobRow.priority > priority).values(priority=priority))
    wants = [{"job_id": job_id, "client": client} for job_id in session.scalars(select(JobRow.id).where(active))]
    session.execute(insert_if_absent(session, WantRow).values(wants).on_conflict_do_nothing())


def claim(
    session: Session, device: DeviceRow, *, max_jobs: int, lease_s: float, max_attempts: int, now: datetime
) -> Claim | None:
    """Give the most urgent eligible jobs to a device; None when there is no work.

    Eligible: the model is converted, and the job is queued, or leased with a deadline that has passed. A job with a
    spent attempt (its deadline passed, or it is suspected of a device's fault) is leased alone, so that one which
    brings devices down costs its neighbours nothing more; those with the fewest attempts come first.
    """
    session.execute(
        update(JobRow)
        .where(_expired(JobRow, now), JobRow.attempts >= max_attempts)
        .values(
            state=JobState.FAILED,
            lease_token=None,
            error=func.coalesce(
                JobRow.error,
                f"given up after {max_attempts} leases that ended without a result: the agent died or hung",
            ),
        )
    )
    candidate, other = aliased(JobRow), aliased(JobRow)
    first = (
        select(other.id, other.attempts)
        .where(_eligible(other, device, now))
        .order_by(other.priority, other.attempts, other.id)
        .limit(1)
        .subquery("first")
    )
    batch = (
        select(candidate.id)
        .join(first, or_(candidate.id == first.c.id, and_(candidate.attempts == 0, first.c.attempts == 0)))
        .where(_eligible(candidate, device, now))
        .order_by(candidate.priority, candidate.attempts, candidate.id)
        .limit(max_jobs)
        .with_for_update(of=candidate, skip_locked=True)  # ignored by SQLite, whose writers take turns
    )
    token, expires_at = secrets.token_hex(16), now + timedelta(seconds=lease_s)
    claimed = session.execute(
        update(JobRow)
        .where(JobRow.id.in_(batch))
        .values(
            state=JobState.LEASED,
            lease_token=token,
            lease_expires_at=expires_at,
            leased_by=device.serial,
            attempts=JobRow.attempts + 1,
        )
        .returning(JobRow.id, JobRow.subject_id, JobRow.attempts, JobRow.priority)
        .execution_options(synchronize_session=False)
    ).all()
    if not claimed:
        return None
    in_order = sorted(claimed, key=lambda row: (row.priority, row.id))
    return Claim(token, expires_at, [ClaimedJob(row.id, row.subject_id, row.attempts) for row in in_order])


def renew(session: Session, token: str, *, lease_s: float, now: datetime) -> Renewal:
    """Move the deadline of a lease.

    Raises:
        StaleLease: the deadline had passed and another device has the jobs, or nothing is left of the lease.
    """
    expires_at = now + timedelta(seconds=lease_s)
    serial = _holder(session, token)
    renewed = _rows_changed(session, update(JobRow).where(_owned(token)).values(lease_expires_at=expires_at))
    return Renewal(expires_at, renewed, serial)


def owned_job(session: Session, token: str, job_id: int) -> JobRow | None:
    """The job if the lease owns it; None if this very lease has already finished it.

    Raises:
        StaleLease: neither.
    """
    job = session.get(JobRow, job_id, with_for_update=True)
    if job is not None and job.lease_token == token:
        if job.state == JobState.LEASED:
            return job
        if job.state in (JobState.DONE, JobState.FAILED):
            return None
    raise StaleLease(
        f"Job {job_id} is not, or no longer, part of this lease; its result is refused. Ask for a new lease."
    )


def complete(job: JobRow) -> None:
    job.state = JobState.DONE


def fail(job: JobRow, *, error: str) -> None:
    """The subject's own fault: trying again would not help."""
    job.state = JobState.FAILED
    job.error = error


def remaining(session: Session, token: str) -> int:
    return session.scalar(select(func.count()).select_from(JobRow).where(_owned(token))) or 0


def release(
    session: Session, token: str, *, device_fault: str | None, suspects: Collection[int], max_attempts: int
) -> str:
    """Return what is left of a lease to the queue; returns the serial of the device that had it.

    A job that is given back does not count the lease as an attempt, whatever the fault: a cable may be pulled as often
    as it likes. Only `suspects`, which ran when the device went down, do, so that a subject which brings devices down
    is given up in the end, with the fault as its error.

    Raises:
        StaleLease: nothing is left of this lease, or a suspect is not part of it. Nothing is returned then.
    """
    serial = _holder(session, token)
    mine = set(session.scalars(select(JobRow.id).where(JobRow.lease_token == token)))  # finished ones too
    for job_id in suspects:
        if job_id not in mine:
            raise StaleLease(f"Job {job_id} is not part of this lease. Suspect only jobs that the lease brought.")
    back = {"state": JobState.QUEUED, "lease_token": None, "lease_expires_at": None, "leased_by": None}
    suspected = and_(_owned(token), JobRow.id.in_(suspects))
    spent = and_(suspected, JobRow.attempts >= max_attempts)
    session.execute(update(JobRow).where(spent).values(state=JobState.FAILED, lease_token=None, error=device_fault))
    session.execute(update(JobRow).where(suspected).values(error=device_fault, **back))
    session.execute(update(JobRow).where(_owned(token)).values(attempts=JobRow.attempts - 1, **back))
    return serial


def expire_leases_of(session: Session, serial: str, *, now: datetime) -> None:
    """An agent that starts anew has forgotten its leases; their deadlines need not be waited for."""
    held = and_(JobRow.leased_by == serial, JobRow.state == JobState.LEASED, JobRow.lease_expires_at > now)
    session.execute(update(JobRow).where(held).values(lease_expires_at=now))


def withdraw(session: Session, client: str, *, subject_ids: Sequence[str] | None) -> int:
    """A client wants these subjects (or any) no more; returns how many queued jobs are cancelled for it."""
    mine = select(WantRow.job_id).where(WantRow.client == client)
    if subject_ids is not None:
        mine = mine.join(JobRow, JobRow.id == WantRow.job_id).where(JobRow.subject_id.in_(subject_ids))
    job_ids = list(session.scalars(mine))
    if not job_ids:
        return 0
    session.execute(delete(WantRow).where(WantRow.client == client, WantRow.job_id.in_(job_ids)))
    unwanted = and_(
        JobRow.id.in_(job_ids),
        JobRow.state == JobState.QUEUED,
        ~exists().where(WantRow.job_id == JobRow.id),
    )
    return _rows_changed(session, update(JobRow).where(unwanted).values(state=JobState.CANCELLED))


def fail_unconvertible(session: Session, subject_id: str, *, precision: str, error: str) -> None:
    """No device will ever get this subject: fail the jobs that wait for its model."""
    session.execute(
        update(JobRow)
        .where(JobRow.subject_id == subject_id, JobRow.precision == precision, JobRow.state == JobState.QUEUED)
        .values(state=JobState.FAILED, error=error)
    )


def _holder(session: Session, token: str) -> str:
    """Serial of the device that holds a lease. Raises StaleLease where nothing is left of it."""
    serial = session.scalar(select(JobRow.leased_by).where(_owned(token)).limit(1))
    if serial is None:
        raise StaleLease(
            "This lease has ended: its jobs are finished, or belong to another device now. Ask for a new one."
        )
    return serial


def _eligible(job: type[JobRow], device: DeviceRow, now: datetime) -> ColumnElement[bool]:
    return and_(
        job.device_model == device.model,
        job.protocol_id == device.protocol_id,
        or_(job.state == JobState.QUEUED, _expired(job, now)),
        exists().where(
            ModelRow.subject_id == job.subject_id,
            ModelRow.precision == job.precision,
            ModelRow.state == ModelState.READY,
        ),
    )


def _expired(job: type[JobRow], now: datetime) -> ColumnElement[bool]:
    return and_(job.state == JobState.LEASED, job.lease_expires_at <= now)


def _owned(token: str) -> ColumnElement[bool]:
    return and_(JobRow.lease_token == token, JobRow.state == JobState.LEASED)


def _rows_changed(session: Session, statement: object) -> int:
    result = session.execute(statement)  # type: ignore[call-overload]
    assert isinstance(result, CursorResult)
    return result.rowcount
