"""This machine as a device: a real runner process and real TFLite models."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tensorflow as tf

from device_agents import local_device
from device_agents.errors import DeviceFault, Stopped
from device_agents.local_device import LocalDevice, _lock_machine, fastest_core
from device_agents.turns import Plan, Refused, Visit
from latency_contract.operators import IBConv
from latency_contract.protocols import Delegate, Protocol
from latency_service.tflite_converter import convert
from tests.device_agents import faulty_runners

pytestmark = pytest.mark.usefixtures("this_machine")

Make = Callable[..., IBConv]
QUICK = {"warmup_ms": 1.0, "block_ms": 5.0, "reference_block_ms": 1.0}


@pytest.fixture
def device() -> Iterator[LocalDevice]:
    with LocalDevice() as device:
        yield device


@pytest.fixture
def model(tmp_path: Path, operator: Make) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(operator(height=16, width=16, in_channels=16, out_channels=16)))
    return path


def run(device: LocalDevice, reference: Path, *models: Path, rounds: int = 1, **changes: Any) -> list[Visit | Refused]:
    """What comes of some rounds of some models (by default, of the reference operator itself)."""
    protocol = Protocol(runtime="litert", runtime_version="2.3.0", **(QUICK | changes))
    plan = Plan(reference, [(model, rounds) for model in models or (reference,)], protocol)
    return list(device.run(plan, check=lambda: None))


def visit(result: Visit | Refused) -> Visit:
    assert isinstance(result, Visit)
    return result


def runner_of(device: LocalDevice) -> psutil.Process:
    assert device._runner is not None
    return psutil.Process(device._runner._process.pid)


def test_a_block_gives_a_positive_time_for_every_run(device: LocalDevice, model: Path) -> None:
    samples = visit(run(device, model)[0]).samples_ms
    assert len(samples) >= 5
    assert all(0 < sample < 1000 for sample in samples)
    assert sum(samples) >= 5.0 * 0.9


def test_a_slow_model_still_gets_the_fewest_runs(device: LocalDevice, model: Path) -> None:
    assert len(visit(run(device, model, block_ms=0.001, min_runs=7)[0]).samples_ms) == 7


def test_a_fast_model_gets_no_more_than_the_most_runs(device: LocalDevice, model: Path) -> None:
    assert len(visit(run(device, model, block_ms=1000.0, max_runs=9)[0]).samples_ms) == 9


def test_models_take_turns_in_an_order_that_is_drawn_for_each(device: LocalDevice, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(model.read_bytes())
    results = [visit(result) for result in run(device, model, model, other, rounds=20)]
    turns = [(one.position, two.position) for one, two in zip(results[::2], results[1::2], strict=True)]
    assert set(turns) == {(0, 1), (1, 0)}
    assert sorted(result.started_at for result in results) == [result.started_at for result in results]


def test_the_runner_is_pinned_to_one_core(device: LocalDevice, model: Path) -> None:
    run(device, model)
    assert runner_of(device).cpu_affinity() == [device.core]
    assert device.identity.core_mask == f"{1 << fastest_core():x}"  # type: ignore[operator]


def test_a_pin_that_does_not_hold_is_the_devices_fault(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.CannotPin)
    with pytest.raises(DeviceFault, match="was to be pinned to core"):
        run(device, model)


def test_a_corrupt_model_is_the_subjects_fault_and_costs_its_neighbours_nothing(
    device: LocalDevice, model: Path, tmp_path: Path
) -> None:
    corrupt = tmp_path / "corrupt.tflite"
    corrupt.write_bytes(b"\x00" * 16 + model.read_bytes()[16:])
    results = run(device, model, corrupt, model, rounds=2)
    (refused,) = [result for result in results if isinstance(result, Refused)]
    assert refused.reason.startswith("LiteRT refuses this model")
    assert [result.position for result in results if isinstance(result, Visit)] == [1, 1]


def test_a_model_of_whole_numbers_is_the_subjects_fault(device: LocalDevice, model: Path, tmp_path: Path) -> None:
    """Whoever gives a file to be measured may give a quantised one."""
    add_one = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec((1, 8), tf.int32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([add_one.get_concrete_function()], tf.Module())
    path = tmp_path / "int32.tflite"
    path.write_bytes(converter.convert())
    (refused,) = run(device, model, path)
    assert isinstance(refused, Refused)
    assert "Got value of type FLOAT32 but expected type INT32" in refused.reason


@pytest.fixture
def not_for_xnnpack(tmp_path: Path) -> Path:
    """XNNPACK has no cumulative sum."""
    add_up = tf.function(tf.math.cumsum, input_signature=[tf.TensorSpec((1, 8), tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([add_up.get_concrete_function()], tf.Module())
    path = tmp_path / "cumsum.tflite"
    path.write_bytes(converter.convert())
    return path


def test_a_model_that_xnnpack_does_not_run_is_refused_where_the_protocol_says_that_it_does(
    device: LocalDevice, model: Path, not_for_xnnpack: Path
) -> None:
    assert run(device, model, not_for_xnnpack) == [Refused("refused", 0, "XNNPACK runs no part of this model.")]


def test_without_xnnpack_the_runtimes_own_kernels_run(device: LocalDevice, model: Path, not_for_xnnpack: Path) -> None:
    results = run(device, model, not_for_xnnpack, model, delegate=Delegate.NONE)
    assert sorted(visit(result).position for result in results) == [0, 1]


def test_a_runtime_without_xnnpack_is_the_devices_fault(
    device: LocalDevice, model: Path, not_for_xnnpack: Path
) -> None:
    with pytest.raises(DeviceFault, match="reference operator does not run here: XNNPACK runs no part"):
        run(device, not_for_xnnpack, model)


def test_a_reference_that_does_not_load_is_the_devices_fault(device: LocalDevice, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceFault, match="The reference operator does not run here: LiteRT refuses this model"):
        run(device, tmp_path / "gone.tflite", model)


def test_a_runner_killed_between_runs_is_started_again(device: LocalDevice, model: Path) -> None:
    run(device, model)
    runner_of(device).kill()
    run(device, model)
    assert run(device, model)


def test_a_model_that_ends_the_runner_twice_is_at_fault(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.Dies)
    assert run(device, model, model, model) == []
    assert run(device, model, model, model) == [
        Refused("refused", 1, "The runner was ended by signal 9 on this model, twice.")
    ]
    monkeypatch.undo()
    assert len(run(device, model)) == 1


def test_a_reference_that_ends_the_runner_twice_is_the_devices_fault(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.DiesOnTheReference)
    assert run(device, model) == []
    with pytest.raises(DeviceFault, match="the runner was ended by signal 9 on it, twice"):
        run(device, model)


def test_a_model_that_hangs_is_ended_by_the_runners_alarm(
    device: LocalDevice, model: Path, tmp_path: Path, operator: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of ten seconds is taken to hang after one."""
    monkeypatch.setattr("device_agents.turns.block_limit_s", lambda _: 1)
    slow = tmp_path / "slow.tflite"
    slow.write_bytes(convert(operator(height=56, width=56, in_channels=64, out_channels=64, expansion=6)))
    assert run(device, model, slow, block_ms=10_000.0) == []
    assert run(device, model, slow, block_ms=10_000.0) == [
        Refused("refused", 0, "The runner did not finish a block in time on this model, twice.")
    ]


def test_a_hung_runner_is_ended_by_its_deadline(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agents.turns.BLOCK_LIMIT_S", 0)
    monkeypatch.setattr(local_device, "GRACE_S", 0.05)
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.Hangs)
    for _ in range(2):
        results = run(device, model, model, model)
    (refused,) = results
    assert isinstance(refused, Refused)
    assert "did not answer within 0 s on this model, twice" in refused.reason
    assert [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE] == []


def test_a_runner_that_babbles_is_the_devices_fault(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.Babbles)
    with pytest.raises(DeviceFault, match="says something unintelligible"):
        run(device, model)
    monkeypatch.undo()
    assert run(device, model)


def test_a_check_that_raises_ends_the_run_and_nothing_of_it_is_left_over(device: LocalDevice, model: Path) -> None:
    def stop() -> None:
        raise Stopped("enough")

    protocol = Protocol(runtime="litert", runtime_version="2.3.0")
    with pytest.raises(Stopped):
        list(device.run(Plan(model, [(model, 50)], protocol), check=stop))
    assert len(run(device, model)) == 1


def test_the_runner_ends_with_the_device(model: Path) -> None:
    with LocalDevice() as device:
        run(device, model)
        runner = runner_of(device)
    assert not runner.is_running()


def test_two_agents_cannot_measure_on_one_machine() -> None:
    with LocalDevice(), pytest.raises(DeviceFault, match="Another agent already measures on this machine"):
        LocalDevice()
    with LocalDevice():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_another_user_may_measure_once_the_first_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file of the first one stays, in a folder from which only its owner can take it."""
    with tempfile.TemporaryDirectory() as shared:
        os.chmod(shared, 0o1777)
        monkeypatch.setattr(tempfile, "tempdir", shared)
        os.close(_lock_machine())
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                _lock_machine()
                os._exit(0)
            finally:  # whatever it was, there is to be no second pytest
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_the_report_says_what_is_measured_under_what(device: LocalDevice) -> None:
    report = device.report
    assert report.serial.startswith("host-")
    assert (report.protocol.runtime, report.protocol.delegate, report.protocol.threads) == ("litert", "xnnpack", 1)
    assert report.protocol.runtime_version == local_device.runtime_version()
    assert report.protocol.core_mask == device.identity.core_mask
