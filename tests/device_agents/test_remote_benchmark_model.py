"""A replayed Pixel 3 at the far end of a real `adbd`, with a stand-in for benchmark_model that really runs models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.debian_adbd import Adbd
from device_agents.adb import parse_target
from device_agents.adb_device import AdbDevice
from device_agents.benchmark_model import Build
from device_agents.benchmark_output import Program, UnparsableOutput
from device_agents.enrolment import Enrolment, enrol
from device_agents.errors import DeviceFault, SuspectedFault
from device_agents.litert_runner import CANNOT_WRITE
from device_agents.opening import PROBE, open_device
from device_agents.remote_benchmark_model import RemoteBenchmarkModel
from device_agents.turns import Plan, Ran, Refused, Visit
from latency_contract.devices import DeviceKind
from latency_contract.operators import IBConv
from latency_contract.protocols import BlockStatistic
from latency_service.tflite_converter import convert
from tests.conftest import sha256
from tests.device_agents.replayed_phone import PROGRAMS, ReplayedPhone

pytestmark = pytest.mark.usefixtures("debian_adbd")

Make = Callable[..., IBConv]
BINARY = PROGRAMS / "benchmark_model"


@pytest.fixture
def phone(tmp_path: Path) -> ReplayedPhone:
    return ReplayedPhone(tmp_path / "phone")


@pytest.fixture
def model(tmp_path: Path, operator: Make) -> Path:
    content = convert(operator(height=16, width=16, in_channels=16, out_channels=16))
    path = tmp_path / f"{sha256(content)}.tflite"
    path.write_bytes(content)
    return path


@contextmanager
def opened(phone: ReplayedPhone, tmp_path: Path, *, behaviour: str = "") -> Iterator[AdbDevice]:
    environment = phone.environment | {"PADNAS_STANDIN": behaviour}
    with Adbd(tmp_path / "device", environment=environment) as adbd:
        target = parse_target(f"adb:127.0.0.1:{adbd.port}")
        with open_device(target, keys=tmp_path / "key", benchmark_binary=BINARY, folder=f"{tmp_path}/padnas") as device:
            yield device


def run(device: AdbDevice, model: Path, *models: Path, rounds: int = 1, **changes: Any) -> list[Visit | Refused]:
    protocol = device.report.protocol.model_copy(update={"block_ms": 20.0, "reference_block_ms": 5.0} | changes)
    return list(device.run(Plan(model, [(m, rounds) for m in models or (model,)], protocol), lambda: None))


def test_the_phone_is_reported_as_what_it_is(phone: ReplayedPhone, tmp_path: Path) -> None:
    with opened(phone, tmp_path) as device:
        report = device.report
    assert (report.model, report.kind) == ("Pixel 3", DeviceKind.ANDROID)
    assert report.protocol.runtime == "tflite-benchmark-model"
    assert report.protocol.runtime_version == sha256(BINARY.read_bytes())[:12]
    assert (report.protocol.core_mask, report.protocol.statistic) == ("80", BlockStatistic.MEDIAN)
    assert device.identity.runner_sha256 == sha256(BINARY.read_bytes())


def test_a_block_is_one_process_and_one_number(
    phone: ReplayedPhone,
    model: Path,
    tmp_path: Path,
) -> None:
    with opened(phone, tmp_path) as device:
        results = run(device, model, rounds=2)
    assert len(results) == 2
    for result in results:
        assert isinstance(result, Visit)
        assert len(result.samples_ms) == 1
        assert 0 < result.samples_ms[0] < 100
        assert result.summary_of is not None
        assert result.summary_of >= 5
        assert result.rejected is None
        assert (result.before.governor, result.before.thermal_status, result.after.screen_on) == ("schedutil", 0, False)
    remaining = {path.name for path in (tmp_path / "padnas").iterdir()}
    assert remaining == {"cache", "lock"}


@pytest.mark.parametrize(
    ("behaviour", "runtime", "statistic"),
    [
        ("old", "tflite-benchmark-model", BlockStatistic.MEAN),
        ("litert", "litert-benchmark-model", BlockStatistic.MEDIAN),
    ],
)
def test_another_build_makes_another_protocol(
    phone: ReplayedPhone,
    model: Path,
    tmp_path: Path,
    behaviour: str,
    runtime: str,
    statistic: BlockStatistic,
) -> None:
    with opened(phone, tmp_path, behaviour=behaviour) as device:
        assert (device.report.protocol.runtime, device.report.protocol.statistic) == (runtime, statistic)
        assert isinstance(run(device, model)[0], Visit)


def test_a_build_that_does_not_run_with_xnnpack_is_not_measured_with(phone: ReplayedPhone, tmp_path: Path) -> None:
    with (
        pytest.raises(DeviceFault, match=r"does not run models with XNNPACK\. Give one that does"),
        opened(phone, tmp_path, behaviour="no-xnnpack"),
    ):
        pass
    assert [path.name for path in (tmp_path / "padnas" / "cache").iterdir()] == [sha256(BINARY.read_bytes())]


@pytest.mark.parametrize(("behaviour", "said"), [("", ""), ("litert", " (does not say whether XNNPACK ran)")])
def test_the_runners_name_tells_whether_xnnpack_is_known_to_run(
    phone: ReplayedPhone, tmp_path: Path, behaviour: str, said: str
) -> None:
    with opened(phone, tmp_path, behaviour=behaviour) as device:
        assert device.identity.runner.partition("benchmark_model")[2] == said


def test_a_program_that_is_there_already_is_not_sent_again(phone: ReplayedPhone, tmp_path: Path) -> None:
    cached = tmp_path / "padnas" / "cache" / sha256(BINARY.read_bytes())
    with opened(phone, tmp_path):
        arrived = cached.stat().st_ino
    with opened(phone, tmp_path):
        assert cached.stat().st_ino == arrived
    cached.write_bytes(BINARY.read_bytes()[:-1])
    with opened(phone, tmp_path):
        assert cached.read_bytes() == BINARY.read_bytes()


def test_a_full_phone_is_told_from_a_model_that_fails(phone: ReplayedPhone, model: Path, tmp_path: Path) -> None:
    enrolment = enrol(phone)
    runner = RemoteBenchmarkModel(b"", Build(Program.TFLITE, False, BlockStatistic.MEAN), enrolment)
    script = runner.plan_text(Plan(model, [(model, 1)], PROBE))
    assert phone(f"cd {tmp_path}; ln -s /dev/full steps\n{script}").status == CANNOT_WRITE


# Of a block that gives no latency, whatever of it arrives.
STEPS = (
    "@{m} pinned Cpus_allowed_list: 7\n@{m} state\n@frequency\n@end\n@{m} end\n@{m} started -1 170\n@{m} printed -1 0\n"
)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolment:
    return enrol(ReplayedPhone(tmp_path_factory.mktemp("phone") / "state"))


@given(data=st.data())
def test_whatever_a_phone_says_there_are_steps_or_the_device_is_at_fault(
    enrolled: Enrolment, data: st.DataObject
) -> None:
    """Any part of the text replaced by any other."""
    runner = RemoteBenchmarkModel(b"", Build(Program.TFLITE, False, BlockStatistic.MEDIAN), enrolled)
    text = STEPS.replace("@{m}", runner._mark)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    text = text[:start] + data.draw(st.text() | st.sampled_from([runner._mark, " -1", "9" * 30, "\n"])) + text[end:]
    with suppress(DeviceFault):
        for step in runner.steps(text, Plan(Path("a"), [(Path("b"), 1)], PROBE)):
            assert not isinstance(step, Ran)


def test_a_block_during_which_the_screen_went_on_is_rejected(
    phone: ReplayedPhone,
    model: Path,
    tmp_path: Path,
) -> None:
    with opened(phone, tmp_path) as device:
        phone.change("dumpsys/deviceidle-get-screen", "false", "true", after=2)  # enrolment, and before the block
        results = run(device, model, rounds=2)
        assert [result.rejected for result in results if isinstance(result, Visit)] == ["its screen is on"] * 2
        assert device.waits_for(device.state()) == "its screen is on"


def test_a_program_that_cannot_be_started_is_the_devices_fault(
    phone: ReplayedPhone,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "benchmark_model"
    broken.write_text("#!/no/such/interpreter\n")
    with Adbd(tmp_path / "device", environment=phone.environment) as adbd:
        target = parse_target(f"adb:127.0.0.1:{adbd.port}")
        with pytest.raises(DeviceFault, match=r"neither TensorFlow Lite's benchmark_model"):
            open_device(target, keys=tmp_path / "key", benchmark_binary=broken, folder=f"{tmp_path}/padnas")


def test_a_program_for_another_processor_is_refused_before_it_is_sent(
    phone: ReplayedPhone,
    tmp_path: Path,
) -> None:
    with Adbd(tmp_path / "device", environment=phone.environment) as adbd:
        target = parse_target(f"adb:127.0.0.1:{adbd.port}")
        with pytest.raises(ValueError, match=r"is built for x86_64, but adb:\S+ is arm64-v8a"):
            open_device(target, keys=tmp_path / "key", benchmark_binary=Path("/bin/true"), folder=f"{tmp_path}/padnas")
    assert not (tmp_path / "padnas").exists()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("signal:11", "The runner was ended by signal 11 on this model, twice."),
        ("hang", "The runner did not finish a block in time on this model, twice."),
    ],
)
def test_a_model_that_ends_the_program_twice_is_at_fault_and_its_neighbour_is_measured(
    phone: ReplayedPhone,
    model: Path,
    tmp_path: Path,
    operator: Make,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    reason: str,
) -> None:
    monkeypatch.setattr("device_agents.remote_benchmark_model.block_limit_s", lambda _: 5)
    content = convert(operator(height=20))
    bad = tmp_path / f"{sha256(content)}.tflite"
    bad.write_bytes(content)
    with opened(phone, tmp_path) as device:
        _let_it_do(device, behaviour, to=bad)
        first = run(device, model, bad, model)
        second = run(device, model, bad, model)
    assert [type(result) for result in first] == [Visit]
    assert Refused("refused", 0, reason) in second
    assert sum(isinstance(result, Visit) for result in second) == 1


def test_output_that_gives_no_latency_is_an_error_that_carries_it_and_names_the_suspect(
    phone: ReplayedPhone,
    model: Path,
    tmp_path: Path,
    operator: Make,
) -> None:
    content = convert(operator(height=20))
    bad = tmp_path / f"{sha256(content)}.tflite"
    bad.write_bytes(content)
    with opened(phone, tmp_path) as device:
        _let_it_do(device, "garbage", to=bad)
        with pytest.raises(SuspectedFault) as fault:
            run(device, model, bad, model)
        assert fault.value.suspect == bad
        assert isinstance(fault.value.__cause__, UnparsableOutput)
        assert fault.value.__cause__.output
        with pytest.raises(UnparsableOutput):
            run(device, bad, model)  # as the reference operator, it is suspected of nothing


def _let_it_do(device: AdbDevice, behaviour: str, *, to: Path) -> None:
    """From now on the stand-in misbehaves when it is given this model: the plan says so in its environment."""
    plan_text = device._runner.plan_text

    def altered(plan: Plan) -> str:
        return plan_text(plan).replace(
            "timeout ",
            "PADNAS_STANDIN=\n"
            f'case "$*" in *{to.name}*) PADNAS_STANDIN={behaviour} ;; esac\n'
            "export PADNAS_STANDIN\ntimeout ",
            1,
        )

    device._runner.plan_text = altered  # type: ignore[method-assign]
