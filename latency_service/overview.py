"""How the service fares, as its database says: the figures of `/metrics` and `padnas-service status`.

Five queries whatever there is, over what waits, is active, failed or a device; never over all jobs, models or
measurements.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, case, func, select, text
from sqlalchemy.orm import Session

from latency_contract.jobs import JobState
from latency_contract.tables import Purpose
from latency_service import devices, queue
from latency_service.models import (
    ACTIVE_STATES,
    EVER_EXPIRED,
    FAILED_STATE,
    DeviceRow,
    JobRow,
    ModelRow,
    ModelState,
    SubjectRow,
)

UNCONVERTED = (ModelState.PENDING, ModelState.CONVERTING, ModelState.FAILED)
PURPOSES = {priority: purpose for purpose, priority in queue.PRIORITIES.items()}


class Backlog(NamedTuple):
    """Jobs in one state, for one device model, that one purpose has asked for."""

    device_model: str
    state: JobState  # queued or leased; queued too where the lease's deadline has passed
    purpose: Purpose
    jobs: int
    oldest_at: datetime


class Overview(NamedTuple):
    backlog: tuple[Backlog, ...]
    devices: Sequence[DeviceRow]  # the one seen last first
    conversions: dict[ModelState, int]  # subjects without a model by its state: UNCONVERTED
    pending_since: datetime | None  # the conversion that has waited longest
    failed: dict[str, int]  # jobs that ended without a measurement, by device model
    expiries: dict[str, int]  # leases whose deadline passed, by device model

    @property
    def oldest_queued_at(self) -> dict[str, datetime]:
        """By device model."""
        oldest: dict[str, datetime] = {}
        for b in self.backlog:
            if b.state == JobState.QUEUED:
                oldest[b.device_model] = min(b.oldest_at, oldest.get(b.device_model, b.oldest_at))
        return oldest


class Leased(NamedTuple):
    """What one unit has leased."""

    serial: str
    device_model: str
    jobs: int
    key: str  # of the oldest of them
    until: datetime  # end of the lease, unless it is renewed


def leased(session: Session, *, limit: int, now: datetime) -> list[Leased]:
    """Units that measure now, whoever has had the oldest job first. One query."""
    held = (
        select(
            JobRow.leased_by,
            func.count().label("jobs"),
            func.min(JobRow.id).label("first"),
            func.max(JobRow.lease_expires_at).label("until"),
        )
        .where(text(ACTIVE_STATES), JobRow.state == JobState.LEASED, JobRow.lease_expires_at > now)
        .group_by(JobRow.leased_by)
        .order_by(func.min(JobRow.id))
        .limit(limit)
    ).subquery()
    rows = session.execute(
        select(held.c.leased_by, JobRow.device_model, held.c.jobs, SubjectRow.key, held.c.until)
        .join(JobRow, JobRow.id == held.c.first)
        .join(SubjectRow, SubjectRow.id == JobRow.subject_id)
        .order_by(held.c.first)
    )
    return [Leased(*row) for row in rows]


def overview(session: Session, *, now: datetime) -> Overview:
    # The conditions are literal, as in the partial indexes that they are answered from.
    expired = and_(JobRow.state == JobState.LEASED, JobRow.lease_expires_at <= now)
    state = case((expired, JobState.QUEUED), else_=JobRow.state).label("state")
    job = select(JobRow.device_model, state, JobRow.priority, JobRow.created_at).where(text(ACTIVE_STATES)).subquery().c
    active = session.execute(
        select(job.device_model, job.state, job.priority, func.count(), func.min(job.created_at))
        .group_by(job.device_model, job.state, job.priority)
        .order_by(job.device_model, job.state.desc(), job.priority)
    )
    let_go = and_(ModelRow.state == ModelState.CONVERTING, ModelRow.claimed_until < now)  # by a converter that is gone
    model_state = case((let_go, ModelState.PENDING), else_=ModelRow.state).label("state")
    model = select(model_state, ModelRow.requested_at).where(ModelRow.state.in_(UNCONVERTED)).subquery().c
    conversions = session.execute(
        select(model.state, func.count(), func.min(model.requested_at)).group_by(model.state)
    ).all()
    pending_since = {state: since for state, _, since in conversions}
    failed = session.execute(
        select(JobRow.device_model, func.count()).where(text(FAILED_STATE)).group_by(JobRow.device_model)
    )
    expiries = session.execute(
        select(JobRow.device_model, func.sum(JobRow.expiries)).where(text(EVER_EXPIRED)).group_by(JobRow.device_model)
    )
    return Overview(
        tuple(
            Backlog(model, JobState(state), PURPOSES[priority], jobs, oldest)
            for model, state, priority, jobs, oldest in active
        ),
        devices.everyone(session),
        dict.fromkeys(UNCONVERTED, 0) | {ModelState(state): count for state, count, _ in conversions},
        pending_since.get(ModelState.PENDING),
        {model: int(count) for model, count in failed},
        {model: int(count) for model, count in expiries},
    )
