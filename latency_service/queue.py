"""The queue of profiling jobs, and the only code that writes a job's state.

    queued ──lease──▶ leased ──complete──▶ done
      ▲                 │ ╰────fail──────▶ failed
      │                 ▼
      ╰── release, or the deadline passes
    queued ──nobody wants it──▶ cancelled     also when a lease is given back

Leases are fenced: every job carries the token of the lease that owns it, and whoever writes must know that token.
An expired lease needs no sweeper: the claim itself takes jobs whose deadline has passed.

Many services may do all of this at once on PostgreSQL. A claim passes over what others have locked; everybody else
locks jobs in the order of their ids, after subjects and models and before devices (docs/decisions/0015).
"""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CursorResult,
    Integer,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.dml import ReturningUpdate

from latency_contract.jobs import JobState
from latency_contract.protocols import Protocol
from latency_contract.tables import Purpose
from latency_service.errors import QueueFull, StaleLease
from latency_service.models import (
    ACTIVE_STATES,
    DeviceRow,
    JobRow,
    ModelRow,
    ModelState,
    SubjectRow,
    UtcDateTime,
    WantRow,
)
from latency_service.subjects import insert_if_absent, lock_subjects

# Without the session's bookkeeping, which costs more than a job.
JOBS = JobRow.metadata.tables[JobRow.__tablename__]
MODELS = ModelRow.metadata.tables[ModelRow.__tablename__]
SUBJECTS = SubjectRow.metadata.tables[SubjectRow.__tablename__]
# As the indices of active jobs have it: PostgreSQL plans some statements before it knows their values.
ACTIVE: tuple[ColumnElement[str], ...] = (literal_column("'queued'"), literal_column("'leased'"))
THESE: BindParameter[Sequence[int]] = bindparam("these", expanding=True)
MOMENT = bindparam("moment", type_=UtcDateTime())
# What a running search waits for comes first, then table builds, oldest first; what is known already comes last.
PRIORITIES = {Purpose.SEARCH: 0, Purpose.TABLE: 1, Purpose.REFINEMENT: 2}


class ClaimedJob(NamedTuple):
    job_id: int
    subject_id: str
    attempt: int
    layers: int


class Claim(NamedTuple):
    """A new lease."""

    token: str
    expires_at: datetime
    jobs: list[ClaimedJob]


class OwnedJob(NamedTuple):
    """A leased job whose result is taken in."""

    id: int
    subject_id: str
    device_model: str
    protocol_id: str
    leased_by: str
    model_sha256: str | None  # None where the model was not kept


class Renewal(NamedTuple):
    expires_at: datetime
    remaining: int  # jobs of the lease without an outcome
    serial: str  # of the device that holds it


def request(
    session: Session,
    subject_ids: Sequence[str],
    *,
    device_model: str,
    protocol: Protocol,
    client: str,
    owner: str = "",
    purpose: Purpose,
    layers: Mapping[str, int] | None = None,
    now: datetime,
) -> None:
    """Queue one job for each subject that has no active one, and note that `client` wants them all.

    `owner` is the name of the client's token: two clients of one name are two where their tokens are. `layers` counts,
    by subject, where it is used.

    The subjects are locked (`store_subjects`), so that none of them is measured or given up meanwhile.
    """
    if not subject_ids:
        return
    priority = PRIORITIES[purpose]
    new_jobs = (
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
                    "layers": (layers or {}).get(subject_id, 1),
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
    for _ in range(2):  # a lease that is given back just now may take jobs along that nobody had wanted any more
        session.execute(new_jobs)
        job_ids = _lock(session, active)
        if len(job_ids) == len(set(subject_ids)):
            break
    session.execute(
        update(JobRow).where(JobRow.id.in_(job_ids), JobRow.priority > priority).values(priority=priority),
        execution_options={"synchronize_session": False},
    )
    wants = [{"job_id": job_id, "owner": owner, "client": client} for job_id in job_ids]
    if not wants:  # all were finished by a device or given up since the insertion
        return
    session.execute(insert_if_absent(session, WantRow).values(wants).on_conflict_do_nothing())


def claim(
    session: Session, device: DeviceRow, *, max_jobs: int, lease_s: float, max_attempts: int, now: datetime
) -> Claim | None:
    """Give the most urgent eligible jobs to a device; None when there is no work.

    Eligible: the model is converted, and the job is queued, or leased with a deadline that has passed. A job with a
    spent attempt (its deadline passed, or it is suspected of a device's fault) is leased alone, so that one which
    brings devices down costs its neighbours nothing more; those with the fewest attempts come first.
    """
    token, expires_at = secrets.token_hex(16), now + timedelta(seconds=lease_s)
    asked = {"model": device.model, "protocol": device.protocol_id, "moment": now, "most_attempts": max_attempts}
    reason = f"given up after {max_attempts} leases that ended without a result: the agent died or hung"
    session.execute(_giving_up(), asked | {"reason": reason})
    claimed = session.execute(
        _claim(), asked | {"most_jobs": max_jobs, "token": token, "deadline": expires_at, "holder": device.serial}
    ).all()
    if not claimed:
        return None
    in_order = sorted(claimed, key=lambda row: (row.priority, row.id))
    return Claim(token, expires_at, [ClaimedJob(row.id, row.subject_id, row.attempts, row.layers) for row in in_order])


def work_for(session: Session, device: DeviceRow, *, now: datetime) -> bool:
    """Whether `claim` would find something for a device. Reads alone."""
    asked = {"model": device.model, "protocol": device.protocol_id, "moment": now}
    return bool(session.scalar(_work(), asked))


def renew(session: Session, token: str, *, lease_s: float, now: datetime) -> Renewal:
    """Move the deadline of a lease.

    Raises:
        StaleLease: the deadline had passed and another device has the jobs, or nothing is left of the lease.
    """
    expires_at = now + timedelta(seconds=lease_s)
    job_ids, serial = _held(session, token)
    session.execute(
        update(JobRow).where(JobRow.id.in_(job_ids)).values(lease_expires_at=expires_at),
        execution_options={"synchronize_session": False},
    )
    return Renewal(expires_at, len(job_ids), serial)


def owned_jobs(session: Session, token: str, job_ids: Iterable[int]) -> dict[int, OwnedJob]:
    """Of these jobs, those that the lease owns and has not finished yet; locked, and their subjects with them.

    What was cancelled after its deadline, since nobody wanted it any more, is finished too.

    Raises:
        StaleLease: one of them is neither owned nor already finished by this very lease.
    """
    asked = sorted(set(job_ids))
    # Whoever queues what is missing holds the subjects: it sees the measurement that is stored now, or the job that is.
    session.execute(_locking_subjects(), {"these": asked})
    # All of the lease, in one order: what is left of it may be given back in the same transaction.
    rows = {row.id: row for row in session.execute(_locking_jobs(), {"token": token})}
    for job_id in asked:
        if job_id not in rows:
            raise StaleLease(
                f"Job {job_id} is not, or no longer, part of this lease; its result is refused. Ask for a new lease."
            )
    return {job_id: OwnedJob(*rows[job_id][:-1]) for job_id in asked if rows[job_id].state == JobState.LEASED}


def complete(session: Session, job_ids: Collection[int]) -> None:
    session.execute(_completing(), {"these": list(job_ids)})


def fail(session: Session, job_id: int, *, error: str, now: datetime) -> None:
    """The subject's own fault: trying again would not help."""
    failed = {"state": JobState.FAILED, "error": error, "failed_at": now}
    session.execute(update(JOBS).where(JOBS.c.id == job_id).values(**failed))


def remaining(session: Session, token: str) -> int:
    return session.execute(_counting(), {"token": token}).scalar_one()


def release(
    session: Session,
    token: str,
    *,
    device_fault: str | None,
    suspects: Collection[int],
    max_attempts: int,
    now: datetime,
) -> str:
    """Return what is left of a lease to the queue; returns the serial of the device that had it.

    A job that is given back does not count the lease as an attempt, whatever the fault: a cable may be pulled as often
    as it likes. Only `suspects`, which ran when the device went down, do, so that a subject which brings devices down
    is given up in the end, with the fault as its error. What nobody wants any more is cancelled.

    Raises:
        StaleLease: nothing is left of this lease, or a suspect is not part of it. Nothing is returned then.
    """
    job_ids, serial = _held(session, token)
    mine = set(session.scalars(select(JobRow.id).where(JobRow.lease_token == token)))  # finished ones too
    for job_id in suspects:
        if job_id not in mine:
            raise StaleLease(f"Job {job_id} is not part of this lease. Suspect only jobs that the lease brought.")
    back = {"state": JobState.QUEUED, "lease_token": None, "lease_expires_at": None, "leased_by": None}
    suspected = and_(_owned(token), JobRow.id.in_(suspects))
    spent = and_(suspected, JobRow.attempts >= max_attempts)
    failed = {"state": JobState.FAILED, "lease_token": None, "error": device_fault, "failed_at": now}
    session.execute(update(JobRow).where(spent).values(**failed))
    session.execute(update(JobRow).where(suspected).values(error=device_fault, **back))
    session.execute(update(JobRow).where(_owned(token)).values(attempts=JobRow.attempts - 1, **back))
    _cancel_unwanted(session, job_ids, now=now)
    return serial


def expire_leases_of(session: Session, serial: str, *, now: datetime) -> None:
    """An agent that starts anew has forgotten its leases; their deadlines need not be waited for."""
    held = _lock(
        session, and_(JobRow.leased_by == serial, JobRow.state == JobState.LEASED, JobRow.lease_expires_at > now)
    )
    if held:
        session.execute(update(JobRow).where(JobRow.id.in_(held)).values(lease_expires_at=now))


def refuse_above(session: Session, client: str, *, owner: str, max_waiting: int) -> None:
    """To be asked after queueing. A token's clients are counted as one, whatever they call themselves.

    Those who ask at the same moment do not see each other, and may get beyond the limit by what they ask for.

    Raises:
        QueueFull: it waits for more jobs than that.
    """
    mine = WantRow.owner == owner if owner else and_(WantRow.owner == "", WantRow.client == client)
    waiting = select(func.count()).where(
        text(f"jobs.{ACTIVE_STATES}"),  # as the index of active jobs has it; jobs that have ended are never looked at
        exists().where(WantRow.job_id == JobRow.id, mine),
    )
    if (session.scalar(waiting.select_from(JobRow)) or 0) > max_waiting:
        who = f"The token '{owner}'" if owner else f"The client '{client}'"
        raise QueueFull(
            f"{who} may wait for {max_waiting:,} measurements at a time, and this would be more. Nothing was queued;"
            " ask again when some are measured, or release what you need no more (POST /v1/latencies/release)."
        )


def withdraw(
    session: Session, client: str, *, owner: str = "", subject_ids: Sequence[str] | None, now: datetime
) -> int:
    """A client wants these subjects (or any) no more; returns how many queued jobs are cancelled for it.

    What a device is at goes on, and its result is kept; if it is given back, it is cancelled then.

    `owner` is the name of its token: what clients of other tokens want stays wanted, whatever they call themselves.
    """
    of_client = and_(WantRow.owner == owner, WantRow.client == client)
    mine = select(JobRow.id).join(WantRow, WantRow.job_id == JobRow.id).where(of_client)
    if subject_ids is not None:
        mine = mine.where(JobRow.subject_id.in_(subject_ids))
    # Of all that it has ever wanted, only what has not ended can be cancelled, and needs to be locked.
    job_ids = list(session.scalars(mine.where(JobRow.state.in_(ACTIVE))))
    if job_ids:
        # Whoever is about to want one of these jobs too has locked its subject, and is waited for, or waits.
        lock_subjects(session, session.scalars(select(JobRow.subject_id).where(JobRow.id.in_(job_ids))))
        _lock(session, JobRow.id.in_(job_ids))
    session.execute(delete(WantRow).where(of_client, WantRow.job_id.in_(mine)))
    return _cancel_unwanted(session, job_ids, now=now) if job_ids else 0


def fail_unconvertible(session: Session, subject_id: str, *, precision: str, error: str, now: datetime) -> None:
    """No device will ever get this subject: fail the jobs that wait for its model."""
    waiting = and_(JobRow.subject_id == subject_id, JobRow.precision == precision, JobRow.state == JobState.QUEUED)
    failed = {"state": JobState.FAILED, "error": error, "failed_at": now}
    session.execute(update(JobRow).where(JobRow.id.in_(_lock(session, waiting))).values(**failed))


def _cancel_unwanted(session: Session, job_ids: Collection[int], *, now: datetime) -> int:
    """Of these jobs, which are locked, those that no device is at and nobody wants. Returns how many there were."""
    unwanted = and_(
        JobRow.id.in_(job_ids),
        or_(JobRow.state == JobState.QUEUED, and_(JobRow.state == JobState.LEASED, JobRow.lease_expires_at <= now)),
        ~exists().where(WantRow.job_id == JobRow.id),
    )
    return _rows_changed(session, update(JobRow).where(unwanted).values(state=JobState.CANCELLED))


def _held(session: Session, token: str) -> tuple[list[int], str]:
    """Jobs of a lease without an outcome, locked, and the serial of the device that holds them. Raises StaleLease."""
    job_ids = _lock(session, _owned(token))
    if not job_ids:
        raise StaleLease(
            "This lease has ended: its jobs are finished, or belong to another device now. Ask for a new one."
        )
    serial = session.scalar(select(JobRow.leased_by).where(JobRow.id == job_ids[0]))
    assert serial is not None, "a leased job has a holder"
    return job_ids, serial


def _lock(session: Session, jobs: ColumnElement[bool]) -> list[int]:
    """Lock jobs in the order of their ids: two who lock in one order never wait for each other in a circle.

    Not against foreign keys that refer to them, which no write here changes (`key_share`).
    """
    return list(session.scalars(select(JobRow.id).where(jobs).order_by(JobRow.id).with_for_update(key_share=True)))


# What every poll, lease and report asks is made once: building it anew took longer than PostgreSQL takes to answer it.


@cache
def _work() -> Select[tuple[bool]]:
    return select(exists().where(_eligible(JobRow)))


@cache
def _giving_up() -> Update:
    spent = aliased(JobRow)
    given_up = (
        select(spent.id)
        .where(of_table(spent), spent.state.in_(ACTIVE), _expired(spent), spent.attempts >= bindparam("most_attempts"))
        .with_for_update(key_share=True, skip_locked=True)
    ).cte("given_up")
    return (
        update(JOBS)
        .where(JOBS.c.id.in_(select(given_up.c.id)))
        .values(
            state=JobState.FAILED,
            lease_token=None,
            error=func.coalesce(JOBS.c.error, bindparam("reason", type_=Text)),
            failed_at=MOMENT,
            expiries=JOBS.c.expiries + 1,
        )
    )


@cache
def _claim() -> ReturningUpdate[Any]:
    # Parts of one statement, so that each is evaluated once: a subquery with a limit may be evaluated once a row, and
    # lock others each time. The first job is locked too; a rival's first, merely seen, would leave nothing to be had.
    candidate, other = aliased(JobRow), aliased(JobRow)
    first = (
        select(other.id, other.attempts)
        .where(_eligible(other))
        .order_by(other.priority, other.attempts, other.id)
        .limit(1)
        .with_for_update(of=other, key_share=True, skip_locked=True)  # ignored by SQLite, whose writers take turns
    ).cte("first")
    most = select(case((first.c.attempts == 0, bindparam("most_jobs", type_=Integer)), else_=1)).scalar_subquery()
    batch = (
        select(candidate.id)
        .where(_eligible(candidate), candidate.attempts <= select(first.c.attempts).scalar_subquery())
        .order_by(candidate.priority, candidate.attempts, candidate.id)
        .limit(func.coalesce(most, 0))
        .with_for_update(of=candidate, key_share=True, skip_locked=True)
    ).cte("batch")
    return (
        update(JOBS)
        .where(JOBS.c.id.in_(select(batch.c.id)))
        .values(
            state=JobState.LEASED,
            lease_token=bindparam("token"),
            lease_expires_at=bindparam("deadline"),
            leased_by=bindparam("holder"),
            attempts=JOBS.c.attempts + 1,
            expiries=JOBS.c.expiries + case((JOBS.c.state == JobState.LEASED, 1), else_=0),
        )
        .returning(JOBS.c.id, JOBS.c.subject_id, JOBS.c.attempts, JOBS.c.layers, JOBS.c.priority)
    )


@cache
def _locking_subjects() -> Select[str]:
    of_jobs = select(SUBJECTS.c.id).join(JOBS, JOBS.c.subject_id == SUBJECTS.c.id).where(JOBS.c.id.in_(THESE))
    return of_jobs.order_by(SUBJECTS.c.id).with_for_update(of=SUBJECTS, read=True)


@cache
def _locking_jobs() -> Select[*tuple[Any, ...]]:
    model = and_(MODELS.c.subject_id == JOBS.c.subject_id, MODELS.c.precision == JOBS.c.precision)
    columns = [JOBS.c[name] for name in OwnedJob._fields[:-1]]
    return (
        select(*columns, MODELS.c.sha256, JOBS.c.state)
        .outerjoin(MODELS, model)
        .where(JOBS.c.lease_token == bindparam("token"))
        .order_by(JOBS.c.id)
        .with_for_update(of=JOBS, key_share=True)
    )


@cache
def _completing() -> Update:
    return update(JOBS).where(JOBS.c.id.in_(THESE)).values(state=JobState.DONE)


@cache
def _counting() -> Select[int]:
    of_lease = and_(JOBS.c.lease_token == bindparam("token"), JOBS.c.state == JobState.LEASED)
    return select(func.count()).select_from(JOBS).where(of_lease)


def of_table(job: Any) -> ColumnElement[bool]:
    """Rows of the parameters `model` and `protocol`, of a class or columns of jobs or measurements."""
    return and_(job.device_model == bindparam("model"), job.protocol_id == bindparam("protocol"))


def _eligible(job: type[JobRow]) -> ColumnElement[bool]:
    return and_(
        of_table(job),
        job.state.in_(ACTIVE),
        or_(job.state == JobState.QUEUED, _expired(job)),
        exists().where(
            ModelRow.subject_id == job.subject_id,
            ModelRow.precision == job.precision,
            ModelRow.state == ModelState.READY,
        ),
    )


def _expired(job: type[JobRow]) -> ColumnElement[bool]:
    return and_(job.state == JobState.LEASED, job.lease_expires_at <= MOMENT)


def _owned(token: str) -> ColumnElement[bool]:
    return and_(JobRow.lease_token == token, JobRow.state == JobState.LEASED)


def _rows_changed(session: Session, statement: object) -> int:
    result = session.execute(statement)  # type: ignore[call-overload]
    assert isinstance(result, CursorResult)
    return result.rowcount
