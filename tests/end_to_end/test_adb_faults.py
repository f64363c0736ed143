"""What ends no table: a device that is full, rebooted, out of reach for long, or that no longer knows the agent's key.

The service is a process of its own. The agent is one of this process, so that its patience can be shorter than 90 s.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from benchmarks.adb_board import Board, running_board, running_plan
from benchmarks.faulty_wire import Fault, FaultyWire
from benchmarks.processes import running_service
from device_agents import adb, adb_device
from device_agents.adb import AdbLink, parse_target
from device_agents.errors import Unauthorized
from device_agents.loop import Agent
from device_agents.opening import open_device
from latency_contract.connection import ServiceConnection, ServiceRefused
from latency_contract.devices import Device
from latency_contract.operators import Operator
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import MeasurementRow
from search_client.latencies import LatencyService
from search_client.spaces import load_space
from tests.device_agents.key_demanding_device import KeyDemandingDevice

PATIENCE_S = 90.0
LARGE_BATCH = 64
ALL_OPERATORS = load_space(str(Path(__file__).parent / "smallest.toml"), classes=10).operators()
FULL, REBOOTED, AWAY, LOCKED = ALL_OPERATORS[0:2], ALL_OPERATORS[2:4], ALL_OPERATORS[4:6], ALL_OPERATORS[6:8]

Service = tuple[str, Path]

pytestmark = pytest.mark.usefixtures("debian_adbd", "impatient")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_S", "AUTHORISE_S", "STALL_S"):
        monkeypatch.setattr(adb, name, 1.0)
    monkeypatch.setattr(adb_device, "RECONNECT_S", 1.0)
    monkeypatch.setattr(adb_device, "RECONNECT_PAUSE_S", 0.05)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its address, and the folder of its database."""
    folder = tmp_path_factory.mktemp("service")
    with running_service(folder) as (_, url):
        yield url, folder


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with running_board(tmp_path) as board:
        yield board


def test_a_device_that_becomes_full_is_waited_for(service: Service, board: Board, tmp_path: Path) -> None:
    with building(FULL, service, port=board.port, folder=tmp_path, max_jobs=1) as fault:
        assert (
            running_plan(tmp_path, patience_s=PATIENCE_S) is not None
        )  # of the first one; the model of the other finds no room
        board.fill_up()
        assert "has 0 MB free" in fault()
        board.clear_up()
    assert_each_is_measured_once(FULL, service)


def test_a_device_that_reboots_goes_on_with_what_is_missing(service: Service, board: Board, tmp_path: Path) -> None:
    with building(REBOOTED, service, port=board.port, folder=tmp_path) as fault:
        assert running_plan(tmp_path, patience_s=PATIENCE_S) is not None
        board.reboot()
        assert "rebooted in the middle of a run" in fault()
    assert_each_is_measured_once(REBOOTED, service)


def test_a_network_that_is_away_for_longer_than_a_link_is_waited_for_opens_the_breaker(
    service: Service, board: Board, tmp_path: Path
) -> None:
    with (
        FaultyWire(board.port) as wire,
        building(AWAY, service, port=wire.port, folder=tmp_path) as fault,
    ):
        assert running_plan(tmp_path, patience_s=PATIENCE_S) is not None
        wire.inject(Fault.REFUSE)
        wire.inject(Fault.CUT)
        assert re.search("cannot be reached|broke", fault())
        wire.heal()
    assert_each_is_measured_once(AWAY, service)


def test_a_device_that_no_longer_knows_the_key_is_measured_again_once_somebody_accepts_it(
    service: Service, board: Board, tmp_path: Path
) -> None:
    key = tmp_path / "adbkey"
    with KeyDemandingDevice(board.port) as phone:
        with pytest.raises(Unauthorized):  # which makes the key
            AdbLink(parse_target(f"adb:127.0.0.1:{phone.port}"), keys=key).connect()
        phone.accept.set()
        with building(LOCKED, service, port=phone.port, folder=tmp_path) as fault:
            assert running_plan(tmp_path, patience_s=PATIENCE_S) is not None
            phone.withdraw()
            assert "does not know the key" in fault()
            phone.accept.set()
    assert_each_is_measured_once(LOCKED, service)


@contextmanager
def building(
    operators: Sequence[Operator], service: Service, *, port: int, folder: Path, max_jobs: int = LARGE_BATCH
) -> Iterator["LastFault"]:
    """An agent measures the operators; at the end, all are waited for."""
    target = parse_target(f"adb:127.0.0.1:{port}")
    stop = threading.Event()
    url, _ = service
    with (
        ServiceConnection(url) as connection,
        open_device(target, keys=folder / "adbkey", benchmark_binary=None, folder=f"{folder}/padnas") as device,
    ):
        with ServiceConnection(url) as of_agent:
            agent = Agent(of_agent, device, stop=stop, max_jobs=max_jobs)
            thread = threading.Thread(target=agent.run)
            thread.start()
            try:
                fault = LastFault(connection, device.identity.serial)
                latencies = LatencyService(connection, device=None, client="test", wait=True)
                latencies.request(operators, purpose=Purpose.TABLE)
                yield fault
                latencies.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
            finally:
                stop.set()
                thread.join(PATIENCE_S)
        assert not thread.is_alive()


class LastFault:
    """Call it for the sentence with which the service has opened the device's breaker, once it has anew."""

    def __init__(self, connection: ServiceConnection, serial: str) -> None:
        """Once the agent has introduced the device."""
        self._connection = connection
        self._path = f"/v1/devices/{serial}"
        self._earlier = self._when_there().last_fault

    def __call__(self) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            device = self._connection.ask("GET", self._path, Device)
            if device.last_fault != self._earlier:
                assert device.last_fault is not None
                assert device.faults > 0
                return device.last_fault
            time.sleep(0.1)
        return "no fault was reported"

    def _when_there(self) -> Device:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._connection.ask("GET", self._path, Device)
            except ServiceRefused:
                assert time.monotonic() < deadline, "the agent did not report its device"
                time.sleep(0.1)


def assert_each_is_measured_once(operators: Sequence[Operator], service: Service) -> None:
    ids = [operator.id for operator in operators]
    database = Database(f"sqlite:///{service[1] / 'service.db'}")
    with database.reading() as session:
        counted = Counter(session.scalars(select(MeasurementRow.subject_id).where(MeasurementRow.subject_id.in_(ids))))
    database.dispose()
    assert counted == {operator.id: 1 for operator in operators}
