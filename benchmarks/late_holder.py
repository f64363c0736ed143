"""A holder of leases that always comes too late: it leases jobs, starts anew, and reports once others have them.

What it reports is right in everything but the lease, so a service that accepted it would have been fooled.
"""

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from latency_contract.canonical import Contract
from latency_contract.connection import ServiceConnection, ServiceRefused, ServiceUnreachable
from latency_contract.devices import Device, DeviceReport
from latency_contract.estimators import UNKNOWN
from latency_contract.jobs import Lease, LeasedJob, LeaseRelease, LeaseReport, LeaseRequest, Measured
from latency_contract.measurements import DeviceState, Measurement, Provenance, Round
from latency_service.database import Database
from latency_service.models import JobRow

SERIAL = "late-holder"
LEASES, JOBS = 15, 2  # at most, and jobs of each: a lease that runs out costs its jobs one of five attempts
PAUSE_S = 1.0  # between two leases
POLL_S = 0.2
LAST_REPORTS_S = 60.0  # to get through to a service that was just killed


class LateHolder:
    """`refused` and `accepted` count requests with a token whose jobs others have."""

    def __init__(self, url: str, database: Database, *, like: DeviceReport) -> None:
        """`like`: a unit of the model whose jobs are to be had."""
        self.refused = 0
        self.accepted = 0
        self._connection = ServiceConnection(url)
        self._database = database
        self._report = DeviceReport.model_validate(like.model_dump(include=set(DeviceReport.model_fields)))
        self._report = self._report.model_copy(update={"serial": SERIAL})
        self._held: list[Lease] = []

    def run(self, over: threading.Event) -> None:
        """Until `over`; what it holds then is reported as soon as others have had it."""
        left = LEASES
        while not over.wait(PAUSE_S) and left:
            with suppress(ServiceUnreachable):
                left -= self._lease_and_forget()
            self._report_late()
        deadline = time.monotonic() + LAST_REPORTS_S
        while self._held and time.monotonic() < deadline:
            self._report_late()
            time.sleep(POLL_S)

    def in_time(self) -> int:
        """The status of a report under a lease that it does hold, without which refusals would prove nothing."""
        self._start_anew()
        deadline = time.monotonic() + LAST_REPORTS_S
        while (lease := self._lease()) is None:
            assert time.monotonic() < deadline, "there is no job to be had: is what converts away?"
            time.sleep(POLL_S)
        path = f"/v1/leases/{lease.token}/report"
        return self._connection.request("POST", path, body=self._measured(lease, lease.jobs[0])).status_code

    def close(self) -> None:
        self._connection.close()

    def _lease_and_forget(self) -> bool:
        """Whether there was one to be had."""
        self._start_anew()
        lease = self._lease()
        if lease is None:
            return False
        if max(job.attempt for job in lease.jobs) > 1:  # others have let it run out before
            with suppress(ServiceRefused):
                self._connection.request("POST", f"/v1/leases/{lease.token}/release", body=LeaseRelease())
            return False
        self._held.append(lease)
        self._start_anew()
        return True

    def _start_anew(self) -> None:
        """Whoever does has forgotten its leases: the service lets them run out."""
        self._connection.ask("PUT", f"/v1/devices/{SERIAL}", Device, body=self._report)

    def _lease(self) -> Lease | None:
        response = self._connection.request("POST", "/v1/leases", body=LeaseRequest(serial=SERIAL, max_jobs=JOBS))
        return None if response.status_code == 204 else Lease.model_validate_json(response.content)

    def _report_late(self) -> None:
        for lease in list(self._held):
            with suppress(SQLAlchemyError, ServiceUnreachable):  # killed; next time
                if self._others_have(lease):
                    self._claim_anyway(lease)
                    self._held.remove(lease)

    def _others_have(self, lease: Lease) -> bool:
        """Once no job bears the token, none ever will again."""
        bearing_it = select(func.count()).select_from(JobRow).where(JobRow.lease_token == lease.token)
        with self._database.reading() as session:
            return session.scalar(bearing_it) == 0

    def _claim_anyway(self, lease: Lease) -> None:
        requests: list[tuple[str, Contract | None]] = [("renew", None), ("release", LeaseRelease())]
        requests += [("report", self._measured(lease, job)) for job in lease.jobs]
        for verb, body in requests:
            try:
                self._connection.request("POST", f"/v1/leases/{lease.token}/{verb}", body=body)
                self.accepted += 1
            except ServiceRefused as refusal:
                if refusal.error != "StaleLease":
                    raise
                self.refused += 1

    def _measured(self, lease: Lease, job: LeasedJob) -> LeaseReport:
        now = datetime.now(UTC)
        rounds = tuple(
            Round(started_at=now, samples_ms=(1.0 + n / 1000,), reference_before_ms=1.0, reference_after_ms=1.0)
            for n in range(6)
        )
        provenance = Provenance(
            device_serial=SERIAL, os_build="none", soc="none", model_sha256=job.model_sha256, runner="late holder",
            runner_sha256="0" * 64, core_mask="1", before=DeviceState(), after=DeviceState(),
            unreadable=DeviceState().unreadable, started_at=now, finished_at=now,
        )  # fmt: skip
        made = Measurement.from_rounds(
            rounds,
            subject_id=job.subject.id,
            stopping=lease.protocol.stopping,
            provenance=provenance,
            pooled=UNKNOWN,
            quiet_reference_ms=1.0,
        )
        return LeaseReport(outcomes=(Measured(job_id=job.job_id, measurement=made),))
