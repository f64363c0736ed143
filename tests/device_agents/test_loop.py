"""The agent's loop against a live service; only the device at its far end is scripted."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from device_agents import loop
from device_agents.errors import AgentOutdated, DeviceFault, DeviceRebooted, SubjectFault
from device_agents.loop import MOST_ROUNDS, Agent
from latency_contract.connection import NotAllowed, NotThisService, ServiceConnection, ServiceRefused
from latency_contract.devices import Device, DeviceReport
from latency_contract.jobs import DeviceCheck, Lease, LeaseRelease, LeaseReport, LeaseRequest
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import IBConv
from latency_contract.tables import LatencyAnswer, LatencyEntry, LatencyQuery, LatencyStatus
from latency_service import devices, drift, tokens
from latency_service.database import Database
from latency_service.settings import Settings
from tests.conftest import live_service, sha256
from tests.device_agents.scripted_device import ScriptedDevice

Make = Callable[..., IBConv]
PATIENCE_S = 60.0
SHORT_LEASE_S = 3.0  # as the live service is set up


class Overheard(ServiceConnection):
    """The agent's connection: its leases are written down, and what passes is altered when the test wants it."""

    def __init__(self, url: str, bench: "Bench") -> None:
        super().__init__(url)
        self.bench = bench

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        if path.endswith("/report") and self.bench.say_that_results_are_of is not None:
            options["body"] = _of_another_device(options["body"], self.bench.say_that_results_are_of)
        if path.endswith("/report") and self.bench.in_between is not None:
            if self.bench.in_between.is_success:
                return self.bench.in_between
            raise NotThisService(f"answered with status {self.bench.in_between.status_code} and no explanation.")
        if path.endswith("/report") and self.bench.another_answers:
            self.bench.another_answers -= 1
            raise NotThisService("answered with status 302 and no explanation.")
        response = super().request(method, path, **options)
        if path == "/v1/leases" and response.status_code == 200 and "token" in response.json():
            self.bench.leases.append(Lease.model_validate_json(response.content))
        if path.endswith("/release"):
            self.bench.releases.append(options["body"])
        if path.startswith("/v1/models/") and self.bench.damage_next_model:
            self.bench.damage_next_model = False
            return httpx.Response(200, content=response.content[:-1] + b"?")
        return response


def _of_another_device(report: LeaseReport, serial: str) -> LeaseReport:
    document = report.model_dump(mode="json")
    for outcome in document["outcomes"]:
        outcome["measurement"]["provenance"]["device_serial"] = serial
    return LeaseReport.model_validate(document)


class Bench:
    """An agent in a thread, and the client that asks for latencies."""

    def __init__(self, url: str, name: str, report: Callable[..., DeviceReport]) -> None:
        self.report = report(serial=name, model=name)
        self.url = url
        self.connection = ServiceConnection(url)
        self.stop = threading.Event()
        self.leases: list[Lease] = []
        self.releases: list[LeaseRelease] = []
        self.damage_next_model = False
        self.say_that_results_are_of: str | None = None
        self.another_answers = 0  # times that a proxy answers a report in the service's place
        self.in_between: httpx.Response | None = None  # its answer, where it always does
        self.thread: threading.Thread | None = None
        self.budget_s: float | None = None

    def start(self, behave: Callable[[Path], float]) -> ScriptedDevice:
        device = ScriptedDevice(behave, report=self.report)
        self.thread = threading.Thread(target=self._run, args=(device,))
        self.thread.start()
        self.wait_for(self._known, "the device is not reported")
        return device

    def _run(self, device: ScriptedDevice) -> None:
        with Overheard(self.url, self) as connection:
            Agent(connection, device, stop=self.stop, max_jobs=16, budget_s=self.budget_s).run()

    def device(self) -> Device:
        return self.connection.ask("GET", f"/v1/devices/{self.report.serial}", Device)

    def ask(self, *operators: IBConv | TFLiteModel) -> tuple[LatencyEntry, ...]:
        query = LatencyQuery(device=self.report.model, subjects=operators, client="test")
        return self.connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query).entries

    def queue(self, *operators: IBConv | TFLiteModel) -> None:
        query = LatencyQuery(device=self.report.model, subjects=operators, queue_missing=True, client="test")
        self.connection.ask("POST", "/v1/latencies/query", LatencyAnswer, body=query)

    def wait_for(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.02)

    def _known(self) -> bool:
        try:
            self.connection.request("GET", f"/v1/devices/{self.report.serial}")
        except ServiceRefused:
            return False
        return True

    def end(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join(PATIENCE_S)
            assert not self.thread.is_alive()
            self.thread = None


@pytest.fixture
def bench(service_url: str, request: pytest.FixtureRequest, report: Callable[..., DeviceReport]) -> Iterator[Bench]:
    bench = Bench(service_url, re.sub(r"\W", "-", request.node.name), report)
    yield bench
    bench.end()
    bench.connection.close()


def test_what_is_queued_is_measured_and_reported(bench: Bench, operator: Make) -> None:
    bench.start(lambda _: 2.0)
    bench.queue(operator(height=1), operator(height=2))
    bench.wait_for(
        lambda: all(e.status == LatencyStatus.MEASURED for e in bench.ask(operator(height=1), operator(height=2))),
        "not measured",
    )
    latency = bench.ask(operator(height=1))[0].latency
    assert latency is not None
    assert (latency.latency_ms, latency.rounds) == (2.0, 6)


def test_a_budget_of_time_is_part_of_the_protocol(bench: Bench, operator: Make) -> None:
    bench.budget_s = 3600.0
    bench.start(lambda _: 2.0)
    assert bench.device().protocol.stopping.budget_s == 3600
    bench.queue(operator())
    bench.wait_for(lambda: bench.ask(operator())[0].status == LatencyStatus.MEASURED, "not measured")
    latency = bench.ask(operator())[0].latency
    assert latency is not None
    assert latency.rounds == MOST_ROUNDS


def test_a_file_that_was_given_is_measured_as_it_is(bench: Bench) -> None:
    content, seen = b"\x1c\x00\x00\x00TFL3 given by somebody", set[bytes]()
    file = TFLiteModel(sha256=sha256(content))

    def behave(model: Path) -> float:
        seen.add(model.read_bytes())
        return 2.0

    bench.start(behave)
    bench.connection.request("PUT", f"/v1/models/{file.sha256}", content=content)
    bench.queue(file)
    bench.wait_for(lambda: bench.ask(file)[0].status == LatencyStatus.MEASURED, "not measured")
    assert content in seen


def test_a_subjects_fault_fails_its_job_with_the_reason(bench: Bench, operator: Make) -> None:
    reference: list[str] = []

    def crash_on_all_but_the_reference(model: Path) -> float:
        reference.append(model.name)  # the first block of a batch is the reference operator's
        if model.name != reference[0]:
            raise SubjectFault("The runner was ended by signal 11 on this model, twice.")
        return 1.0

    bench.start(crash_on_all_but_the_reference)
    bench.queue(operator())
    bench.wait_for(lambda: bench.ask(operator())[0].status == LatencyStatus.FAILED, "not failed")
    assert bench.ask(operator())[0].error == "The runner was ended by signal 11 on this model, twice."


def test_a_device_fault_returns_the_job_and_the_device_rests(bench: Bench, operator: Make) -> None:
    def overheat(_: Path) -> float:
        raise DeviceFault("the phone is at 51 °C")

    device = bench.start(overheat)
    bench.queue(operator())
    bench.wait_for(lambda: bench.device().faults == 1, "no fault")
    assert bench.device().last_fault == "the phone is at 51 °C"
    assert bench.device().blocked_until is not None
    assert bench.ask(operator())[0].status == LatencyStatus.QUEUED
    assert len(device.ran) == 1


def test_a_model_that_ran_when_the_device_rebooted_is_suspected_and_its_neighbours_are_not(
    bench: Bench, operator: Make
) -> None:
    suspect: list[str] = []

    def reboot(model: Path) -> float:
        if len(device.ran) == 2:  # the first after the reference operator
            suspect.append(model.stem)
            raise DeviceRebooted("the phone rebooted", suspect=model)
        return 1.0

    device = bench.start(reboot)
    bench.queue(operator(height=1), operator(height=2))
    bench.wait_for(lambda: bench.device().faults == 1, "no fault")
    (release,) = bench.releases
    (lease,) = bench.leases
    assert release.device_fault == "the phone rebooted"
    assert [job.job_id for job in lease.jobs if job.model_sha256 in suspect] == list(release.suspects)
    assert len(release.suspects) == 1


def test_an_idle_device_that_is_gone_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_AFTER_S", 0.0)
    device = bench.start(lambda _: 1.0)
    assert bench.device().faults == 0
    device.away = "the cable is out"
    bench.wait_for(lambda: bench.device().faults == 1, "no fault")
    assert bench.device().last_fault == "the cable is out"
    assert bench.device().blocked_until is not None


def test_a_device_that_slows_down_is_quarantined_checked_and_released(
    tmp_path: Path, report: Callable[..., DeviceReport], operator: Make
) -> None:
    """Its history is written by hand, since it takes hours; the rest is agent and service as they are."""
    slow, settings = threading.Event(), Settings(lease_s=3.0, check_backoff_s=0.1)
    database = Database(f"sqlite:///{tmp_path / 'drift.db'}")
    with live_service(str(database.url), settings=settings) as url:
        bench = Bench(url, "drifting", report)
        bench.start(lambda _: 2.6 if slow.is_set() else 2.0)
        with database.writing() as session:
            device = devices.known(session, "drifting")
            for slot in range(drift.NEEDED):
                at = datetime.now(UTC) - drift.RECENT - (1 + slot) * drift.SLOT
                drift.keep(session, device, protocol_id=device.protocol_id, reference_ms=2.0, now=at)
        slow.set()
        wanted = [operator(height=n) for n in range(1, 5)]
        bench.queue(*wanted)
        bench.wait_for(lambda: (held := bench.device().quarantine) is not None and held.failed_checks > 0, "no check")
        held = bench.device().quarantine
        assert held is not None
        assert held.reason.startswith("reference operator 30.0 % slower than in the last 30 days since ")
        assert LatencyStatus.MEASURED not in {entry.status for entry in bench.ask(*wanted)}
        slow.clear()
        bench.wait_for(lambda: bench.device().quarantine is None, "not released")
        bench.queue(*wanted)
        bench.wait_for(lambda: all(e.status == LatencyStatus.MEASURED for e in bench.ask(*wanted)), "not measured")
        assert {entry.latency.latency_ms for entry in bench.ask(*wanted) if entry.latency} == {2.0}
        bench.end()
        bench.connection.close()
    database.dispose()


def test_an_agent_told_to_stop_gives_its_lease_back(bench: Bench, operator: Make) -> None:
    def stop_in_the_middle(_: Path) -> float:
        bench.stop.set()
        return 1.0

    bench.start(stop_in_the_middle)
    bench.queue(operator())
    bench.wait_for(bench.stop.is_set, "nothing was leased")
    bench.end()
    assert bench.ask(operator())[0].status == LatencyStatus.QUEUED


def test_an_agent_that_lost_its_lease_drops_the_batch_and_goes_on(bench: Bench, operator: Make) -> None:
    """The lease is given back behind the agent's back, as if its deadline had passed."""
    released: list[str] = []

    def lose_the_first_lease(_: Path) -> float:
        if not released:
            released.append(bench.leases[0].token)
            bench.connection.request("POST", f"/v1/leases/{bench.leases[0].token}/release", json={})
        return 1.0

    bench.start(lose_the_first_lease)
    bench.queue(operator())
    bench.wait_for(lambda: bench.ask(operator())[0].status == LatencyStatus.MEASURED, "not measured")
    assert len(bench.leases) == 2


def test_a_lease_is_renewed_for_as_long_as_its_jobs_take(bench: Bench, operator: Make) -> None:
    """While the first block takes longer than a lease, a second unit of the model asks for work and gets none."""
    second = bench.report.model_copy(update={"serial": f"{bench.report.serial}-2"})
    bench.connection.ask("PUT", f"/v1/devices/{second.serial}", Device, body=second)
    answers: list[int] = []

    def slow(_: Path) -> float:
        deadline = time.monotonic() + SHORT_LEASE_S * 1.3
        while not answers or (len(answers) < 1000 and time.monotonic() < deadline):
            response = bench.connection.request("POST", "/v1/leases", body=LeaseRequest(serial=second.serial))
            answers.append(response.status_code)
            time.sleep(0.05)
        return 1.0

    def slow_once(model: Path) -> float:
        return 1.0 if answers else slow(model)

    bench.start(slow_once)
    bench.queue(operator())
    bench.wait_for(lambda: bench.ask(operator())[0].status == LatencyStatus.MEASURED, "not measured")
    assert set(answers) == {204}


def test_a_full_disk_is_the_devices_fault_and_the_lease_is_given_back(bench: Bench, operator: Make) -> None:
    def full(_: Path) -> float:
        raise OSError(28, "No space left on device")

    bench.start(full)
    bench.queue(operator())
    bench.wait_for(lambda: bench.device().faults == 1, "no fault")
    assert "No space left on device. Free some disk space" in str(bench.device().last_fault)
    assert bench.ask(operator())[0].status == LatencyStatus.QUEUED


def test_outcomes_that_the_service_refuses_are_given_back_with_its_reason(bench: Bench, operator: Make) -> None:
    bench.say_that_results_are_of = "somebody-else"
    bench.start(lambda _: 1.0)
    bench.queue(operator())
    bench.wait_for(lambda: bench.device().faults == 1, "no fault")
    assert "of another device: somebody-else" in str(bench.device().last_fault)


def test_outcomes_that_somebody_else_takes_are_kept_and_sent_again(bench: Bench, operator: Make) -> None:
    bench.another_answers = 2
    bench.start(lambda _: 1.0)
    bench.queue(operator())
    bench.wait_for(lambda: bench.ask(operator())[0].status == LatencyStatus.MEASURED, "not measured")
    assert (bench.another_answers, len(bench.leases)) == (0, 1)


@pytest.mark.parametrize("answer", [httpx.Response(413, content=b"<html>"), httpx.Response(200, content=b"<html>")])
def test_outcomes_that_something_in_between_never_lets_pass_are_given_back(
    bench: Bench, operator: Make, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response
) -> None:
    """As a proxy does whose bodies are smaller, or one that shows a page instead of the service."""
    monkeypatch.setattr(loop, "IN_BETWEEN_S", 0.3)
    monkeypatch.setattr(loop, "REPORT_AGAIN_S", 0.1)
    bench.in_between = answer
    bench.start(lambda _: 1.0)
    bench.queue(operator())
    bench.wait_for(lambda: bench.device().faults == 1, "no fault")
    assert re.search(
        r"A report of \d\.\d MB does not reach the service: .* bodies of 16 MiB", str(bench.device().last_fault)
    )
    assert bench.ask(operator())[0].status == LatencyStatus.QUEUED


def test_an_agent_of_another_version_than_its_service_ends_and_harms_no_job(
    bench: Bench, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease has something in it that this agent does not know."""
    answered = ServiceConnection.request

    def newer(self: ServiceConnection, method: str, path: str, **options: Any) -> httpx.Response:
        response = answered(self, method, path, **options)
        if path == "/v1/leases" and response.status_code == 200:
            return httpx.Response(200, json=response.json() | {"newer": True})
        return response

    bench.connection.ask("PUT", f"/v1/devices/{bench.report.serial}", Device, body=bench.report)
    bench.queue(operator())
    monkeypatch.setattr(ServiceConnection, "request", newer)
    agent = Agent(bench.connection, ScriptedDevice(lambda _: 1.0, report=bench.report), stop=bench.stop, max_jobs=16)
    with pytest.raises(AgentOutdated, match=r"they are not of one version\. Update them\."):
        agent.run()
    assert bench.ask(operator())[0].status == LatencyStatus.QUEUED
    assert "not of one version" in str(bench.device().last_fault)


def test_a_device_in_quarantine_that_has_to_wait_is_still_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOOK_AFTER_S", 0.0)
    bench.connection.ask("PUT", f"/v1/devices/{bench.report.serial}", Device, body=bench.report)
    seen_at = bench.device().last_seen_at
    device = ScriptedDevice(lambda _: 1.0, report=bench.report)
    agent = Agent(bench.connection, device, stop=bench.stop, max_jobs=16)

    def hot(check: Callable[[], None]) -> None:
        check()
        bench.wait_for(lambda: bench.device().last_seen_at > seen_at, "not seen")
        raise DeviceFault("It is hot.")

    monkeypatch.setattr(device, "wait_until_fit", hot)
    monkeypatch.setattr(agent, "_fetch", lambda *_: Path("reference.tflite"))
    agent._check_device(DeviceCheck(protocol=bench.report.protocol, reference_sha256="0" * 64, reason="it was slow"))
    assert bench.device().last_fault == "It is hot."


def test_a_model_that_arrives_damaged_is_fetched_again_and_not_measured_as_it_is(bench: Bench, operator: Make) -> None:
    bench.damage_next_model = True
    bench.start(lambda _: 1.0)
    bench.queue(operator())
    bench.wait_for(lambda: bench.ask(operator())[0].status == LatencyStatus.MEASURED, "not measured")
    assert not bench.damage_next_model
    assert len(bench.leases) == 1


def test_a_device_that_the_service_does_not_accept_ends_the_agent(bench: Bench) -> None:
    bench.report = bench.report.model_copy(update={"model": "<script>"})
    device = ScriptedDevice(lambda _: 1.0, report=bench.report)
    agent = Agent(bench.connection, device, stop=bench.stop, max_jobs=16)
    with pytest.raises(ServiceRefused, match="model: String should match pattern"):
        agent.run()


@pytest.mark.parametrize("when", ["idle", "measuring", "reporting"])
def test_an_agent_whose_token_is_revoked_says_so_and_ends(
    when: str,
    migrated_sqlite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[..., DeviceReport],
    operator: Make,
) -> None:
    """Wherever it learns of it; and it does not go on asking."""
    database = Database(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'service.db')}")
    with database.writing() as session:
        now = datetime.now(UTC)
        secret = tokens.create(session, name="hub", role=tokens.Role.AGENT, now=now)
        monkeypatch.setenv("PADNAS_TOKEN", tokens.create(session, name="me", role=tokens.Role.CLIENT, now=now))

    def revoke(_: object = None) -> float:
        with database.writing() as session:
            if "hub" in [row.name for row in tokens.valid(session)]:
                tokens.revoke(session, "hub", now=datetime.now(UTC))
        return 1.0

    refused: list[str] = []

    class Watched(Overheard):
        def request(self, method: str, path: str, **options: Any) -> httpx.Response:
            if when == "reporting" and path.endswith("/report"):
                revoke()
            try:
                response = super().request(method, path, **options)
            except NotAllowed:
                refused.append(path)
                raise
            if when == "idle" and response.status_code == 204:
                revoke()
            return response

    with live_service(str(database.url)) as url:
        bench = Bench(url, "revoked", report)
        monkeypatch.setenv("PADNAS_TOKEN", secret)
        with Watched(url, bench) as connection:
            device = ScriptedDevice(revoke if when == "measuring" else lambda _: 1.0, report=bench.report)
            connection.ask("PUT", "/v1/devices/revoked", Device, body=bench.report)
            if when != "idle":
                bench.queue(operator())
            with pytest.raises(NotAllowed, match="The token 'hub' was revoked"):
                Agent(connection, device, stop=bench.stop, max_jobs=16).run()
        bench.connection.close()
    database.dispose()
    assert len(refused) == 1
