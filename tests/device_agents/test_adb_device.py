"""A Linux board at the far end of a real `adbd`: this machine, with its own Python and LiteRT."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.adb_board import Board, running_board
from benchmarks.debian_adbd import Adbd
from benchmarks.faulty_wire import Fault, FaultyWire
from device_agents import adb, adb_device
from device_agents.adb import parse_target
from device_agents.adb_device import AdbDevice
from device_agents.errors import DeviceChanged, DeviceFault, DeviceFull, DeviceRebooted, LinkLost, Stopped
from device_agents.opening import open_device
from device_agents.turns import Plan, Ran, Refused, Visit
from latency_contract.measurements import DeviceState
from latency_contract.operators import IBConv
from latency_contract.protocols import Protocol
from latency_service.tflite_converter import convert
from tests.conftest import sha256
from tests.device_agents.replayed_phone import PROGRAMS, ReplayedPhone

Make = Callable[..., IBConv]
QUICK = {"warmup_ms": 1.0, "block_ms": 5.0, "reference_block_ms": 1.0}
PATIENCE_S = 60.0


@pytest.fixture
def board(debian_adbd: Path, tmp_path: Path) -> Iterator[Board]:  # noqa: ARG001
    with running_board(tmp_path) as board:
        yield board


@pytest.fixture
def wire(board: Board) -> Iterator[FaultyWire]:
    with FaultyWire(board.port) as wire:
        yield wire


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONNECT_S", "STALL_S"):
        monkeypatch.setattr(adb, name, 1.0)
    monkeypatch.setattr(adb, "LOOK_S", 0.05)
    monkeypatch.setattr(adb_device, "RECONNECT_S", 2.0)
    monkeypatch.setattr(adb_device, "RECONNECT_PAUSE_S", 0.05)


@pytest.fixture
def device(wire: FaultyWire, tmp_path: Path) -> Iterator[AdbDevice]:
    with opened(wire.port, tmp_path) as device:
        yield device


def opened(port: int, tmp_path: Path) -> AdbDevice:
    target = parse_target(f"adb:127.0.0.1:{port}")
    return open_device(target, keys=tmp_path / "adbkey", benchmark_binary=None, folder=f"{tmp_path}/padnas")


@pytest.fixture
def models(tmp_path: Path, operator: Make) -> list[Path]:
    paths = []
    for height in (8, 12):
        content = convert(operator(height=height))
        paths.append(tmp_path / f"{sha256(content)}.tflite")
        paths[-1].write_bytes(content)
    return paths


def plan(reference: Path, *models: Path, rounds: int = 1, **changes: Any) -> Plan:
    protocol = Protocol(runtime="litert", runtime_version="2.3.0", **(QUICK | changes))
    return Plan(reference, [(model, rounds) for model in models or (reference,)], protocol)


def run(device: AdbDevice, plan: Plan, check: Callable[[], None] = lambda: None) -> list[Visit | Refused]:
    return list(device.run(plan, check))


def on_device(tmp_path: Path) -> set[str]:
    """Files and folders in the device's folder."""
    folder = tmp_path / "padnas"
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def processes_of(tmp_path: Path) -> list[psutil.Process]:
    """What runs there for us."""
    return [p for p in psutil.process_iter(["cmdline"]) if f"{tmp_path}/padnas" in " ".join(p.info["cmdline"] or ())]


def test_a_plan_runs_there_as_it_would_here(device: AdbDevice, models: list[Path]) -> None:
    results = run(device, plan(models[0], *models, rounds=2))
    assert [sorted(result.position for result in turn) for turn in (results[:2], results[2:])] == [[0, 1], [0, 1]]
    for result in results:
        assert isinstance(result, Visit)
        assert len(result.samples_ms) >= 5
        assert all(0 < ms < 1000 for ms in result.samples_ms)
        assert 0 < result.reference_before_ms < 1000
        assert result.rejected is None


def test_a_model_is_sent_once_and_nothing_but_the_cache_stays(
    device: AdbDevice, models: list[Path], tmp_path: Path
) -> None:
    run(device, plan(models[0]))
    (cached,) = (tmp_path / "padnas" / "cache").glob(models[0].name)
    arrived = cached.stat().st_ino
    run(device, plan(models[0], models[1]))
    assert cached.stat().st_ino == arrived
    device.close()
    programs = {name for name in on_device(tmp_path) if name.endswith(".py")}
    assert len(programs) == 1
    assert on_device(tmp_path) == {"lock", "cache", *programs, *(f"cache/{model.name}" for model in models)}


def test_a_file_of_the_cache_that_is_damaged_is_sent_again(
    device: AdbDevice, models: list[Path], tmp_path: Path
) -> None:
    cached = tmp_path / "padnas" / "cache" / models[0].name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(models[0].read_bytes()[:-1])
    assert len(run(device, plan(models[0]))) == 1
    assert cached.read_bytes() == models[0].read_bytes()


def test_a_cache_that_somebody_else_has_cleared_is_the_devices_fault_once(
    device: AdbDevice, models: list[Path], tmp_path: Path
) -> None:
    run(device, plan(models[0], models[1]))
    (tmp_path / "padnas" / "cache" / models[1].name).unlink()
    with pytest.raises(DeviceFault, match="not there any more"):
        run(device, plan(models[0], models[1]))
    assert len(run(device, plan(models[0], models[1]))) == 1


def test_a_cache_beyond_its_limit_is_cleared_of_what_is_not_needed(
    device: AdbDevice, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb_device, "CACHE_LIMIT_KB", 100)
    old = tmp_path / "padnas" / "cache" / f"{'0' * 64}.tflite"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(200 * 1024))
    assert len(run(device, plan(models[0]))) == 1
    assert not old.exists()


def test_a_full_device_is_at_fault_and_says_how_much_is_needed(
    board: Board, device: AdbDevice, models: list[Path]
) -> None:
    board.fill_up()
    with pytest.raises(DeviceFull, match=r"The device has 0 MB free in .*; free 64 MB at least"):
        run(device, plan(models[0]))
    board.clear_up()
    assert len(run(device, plan(models[0]))) == 1


def test_space_is_wanted_for_what_arrives_and_for_the_archive_that_it_arrives_in(
    board: Board, device: AdbDevice, models: list[Path], tmp_path: Path
) -> None:
    content = bytes(10_000_000)
    large = tmp_path / f"{sha256(content)}.tflite"
    large.write_bytes(content)
    board.fill_up(free_kb=80 * 1024)
    assert len(run(device, plan(models[0]))) == 1
    with pytest.raises(DeviceFull, match=r"The device has 80 MB free in .*; free 83 MB at least"):
        run(device, plan(models[0], large))


def test_a_model_that_is_refused_costs_its_neighbours_nothing(
    device: AdbDevice, models: list[Path], tmp_path: Path
) -> None:
    content = b"\x00" * 16 + models[0].read_bytes()[16:]
    corrupt = tmp_path / f"{sha256(content)}.tflite"
    corrupt.write_bytes(content)
    results = run(device, plan(models[0], corrupt, models[1], rounds=2))
    (refused,) = [result for result in results if isinstance(result, Refused)]
    assert refused.reason.startswith("LiteRT refuses this model")
    assert [result.position for result in results if isinstance(result, Visit)] == [1, 1]


class During:
    """Does something once, when the runner has come to a step."""

    def __init__(self, tmp_path: Path, action: Callable[[], object], *, after: str = '"ran", 0') -> None:
        self.tmp_path = tmp_path
        self.action = action
        self.after = after
        self.done = False

    def __call__(self) -> None:
        steps = (self.tmp_path / "padnas").glob("run-*/steps")
        if not self.done and any(self.after in path.read_text() for path in steps):
            self.done = True
            self.action()


LONG: dict[str, Any] = {"rounds": 60, "block_ms": 50.0}  # some seconds


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.HALF_CLOSE, Fault.CORRUPT])
@pytest.mark.usefixtures("impatient")
def test_rounds_that_were_run_when_the_link_broke_count(
    device: AdbDevice, wire: FaultyWire, models: list[Path], tmp_path: Path, fault: Fault
) -> None:
    results = run(device, plan(models[0], **LONG), During(tmp_path, lambda: wire.inject(fault)))
    assert wire.struck.is_set()
    assert 1 <= len(results) <= (59 if fault == Fault.CUT else 60)
    assert all(isinstance(result, Visit) for result in results)
    assert processes_of(tmp_path) == []
    assert len(run(device, plan(models[0]))) == 1


@pytest.mark.usefixtures("impatient")
def test_rounds_of_an_earlier_plan_are_not_taken_for_those_of_one_that_never_began(
    device: AdbDevice, wire: FaultyWire, models: list[Path]
) -> None:
    assert len(run(device, plan(models[0], *models, rounds=2))) == 4
    wire.inject(Fault.CUT)
    assert run(device, plan(models[0], models[1])) == []
    assert len(run(device, plan(models[0], models[1]))) == 1


def test_a_plan_that_takes_too_long_is_ended_and_its_rounds_so_far_count(
    device: AdbDevice, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a model whose single run takes longer than a block should."""
    with monkeypatch.context() as patch:
        patch.setattr(adb_device, "BLOCK_OVERHEAD_S", 0.0)
        patch.setattr(adb_device, "BLOCK_LIMIT_S", -4.6)  # with what is allowed for 60 blocks, 1.5 s
        results = run(device, plan(models[0], **LONG, max_runs=10_000))
    assert 1 <= len(results) < 60
    assert len(run(device, plan(models[0]))) == 1
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("position", [1, -2])
def test_a_round_of_a_model_that_was_not_given_is_the_devices_fault(
    device: AdbDevice, models: list[Path], monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    monkeypatch.setattr(device._runner, "steps", lambda *_: [Ran("ran", position, 0.0, [1.0], None)])
    with pytest.raises(DeviceFault, match="speaks of a model that it was not given"):
        run(device, plan(models[0]))


@pytest.mark.usefixtures("impatient")
def test_a_stall_that_ends_in_time_costs_no_round(
    device: AdbDevice, wire: FaultyWire, models: list[Path], tmp_path: Path
) -> None:
    """Nothing is said while a plan runs, so nobody notices."""

    def stall() -> None:
        wire.inject(Fault.STALL)
        threading.Timer(0.5, wire.heal).start()

    results = run(device, plan(models[0], rounds=20, block_ms=50.0), During(tmp_path, stall))
    assert len(results) == 20


@pytest.mark.usefixtures("impatient")
def test_a_link_that_does_not_come_back_is_the_devices_fault(
    device: AdbDevice, wire: FaultyWire, models: list[Path], tmp_path: Path
) -> None:
    def pull_the_cable() -> None:
        wire.inject(Fault.REFUSE)
        wire.inject(Fault.CUT)

    with pytest.raises(LinkLost, match=r"cannot be reached|broke"):
        run(device, plan(models[0], **LONG), During(tmp_path, pull_the_cable))
    wire.heal()
    assert len(run(device, plan(models[0]))) == 1
    assert processes_of(tmp_path) == []


@pytest.mark.usefixtures("impatient")
def test_a_reboot_names_the_model_that_ran(
    device: AdbDevice, board: Board, models: list[Path], operator: Make, tmp_path: Path
) -> None:
    content = convert(operator(height=112, in_channels=48, out_channels=48))
    slow = tmp_path / f"{sha256(content)}.tflite"
    slow.write_bytes(content)

    endless = plan(models[1], slow, block_ms=60_000.0, reference_block_ms=0.01, max_runs=10_000)
    with pytest.raises(DeviceRebooted) as fault:
        run(device, endless, During(tmp_path, board.reboot, after='"started", 0'))
    assert fault.value.suspect == slow
    assert len(run(device, plan(models[0]))) == 1


@pytest.mark.usefixtures("impatient")
def test_another_device_at_the_same_address_is_not_measured_in_its_place(
    device: AdbDevice, wire: FaultyWire, models: list[Path]
) -> None:
    device.enrolment = device.enrolment._replace(serial="host-of-somebody-else")
    wire.inject(Fault.CUT)
    with pytest.raises(DeviceChanged, match=r"host-of-somebody-else .* answers there\. Start the agent again"):
        run(device, plan(models[0]))


def test_a_check_that_raises_ends_what_runs_there(device: AdbDevice, models: list[Path], tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped("enough")

    with pytest.raises(Stopped):
        run(device, plan(models[0], **LONG), During(tmp_path, stop))
    assert processes_of(tmp_path) == []
    assert len(run(device, plan(models[0]))) == 1


def test_a_runner_that_is_killed_twice_on_one_model_is_the_models_fault(
    device: AdbDevice, models: list[Path], tmp_path: Path, operator: Make
) -> None:
    content = convert(operator(height=56, width=56, in_channels=64, out_channels=64, expansion=6))
    slow = tmp_path / f"{sha256(content)}.tflite"
    slow.write_bytes(content)

    def kill() -> None:
        for process in processes_of(tmp_path):
            for child in process.children(recursive=True):
                if "plan" in child.cmdline():
                    child.kill()

    def killed() -> list[Visit | Refused]:
        return run(device, plan(models[1], slow, block_ms=10_000), During(tmp_path, kill, after='"started", 0'))

    assert killed() == []
    assert killed() == [Refused("refused", 0, "The runner was ended by signal 9 on this model, twice.")]


def test_a_runner_that_cannot_start_says_why(device: AdbDevice, models: list[Path], tmp_path: Path) -> None:
    python = tmp_path / "programs" / "python3"
    python.unlink()
    python.write_text("#!/bin/sh\necho 'No module named numpy'\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(
        DeviceFault, match=r"exited with status 1 before it ran anything. It said: No module named numpy"
    ):
        run(device, plan(models[0]))


def test_what_a_killed_agent_left_running_is_ended_by_the_next_one(
    board: Board, models: list[Path], tmp_path: Path
) -> None:
    """The link of the first one is left open, as by an agent that hangs."""
    first = opened(board.port, tmp_path)
    began = threading.Event()

    def linger() -> None:
        with suppress(DeviceFault):
            run(first, plan(models[0], **LONG), During(tmp_path, began.set))

    thread = threading.Thread(target=linger)
    thread.start()
    assert began.wait(PATIENCE_S)
    with opened(board.port, tmp_path) as second:
        assert len(run(second, plan(models[0]))) == 1
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    first.close()
    assert processes_of(tmp_path) == []


def test_looking_at_a_device_leaves_whoever_measures_there_alone(
    board: Board, device: AdbDevice, models: list[Path], tmp_path: Path
) -> None:
    def look() -> None:
        with opened(board.port, tmp_path) as other:
            other.state()

    results = run(device, plan(models[0], rounds=20, block_ms=50.0), During(tmp_path, look))
    assert len(results) == 20


@pytest.mark.usefixtures("impatient")
def test_a_device_that_is_away_is_not_waited_for_at_the_end(
    device: AdbDevice, wire: FaultyWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb_device, "RECONNECT_S", 1e9)
    wire.inject(Fault.REFUSE)
    wire.inject(Fault.CUT)
    with pytest.raises(LinkLost):
        device.check()
    device.close()


def test_the_pin_is_verified(device: AdbDevice, models: list[Path]) -> None:
    device.enrolment = device.enrolment._replace(core=63)
    with pytest.raises(DeviceFault, match="was to be pinned to core 63, but the kernel lets it run on"):
        run(device, plan(models[0]))


THERMAL = "dumpsys/thermalservice"
COOL = "mValue=31.000002, mType=0"


@pytest.fixture
def phone(debian_adbd: Path, tmp_path: Path) -> ReplayedPhone:  # noqa: ARG001
    return ReplayedPhone(tmp_path / "phone")


@pytest.fixture
def opened_phone(phone: ReplayedPhone, tmp_path: Path) -> Iterator[AdbDevice]:
    with Adbd(tmp_path / "phones", environment=phone.environment) as adbd:
        target = parse_target(f"adb:127.0.0.1:{adbd.port}")
        binary, folder = PROGRAMS / "benchmark_model", f"{tmp_path}/padnas"
        with open_device(target, keys=tmp_path / "adbkey", benchmark_binary=binary, folder=folder) as device:
            yield device


def test_a_warm_device_is_waited_for_until_it_reads_as_cool(
    phone: ReplayedPhone, opened_phone: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb_device, "COOLING_PAUSE_S", 0.0)
    read: list[float | None] = []
    waits_for = opened_phone.waits_for

    def noting(state: DeviceState) -> str | None:
        read.append(state.temperature_c)
        if len(read) == 2:  # cool from the next reading on
            phone.change(THERMAL, "mValue=60.0, mType=0", "mValue=54.0, mType=0")
        return waits_for(state)

    monkeypatch.setattr(opened_phone, "waits_for", noting)
    phone.change(THERMAL, COOL, "mValue=60.0, mType=0")
    opened_phone.wait_until_fit(lambda: None)
    assert read == [60.0, 60.0, 54.0]


def test_a_device_that_stays_warm_is_at_fault_and_says_how_warm(
    phone: ReplayedPhone, opened_phone: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb_device, "COOLING_PAUSE_S", 0.0)
    monkeypatch.setattr(adb_device, "COOLING_S", 0.0)
    phone.change(THERMAL, COOL, "mValue=60.0, mType=0")
    with pytest.raises(DeviceFault, match=r"not fit to measure after 0 minutes: its processor has 60\.0 °C"):
        opened_phone.wait_until_fit(lambda: None)
