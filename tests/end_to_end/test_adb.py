"""A table through a real `adbd`, with the programs as a farm runs them, while its parts are killed."""

import re
from collections import Counter
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from benchmarks.adb_board import running_board, running_plan, start_adb_agent, start_farm
from benchmarks.debian_adbd import Adbd
from benchmarks.faulty_wire import Fault, FaultyWire
from benchmarks.processes import Program, running_service
from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, DeviceKind
from latency_contract.measurements import Measurement
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import MeasurementRow
from search_client.latencies import LatencyService
from search_client.spaces import load_space
from tests.device_agents.replayed_phone import PROGRAMS, ReplayedPhone

BRIEFLY = ("--seconds", "0.5")  # for each operator: how narrow an interval becomes is not the question here
SMALLEST = Path(__file__).parent / "smallest.toml"

pytestmark = pytest.mark.usefixtures("debian_adbd")


def test_a_farm_finishes_its_table_whatever_is_killed_and_measures_nothing_twice(tmp_path: Path) -> None:
    """The wire is cut, the worker and the service are killed, the device is restarted."""
    operators = load_space(str(SMALLEST), classes=10).operators()
    with (
        running_service(tmp_path) as (service, url),
        running_board(tmp_path) as adbd,
        FaultyWire(adbd.port) as wire,
        start_farm(tmp_path, url, port=wire.port) as farm,
    ):
        farm.wait_for_line(r"(measuring on .*)")
        command = ["table", "build", "--space", str(SMALLEST), "--wait", "--service", url]
        with Program("search_client", *command, log=tmp_path / "client.log") as building:
            farm.wait_for_line(r"(leased \d+ jobs)")
            wire.inject(Fault.CUT)
            for worker in psutil.Process(farm.process.pid).children():
                worker.kill()
            service.kill()
            adbd.kill()
            adbd.start()
            with running_service(tmp_path, port=int(url.rpartition(":")[2])):
                assert building.process.wait(150) == 0, building.log.read_text() + farm.log.read_text()
                assert farm.stop() == 0
    assert _times_measured(tmp_path) == {operator.id: 1 for operator in operators}
    assert {path.name for path in (tmp_path / "padnas").iterdir()} == {"cache", "lock"}


def test_an_agent_finishes_its_table_though_its_runner_is_killed_and_its_service_is_out_of_reach(
    tmp_path: Path,
) -> None:
    operators = load_space(str(SMALLEST), classes=10).operators()
    with (
        running_service(tmp_path) as (_, url),
        running_board(tmp_path) as adbd,
        FaultyWire(int(url.rpartition(":")[2])) as to_service,
        start_adb_agent(tmp_path, f"http://127.0.0.1:{to_service.port}", *BRIEFLY, port=adbd.port, max_jobs=2) as agent,
        ServiceConnection(url) as connection,
    ):
        agent.wait_for_line(r"(measuring on .*)")
        service = LatencyService(connection, device=None, client="test")
        service.request(operators, purpose=Purpose.TABLE)
        runner = running_plan(tmp_path, patience_s=60)
        assert runner is not None, "no runner was started"
        runner.kill()
        to_service.inject(Fault.REFUSE)
        to_service.inject(Fault.CUT)
        agent.wait_for_line(r"(?i)(cannot be reached|does not answer|not reachable|trying again)")
        to_service.heal()
        service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
        assert agent.stop() == 0
    assert _times_measured(tmp_path) == {operator.id: 1 for operator in operators}


def test_a_phone_gives_a_table_with_its_gates_in_every_measurement(tmp_path: Path) -> None:
    """The screen goes on for a while: those rounds are kept as evidence, and the phone is waited for."""
    phone = ReplayedPhone(tmp_path / "phone")
    operators = load_space(str(SMALLEST), classes=10).operators()[:2]
    options = ["--adb-key", str(tmp_path / "adbkey"), "--device-folder", str(tmp_path / "padnas")]
    options += ["--benchmark-binary", str(PROGRAMS / "benchmark_model"), *BRIEFLY]
    with running_service(tmp_path) as (_, url), Adbd(tmp_path / "device", environment=phone.environment) as adbd:
        device = ["--device", f"adb:127.0.0.1:{adbd.port}"]
        agent = Program("device_agents", "run", "--service", url, *device, *options, log=tmp_path / "agent.log")
        with agent, ServiceConnection(url) as connection:
            agent.wait_for_line(r"(measuring on Pixel 3 .*)")
            phone.change("dumpsys/deviceidle-get-screen", "false", "true", after=4)
            service = LatencyService(connection, device="Pixel 3", client="test")
            service.request(operators, purpose=Purpose.TABLE)
            agent.wait_for_line(r"(waiting for \S+: its screen is on)")
            phone.change("dumpsys/deviceidle-get-screen", "true", "false")
            answers = service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
            agent.wait_for_line(r"(?s)(\d subjects in.*\d subjects in|2 subjects in)")  # of one lease, or of two
            measured = [connection.ask("GET", f"/v1/measurements/{a.measurement_id}", Measurement) for a in answers]
            (reported,) = [
                connection.ask("GET", f"/v1/devices/{serial}", Device) for serial in {a.device_serial for a in answers}
            ]
    assert (reported.model, reported.kind) == ("Pixel 3", DeviceKind.ANDROID)
    assert "its screen is on" in {rejected.reason for m in measured for rejected in m.rejected}
    for measurement in measured:
        provenance = measurement.provenance
        assert (provenance.core_mask, provenance.runner) == ("80", "TensorFlow Lite benchmark_model")
        assert (provenance.before.thermal_status, provenance.after.screen_on) == (0, False)
        assert provenance.unreadable == ()
        assert all(r.summary_of is not None and r.summary_of >= 5 for r in measurement.rounds)
    assert sum(int(n) for n in re.findall(r"(\d+) subjects in", agent.log.read_text())) >= len(operators)


def _times_measured(folder: Path) -> dict[str, int]:
    database = Database(f"sqlite:///{folder / 'service.db'}")
    with database.reading() as session:
        counted = Counter(session.scalars(select(MeasurementRow.subject_id)))
    database.dispose()
    return dict(counted)
