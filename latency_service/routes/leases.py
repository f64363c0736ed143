"""The agent's side: lease a batch, renew it, report what was measured, give the rest back."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from sqlalchemy.orm import Session

from latency_contract.jobs import DeviceCheck, Lease, LeaseRelease, LeaseReport, LeaseRequest, LeaseState, Reported
from latency_service import devices, drift, latencies, queue
from latency_service.logs import note, short
from latency_service.models import DeviceRow
from latency_service.routes.access import GuardedRoute
from latency_service.routes.dependencies import Parts, Service, Writing, json_of, refusals

router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["agents"])

Token = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"])]

REPORT_EXAMPLE = {
    "outcomes": [
        {"outcome": "failed", "job_id": 7, "error": "The runner was ended by signal 11 on this model, twice."},
    ]
}


@router.post(
    "/leases",
    response_model=Lease | DeviceCheck,
    responses=refusals(404) | {204: {"description": "no work; come back after `Retry-After` seconds"}},
)
def lease_jobs(
    request: Annotated[LeaseRequest, Body(examples=[{"serial": "89AX0KCQ1", "max_jobs": 16}])],
    service: Service,
) -> Response:
    """The most urgent jobs for a unit; where it is in quarantine and a check is due, what is to be measured for it."""
    settings, now, lease = service.settings, service.clock(), None
    note(serial=request.serial)
    with service.database.reading() as session:
        device = devices.known(session, request.serial)
        check = drift.check_due(session, device, now=now)
        idle = latencies.nothing_to_lease(session, device, now=now)
        seen_s_ago = (now - device.last_seen_at).total_seconds()
        wait_s = _wait_s(session, device, service, now) if idle else 0
    if not idle:
        with service.database.writing() as session:
            lease = latencies.lease(session, device, max_jobs=request.max_jobs, settings=settings, now=now)
            wait_s = _wait_s(session, device, service, now) if lease is None else 0
    elif seen_s_ago > settings.seen_s:
        with service.database.writing() as session:
            devices.note_seen(session, request.serial, now=now)
    if check is not None:
        return json_of(check)
    if lease is None:
        return Response(status_code=204, headers={"Retry-After": str(wait_s)})
    note(lease=short(lease.token), jobs=[job.job_id for job in lease.jobs])
    return json_of(lease)


def _wait_s(session: Session, device: DeviceRow, service: Parts, now: datetime) -> int:
    """After how long an agent that was given nothing asks again."""
    idle_s = devices.idle_wait_s(session, settings=service.settings, random=service.random, now=now)
    return max(idle_s, devices.rest_s(device, settings=service.settings, now=now))


@router.post("/leases/{token}/renew", responses=refusals(409))
def renew_lease(token: Token, session: Writing, service: Service) -> LeaseState:
    """Move the deadline."""
    now = service.clock()
    renewal = queue.renew(session, token, lease_s=service.settings.lease_s, now=now)
    note(serial=renewal.serial)
    devices.known(session, renewal.serial).last_seen_at = now
    return LeaseState(expires_at=renewal.expires_at, remaining=renewal.remaining)


@router.post("/leases/{token}/report", responses=refusals(404, 409))
def report_outcomes(
    token: Token,
    report: Annotated[LeaseReport, Body(examples=[REPORT_EXAMPLE])],
    service: Service,
) -> Reported:
    """Measurements and failures of some or all jobs of a lease: all are stored, or none. Says how many are left."""
    note(jobs=[outcome.job_id for outcome in report.outcomes])
    with service.database.writing() as session:  # not as a dependency, which is two more changes of thread
        remaining = latencies.accept(session, token, report, settings=service.settings, now=service.clock())
    return Reported(remaining=remaining)


@router.post("/leases/{token}/release", status_code=204, responses=refusals(409))
def release_lease(
    token: Token,
    release: Annotated[LeaseRelease, Body(examples=[{"device_fault": "the phone rebooted", "suspects": [7]}])],
    session: Writing,
    service: Service,
) -> None:
    """Give the rest of a lease back; after a fault of the device, it rests for a while.

    Only the jobs named as suspects count the lease as an attempt.
    """
    fault, settings = release.device_fault, service.settings
    now = service.clock()
    serial = queue.release(
        session, token, device_fault=fault, suspects=release.suspects, max_attempts=settings.max_attempts, now=now
    )
    note(serial=serial)
    if fault is not None:
        device = devices.known(session, serial, lock=True)
        devices.open_breaker(device, fault=fault, settings=settings, random=service.random, now=now)
