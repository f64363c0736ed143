"""This machine as a device: a real runner process and real TFLite models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import tensorflow as tf

from device_agents import local_device
from device_agents.errors import DeviceFault, SubjectFault
from device_agents.local_device import LocalDevice, fastest_core
from latency_contract.operators import IBConv
from latency_service.tflite_converter import convert
from tests.device_agents import faulty_runners

Make = Callable[..., IBConv]


@pytest.fixture
def device() -> Iterator[LocalDevice]:
    with LocalDevice() as device:
        yield device


@pytest.fixture
def model(tmp_path: Path, operator: Make) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(operator(height=16, width=16, in_channels=16, out_channels=16)))
    return path


def run(
    device: LocalDevice, model: Path, *, block_ms: float = 5.0, min_runs: int = 5, max_runs: int = 1000
) -> list[float]:
    return device.run_block(model, warmup_ms=1.0, block_ms=block_ms, min_runs=min_runs, max_runs=max_runs)


def runner_of(device: LocalDevice) -> psutil.Process:
    assert device._runner is not None
    return psutil.Process(device._runner._process.pid)


def test_a_block_gives_a_positive_time_for_every_run(device: LocalDevice, model: Path) -> None:
    samples = run(device, model)
    assert len(samples) >= 5
    assert all(0 < sample < 1000 for sample in samples)
    assert sum(samples) >= 5.0 * 0.9


def test_a_slow_model_still_gets_the_fewest_runs(device: LocalDevice, model: Path) -> None:
    assert len(run(device, model, block_ms=0.001, min_runs=7)) == 7


def test_a_fast_model_gets_no_more_than_the_most_runs(device: LocalDevice, model: Path) -> None:
    assert len(run(device, model, block_ms=1000.0, max_runs=9)) == 9


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


def test_a_corrupt_model_is_the_subjects_fault(device: LocalDevice, model: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.tflite"
    corrupt.write_bytes(b"\x00" * 16 + model.read_bytes()[16:])
    with pytest.raises(SubjectFault, match="LiteRT refuses this model"):
        run(device, corrupt)
    assert run(device, model)


def test_a_model_of_whole_numbers_is_the_subjects_fault(device: LocalDevice, tmp_path: Path) -> None:
    """Whoever gives a file to be measured may give a quantised one."""
    add_one = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec((1, 8), tf.int32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([add_one.get_concrete_function()], tf.Module())
    path = tmp_path / "int32.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(SubjectFault, match="Got value of type FLOAT32 but expected type INT32"):
        run(device, path)


def test_a_missing_model_is_the_subjects_fault(device: LocalDevice, tmp_path: Path) -> None:
    with pytest.raises(SubjectFault, match="LiteRT refuses this model"):
        run(device, tmp_path / "gone.tflite")


def test_a_runner_killed_between_blocks_is_started_again(device: LocalDevice, model: Path) -> None:
    run(device, model)
    runner_of(device).kill()
    assert run(device, model)


def test_a_model_that_ends_the_runner_twice_is_at_fault(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.Dies)
    with pytest.raises(SubjectFault, match="The runner was ended by signal 9 on this model, twice"):
        run(device, model)
    monkeypatch.undo()
    assert run(device, model)


def test_a_hung_runner_is_ended_by_its_deadline(
    device: LocalDevice, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_device, "BLOCK_S", 0.05)
    monkeypatch.setattr(local_device, "litert_runner", faulty_runners.Hangs)
    with pytest.raises(SubjectFault, match="did not answer within 0 s on this model, twice"):
        run(device, model)
    assert [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE] == []


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


def test_the_report_says_what_is_measured_under_what(device: LocalDevice) -> None:
    report = device.report
    assert report.serial.startswith("host-")
    assert (report.protocol.runtime, report.protocol.delegate, report.protocol.threads) == ("litert", "xnnpack", 1)
    assert report.protocol.runtime_version == local_device.runtime_version()
