"""The agent's loop: lease, fetch, measure, report; and what is done about each kind of fault."""

import contextlib
import hashlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol as Interface
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from device_agents.drift import Brackets, QuietReadings
from device_agents.errors import AgentOutdated, DeviceChanged, DeviceFault, LeaseLost, Stopped, SuspectedFault
from device_agents.heartbeats import Heartbeat
from device_agents.rounds import MeasuringDevice, Outcome, check_rounds, measure
from latency_contract.connection import (
    NotAllowed,
    NotThisService,
    ServiceConnection,
    ServiceError,
    ServiceRefused,
    ServiceUnreachable,
)
from latency_contract.devices import Device, DeviceFaultReport, DeviceReport
from latency_contract.jobs import (
    MAX_REASON,
    CheckReport,
    DeviceCheck,
    Lease,
    LeaseRelease,
    LeaseReport,
    LeaseRequest,
    Reported,
)
from latency_contract.protocols import Protocol, StoppingRule

log = logging.getLogger(__name__)

MOST_ROUNDS = 240  # of a subject whose measuring a budget ends, five times what a target allows

LEASE_OR_CHECK: TypeAdapter[Lease | DeviceCheck] = TypeAdapter(Lease | DeviceCheck)
LOOK_AFTER_S = 30.0  # a device without work is looked at so often, to say in time that it is gone
FETCHES = 3  # of a model that arrives damaged
REPORT_AGAIN_S = 2.0  # before a report is sent again that did not reach the service
IN_BETWEEN_S = 600.0  # for which something else may answer a report before it is given up
OTHER_VERSION = "This agent cannot read what the service gives it to do: they are not of one version. Update them."


class AgentDevice(MeasuringDevice, Interface):
    """A device that an agent can drive."""

    @property
    def report(self) -> DeviceReport: ...

    def check(self) -> None:
        """Raises DeviceFault where it cannot be reached or used."""
        ...


class Agent:
    def __init__(
        self,
        connection: ServiceConnection,
        device: AgentDevice,
        *,
        stop: threading.Event,
        max_jobs: int,
        budget_s: float | None = None,
    ) -> None:
        """`budget_s`: time to measure for each subject, in the place of the target of the device's protocol."""
        self._connection = connection
        self._budget_s = budget_s
        self._device = device
        self._stop = stop
        self._max_jobs = max_jobs
        self._looked_at = time.monotonic()
        self._brackets = Brackets()
        self._quiet = QuietReadings()

    def run(self) -> None:
        """Serve until told to stop. A service that is away is waited for.

        Raises:
            AgentOutdated: the service is of another version than this agent.
            DeviceChanged: the device is not the one that was reported.
            NotAllowed: the service does not accept the token, or no longer; asking again would not help.
            ServiceRefused: the service does not accept this device.
            NotThisService: something else answers at its address.
        """
        reported = False
        while not self._stop.is_set():
            try:
                if not reported:
                    self._report_device()
                    reported = True
                wait_s = self._serve_one_lease()
            except ServiceUnreachable as error:
                log.warning("%s Trying again.", error)
                reported, wait_s = False, 1.0
            except (ServiceRefused, NotThisService) as error:
                if not reported or isinstance(error, NotAllowed):
                    raise
                log.warning("%s Reporting the device again.", error)  # another database now, or a proxy in between
                reported, wait_s = False, 1.0
            self._stop.wait(wait_s)

    def _report_device(self) -> None:
        report = self._say_it_is_here()
        log.info("measuring on %s (%s) for %s", report.model, report.serial, self._connection.base_url)

    def _still_here(self) -> None:
        with contextlib.suppress(ServiceError):  # whatever it is, whoever asks next hears of it
            self._say_it_is_here()

    def _say_it_is_here(self) -> DeviceReport:
        report = self._device.report if self._budget_s is None else _with_budget(self._device.report, self._budget_s)
        self._connection.ask("PUT", f"/v1/devices/{report.serial}", Device, body=report)
        return report

    def _serve_one_lease(self) -> float:
        """Returns how many seconds to wait before asking again."""
        request = LeaseRequest(serial=self._device.identity.serial, max_jobs=self._max_jobs)
        response = self._connection.request("POST", "/v1/leases", body=request)
        if response.status_code == 204:
            self._look_after_device()
            return float(response.headers.get("Retry-After", 1))
        try:
            lease = LEASE_OR_CHECK.validate_json(response.content)
        except ValidationError as error:
            self._give_back_unread(response.content)
            raise NotThisService("What answered gave no lease that this agent can read.") from error
        if isinstance(lease, DeviceCheck):
            self._check_device(lease)
            return 0.0
        log.info("leased %d jobs", len(lease.jobs))
        with Heartbeat(self._connection, lease) as heartbeat:
            try:
                for outcomes in self._measure(lease, heartbeat):
                    self._report(lease, outcomes)
            except LeaseLost as error:
                log.warning("%s", error)
            except (Stopped, DeviceFault) as error:
                self._release(lease, error)
            except DeviceChanged as change:
                self._release(lease, DeviceFault(str(change)))
                raise
        self._looked_at = time.monotonic()
        return 0.0

    def _give_back_unread(self, content: bytes) -> None:
        """A service of another version may give leases or checks with more or less in them.

        Raises:
            AgentOutdated: it did; the jobs are unharmed.
        """
        try:
            document = json.loads(content)
        except ValueError:
            return
        if isinstance(document, dict):
            if "token" in document:
                path = f"/v1/leases/{quote(str(document['token']))}/release"
                with contextlib.suppress(ServiceError):
                    self._connection.request("POST", path, body=LeaseRelease(device_fault=OTHER_VERSION))
            raise AgentOutdated(OTHER_VERSION)

    def _look_after_device(self) -> None:
        """Nobody would notice that a device without work is gone: look, and say so."""
        if time.monotonic() - self._looked_at < LOOK_AFTER_S:
            return
        try:
            self._device.check()
        except DeviceFault as fault:
            self._report_fault(fault)
        self._looked_at = time.monotonic()

    def _check_device(self, check: DeviceCheck) -> None:
        """Measure the reference operator for a device in quarantine; the service says what follows from it.

        Raises:
            DeviceChanged: the device is not the one that was reported.
        """
        log.warning("in quarantine: %s", check.reason)
        seen_at = time.monotonic()

        def still_here() -> None:
            """There is no lease to renew, and a device that has to cool may take many minutes."""
            nonlocal seen_at
            self._may_go_on()
            if time.monotonic() - seen_at > LOOK_AFTER_S:
                # By a thread of its own: a service that is slow to answer is not to delay what is measured.
                threading.Thread(target=self._still_here, daemon=True).start()
                seen_at = time.monotonic()

        try:
            with _room_for_models() as folder:
                reference = self._fetch(check.reference_sha256, folder)
                rounds = check_rounds(reference, protocol=check.protocol, device=self._device, check=still_here)
        except Stopped:
            return
        except DeviceFault as fault:
            self._report_fault(fault)
            return
        path, report = f"/v1/devices/{self._device.identity.serial}/checks", CheckReport(rounds=tuple(rounds))
        held = self._connection.ask("POST", path, Device, body=report).quarantine
        if held is None:
            log.info("the check is passed")
        else:
            log.warning("still in quarantine until %s at least: %s", f"{held.check_at:%H:%M:%S} UTC", held.reason)
        self._looked_at = time.monotonic()

    def _report_fault(self, fault: DeviceFault) -> None:
        """Of a device without a lease."""
        log.warning("the device is away: %s", fault)
        report = DeviceFaultReport(fault=str(fault)[:MAX_REASON])
        self._connection.ask("POST", f"/v1/devices/{self._device.identity.serial}/faults", Device, body=report)

    def _may_go_on(self) -> None:
        if self._stop.is_set():
            raise Stopped("the agent was told to stop")

    def _measure(self, lease: Lease, heartbeat: Heartbeat) -> Iterator[Sequence[Outcome]]:
        def check() -> None:
            self._may_go_on()
            if heartbeat.lost.is_set():
                raise LeaseLost("another device has the jobs of this lease; what was measured of them is dropped")

        with _room_for_models() as folder:
            reference = self._fetch(lease.reference_sha256, folder)
            yield from measure(
                lease.jobs,
                protocol=lease.protocol,
                models={job.model_sha256: self._fetch(job.model_sha256, folder) for job in lease.jobs},
                reference=reference,
                device=self._device,
                check=check,
                brackets=self._brackets,
                quiet=self._quiet,
            )

    def _fetch(self, sha256: str, folder: Path) -> Path:
        """A model's file, its bytes checked against its name.

        What is damaged on the service is never whole: then the lease runs out, which counts as an attempt.
        """
        for _ in range(FETCHES):
            content = self._connection.request("GET", f"/v1/models/{sha256}").content
            if hashlib.sha256(content).hexdigest() == sha256:
                path = folder / f"{sha256}.tflite"
                path.write_bytes(content)
                return path
        raise ServiceUnreachable(f"Model {sha256} arrived damaged {FETCHES} times.")

    def _report(self, lease: Lease, outcomes: Sequence[Outcome]) -> None:
        """Deliver outcomes, however long the service is away.

        Raises:
            DeviceFault: the service refuses them, or something between lets no report pass.
            LeaseLost, Stopped: they are dropped.
        """
        if not outcomes:
            return
        report = LeaseReport(outcomes=tuple(outcomes))
        deadline = time.monotonic() + IN_BETWEEN_S
        while True:
            try:
                self._connection.ask("POST", f"/v1/leases/{lease.token}/report", Reported, body=report)
            except (ServiceUnreachable, NotThisService) as error:  # or a proxy answers in its place
                if isinstance(error, ServiceUnreachable):
                    deadline = time.monotonic() + IN_BETWEEN_S
                elif time.monotonic() > deadline:
                    size_mb = len(report.model_dump_json()) / 1e6
                    raise DeviceFault(
                        f"A report of {size_mb:.1f} MB does not reach the service: {error} If a proxy is between, it"
                        " has to let bodies of 16 MiB pass."
                    ) from error
                log.warning("%s Keeping %d outcomes and trying again.", error, len(outcomes))
                if self._stop.wait(REPORT_AGAIN_S):
                    raise Stopped("the agent was told to stop while the service is away") from error
            except NotAllowed:
                raise
            except ServiceRefused as refusal:
                if refusal.error == "StaleLease":
                    raise LeaseLost(str(refusal)) from refusal
                raise DeviceFault(f"The service refuses what was measured: {refusal}") from refusal
            else:
                log.info("reported %d outcomes", len(outcomes))
                return

    def _release(self, lease: Lease, reason: Stopped | DeviceFault) -> None:
        """Give the rest of a lease back. If that cannot be said, the lease's deadline says it."""
        log.warning("giving the lease back: %s", reason)
        fault = str(reason)[:MAX_REASON] if isinstance(reason, DeviceFault) else None
        release = LeaseRelease(device_fault=fault, suspects=_suspects(lease, reason))
        try:
            self._connection.request("POST", f"/v1/leases/{lease.token}/release", body=release)
        except ServiceError as error:
            log.warning("the lease could not be given back: %s", error)


@contextlib.contextmanager
def _room_for_models() -> Iterator[Path]:
    """A folder for the models of one lease, while it is measured.

    Raises DeviceFault where this machine refuses what it takes: a file, a process.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="padnas-agent-") as folder:
            yield Path(folder)
    except OSError as error:
        raise DeviceFault(
            f"The agent cannot store models or start its runner: {error}. Free some disk space, or memory."
        ) from error


def _with_budget(report: DeviceReport, budget_s: float) -> DeviceReport:
    stopping = StoppingRule(budget_s=budget_s, max_rounds=MOST_ROUNDS)
    protocol = Protocol.model_validate(dict(report.protocol) | {"stopping": stopping})
    return DeviceReport.model_validate(dict(report) | {"protocol": protocol})


def _suspects(lease: Lease, reason: Stopped | DeviceFault) -> tuple[int, ...]:
    """Jobs whose model ran when the device rebooted, changed with every round, or failed and did not say why."""
    if not isinstance(reason, SuspectedFault) or reason.suspect is None:
        return ()
    return tuple(job.job_id for job in lease.jobs if job.model_sha256 == reason.suspect.stem)
