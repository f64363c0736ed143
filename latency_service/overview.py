"""How the service fares, as its database says: the figures of `/metrics` and `padnas-service status`.

Five queries whatever there is, over what is active, failed or a device; never over all jobs or measurements.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from latency_contract.jobs import JobState
from latency_contract.tables import Purpose
from latency_service import devices, queue
from latency_service.models import ACTIVE_STATES, EVER_EXPIRED, FAILED_STATE, DeviceRow, JobRow, ModelRow, ModelState

PURPOSES = {priority: purpose for purpose, priority in queue.PRIORITIES.items()}


class Backlog(NamedTuple):
    """Jobs in one state, for one device model, that one purpose has asked for."""

    device_model: str
    state: JobState  # queued or leased
    purpose: Purpose
    jobs: int
    oldest_at: datetime


class Overview(NamedTuple):
    backlog: tuple[Backlog, ...]
    devices: Sequence[DeviceRow]  # the one seen last first
    conversions: dict[ModelState, int]  # subjects by the state of their model
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


def overview(session: Session) -> Overview:
    # The conditions are literal, as in the partial indexes that they are answered from.
    active = session.execute(
        select(JobRow.device_model, JobRow.state, JobRow.priority, func.count(), func.min(JobRow.created_at))
        .where(text(ACTIVE_STATES))
        .group_by(JobRow.device_model, JobRow.state, JobRow.priority)
        .order_by(JobRow.device_model, JobRow.state.desc(), JobRow.priority)
    )
    conversions = session.execute(select(ModelRow.state, func.count()).group_by(ModelRow.state))
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
        dict.fromkeys(ModelState, 0) | {ModelState(state): count for state, count in conversions},
        {model: int(count) for model, count in failed},
        {model: int(count) for model, count in expiries},
    )
