"""What a device says of itself: a replayed Pixel 3 through real shells, this machine as a board, answers as text."""

import hashlib
import platform
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from benchmarks.debian_adbd import Adbd
from device_agents.adb import AdbLink, Output
from device_agents.enrolment import Cluster, Enrolment, cores_in, enrol
from device_agents.errors import DeviceFault
from device_agents.local_device import machine_serial, processor_name
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.protocols import Protocol
from tests.device_agents.replayed_phone import ReplayedPhone

CPU = "sys/devices/system/cpu"
PHONE = """@boot 5f0c5a52-8a0e-4ad5-9d3b-0d2c3f6b7a11
@machine aarch64
@serial R58M1234
@model SM-A525F
@soc
@platform atoll
@hardware qcom
@fingerprint samsung/a52qnsxx/a52q:9/PPR1/A525:user/release-keys
@abi arm64-v8a
@cpuinfo CPU part\t: 0x804
@cpuinfo CPU part\t: 0x805
"""
BOARD = """@boot 5f0c5a52-8a0e-4ad5-9d3b-0d2c3f6b7a11
@machine aarch64
@system Linux 6.1.0
@machine-id 0123456789abcdef0123456789abcdef
@cpuinfo CPU implementer\t: 0x41
@cpuinfo CPU part\t: 0xd08
@cpuinfo Model\t\t: Raspberry Pi 4 Model B <Rev 1.4>
"""


@pytest.fixture
def phone(tmp_path: Path) -> ReplayedPhone:
    return ReplayedPhone(tmp_path / "phone")


def cpu(**files: str) -> str:
    """Lines that say what files of the processor hold; `cpu0__online` is cpu0/online."""
    paths = {name.replace("__", "/"): text for name, text in files.items()}
    return "".join(f"@file /sys/devices/system/cpu/{path}:{text}\n" for path, text in paths.items())


def policies(*clusters: tuple[str, int]) -> str:
    """The files of frequency policies, from the cores that they list and their maximal frequencies."""
    return "".join(
        cpu(**{f"cpufreq__policy{n}__related_cpus": cores, f"cpufreq__policy{n}__cpuinfo_max_freq": str(khz)})
        for n, (cores, khz) in enumerate(clusters)
    )


def told(*texts: str) -> Enrolment:
    """Enrolment of a device that answers so, and has no readings."""
    answers = iter(["".join(texts), ""])
    return enrol(lambda _: Output(0, next(answers)))


OCTA = cpu(online="0-7", present="0-7")
TWO_AND_SIX = policies(("0 1 2 3 4 5", 1804800), ("6 7", 2323200))


def test_a_pixel_3_is_enrolled_by_every_shell(shell: list[str], tmp_path: Path) -> None:
    device = enrol(ReplayedPhone(tmp_path / "phone", shell=shell))
    assert device.android
    assert (device.serial, device.model, device.soc) == ("89AX0TEST", "Pixel 3", "SDM845")
    assert device.os_build == "google/blueline/blueline:12/SP1A.210812.016.C2/8618562:user/release-keys"
    assert device.abi == "arm64-v8a"
    assert device.clusters == (Cluster((0, 1, 2, 3), 1766400), Cluster((4, 5, 6, 7), 2803200))
    assert (device.large, device.core, device.core_mask, device.max_khz) == ((4, 5, 6, 7), 7, "80", 2803200)
    assert device.boot_id == "5f0c5a52-8a0e-4ad5-9d3b-0d2c3f6b7a11"
    assert device.free_kb is not None
    assert device.free_kb > 0
    assert device.litert is None
    assert (device.state.governor, device.state.unreadable) == ("schedutil", ())


def test_a_device_is_the_same_while_only_its_state_changes(phone: ReplayedPhone) -> None:
    first = enrol(phone)
    phone.change("proc/sys/kernel/random/boot_id", "5f0c5a52", "00000000")
    phone.change("dumpsys/battery", "level: 86", "level: 85")
    phone.change(f"{CPU}/online", "0-7", "0-1,4-7")
    second = enrol(phone)
    assert second != first
    assert second.lasting == first.lasting


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("getprop", "89AX0TEST", "89AX0OTHER"),
        ("getprop", "blueline:12", "blueline:13"),
        (f"{CPU}/online", "0-7", "0-6"),
    ],
    ids=["unit", "system", "core"],
)
def test_another_unit_system_or_core_is_another_device(phone: ReplayedPhone, file: str, old: str, new: str) -> None:
    first = enrol(phone)
    phone.change(file, old, new)
    assert enrol(phone).lasting != first.lasting


def test_enrolment_takes_two_round_trips(phone: ReplayedPhone) -> None:
    scripts: list[str] = []

    def shell(script: str) -> Output:
        scripts.append(script)
        return phone(script)

    enrol(shell)
    assert len(scripts) == 2


def test_this_machine_is_a_board_like_itself() -> None:
    """Through its own shell, without a phone's programs, it is what the local device says it is."""

    def shell(script: str) -> Output:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
        return Output(done.returncode, done.stdout)

    device = enrol(shell)
    assert not device.android
    assert (device.model, device.serial) == (processor_name(), machine_serial())
    assert device.abi == {"x86_64": "x86_64", "aarch64": "arm64-v8a"}[platform.machine()]
    assert device.core in device.online
    assert set(device.state.unreadable) >= {"thermal_status", "battery_pct", "battery_c", "charging", "screen_on"}


def test_what_is_enrolled_is_what_the_service_accepts(phone: ReplayedPhone) -> None:
    device = enrol(phone)
    protocol = Protocol(runtime="litert", runtime_version="2.3.0", core_mask=device.core_mask)
    report = DeviceReport(
        serial=device.serial,
        model=device.model,
        kind=DeviceKind.ANDROID,
        soc=device.soc,
        os_build=device.os_build,
        protocol=protocol,
    )
    assert report.protocol.core_mask == "80"


def test_the_pin_of_a_replayed_phone_is_what_a_phone_would_say(phone: ReplayedPhone) -> None:
    look = "grep Cpus_allowed_list /proc/$$/status"
    assert phone(f"taskset 80 sh -c '{look}; cat /proc/$$/status | grep Cpus_allowed_list'").text.split()[1::2] == [
        "7",
        "7",
    ]
    assert phone(look).text.split() == ["Cpus_allowed_list:", "0-7"]
    assert phone("taskset 100 true").status == 1


def test_a_large_core_that_is_offline_is_not_measured_on(phone: ReplayedPhone) -> None:
    phone.change(f"{CPU}/online", "0-7", "0-6")
    phone.change(f"{CPU}/cpu7/online", "1", "0")
    device = enrol(phone)
    assert (device.core, device.large[-1]) == (6, 7)


def test_a_device_without_a_large_core_online_is_at_fault(phone: ReplayedPhone) -> None:
    phone.change(f"{CPU}/online", "0-7", "0-3")
    with pytest.raises(DeviceFault, match=r"No large core is online \(large: 4, 5, 6, 7, online: 0, 1, 2, 3\)"):
        enrol(phone)


def test_each_cores_own_file_stands_in_for_the_policies(phone: ReplayedPhone) -> None:
    for policy in (0, 4):
        phone.hide(f"{CPU}/cpufreq/policy{policy}/related_cpus")
    assert enrol(phone).clusters == (Cluster((0, 1, 2, 3), 1766400), Cluster((4, 5, 6, 7), 2803200))


def test_each_cores_own_switch_stands_in_for_the_list(phone: ReplayedPhone) -> None:
    """The first core has no switch, since it cannot be switched off."""
    phone.hide(f"{CPU}/online", f"{CPU}/cpu0/online")
    phone.change(f"{CPU}/cpu7/online", "1", "0")
    assert enrol(phone).online == (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("name", ["cpufreq/policy0", "cpufreq/policy4", "cpufreq"])
def test_a_known_model_that_hides_frequencies_is_measured_on_its_large_core(phone: ReplayedPhone, name: str) -> None:
    phone.hide(f"{CPU}/{name}")
    device = enrol(phone)
    assert device.core_mask == "80"
    assert device.max_khz == (2803200 if name == "cpufreq/policy0" else None)


def test_a_known_model_with_other_frequencies_is_at_fault(phone: ReplayedPhone) -> None:
    phone.change(f"{CPU}/cpufreq/policy0/cpuinfo_max_freq", "1766400", "2900000")
    with pytest.raises(DeviceFault, match="A Pixel 3 has its large cores at 4, 5, 6, 7, but this device's frequencies"):
        enrol(phone)


def test_an_unknown_model_is_measured_on_its_fastest_cluster() -> None:
    device = told(PHONE, OCTA, TWO_AND_SIX)
    assert (device.large, device.core, device.core_mask) == ((6, 7), 7, "80")
    assert (device.soc, device.max_khz) == ("atoll", 2323200)


def test_a_single_fastest_core_need_not_be_the_last() -> None:
    device = told(PHONE, OCTA, policies(("0-3", 1800000), ("5-7", 2400000), ("4", 2840000)))
    assert (device.core, device.core_mask) == (4, "10")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([OCTA], "hides the frequencies of its cores"),
        ([OCTA, policies(("0-3", 1800000))], "hides the frequencies of some of its cores"),
        ([OCTA, policies(("0-7", 0))], "hides the frequencies of its cores"),
        ([OCTA, policies(("0-7", 1800000))], "cores of 2 kinds with one frequency"),
        ([OCTA, policies(("0-5", 1800000), ("5-7", 2400000))], "Two frequency policies of the device have the same"),
        ([OCTA, TWO_AND_SIX, cpu(cpu7__cpufreq__cpuinfo_max_freq="1804800")], "two different maximal frequencies"),
        ([OCTA, policies(("all", 1800000))], "does not say which cores it means: 'all'"),
        ([TWO_AND_SIX], "does not say which of its cores are online"),
        ([cpu(online="0-8", present="0-7"), TWO_AND_SIX], "which it does not have: 8"),
        ([cpu(online="0-64"), policies(("0-64", 1))], "which it does not have: 64"),
    ],
)
def test_a_topology_that_is_unclear_is_the_devices_fault(files: list[str], complaint: str) -> None:
    with pytest.raises(DeviceFault, match=complaint):
        told(PHONE, *files)


def test_a_board_with_one_kind_of_core_needs_no_frequencies() -> None:
    device = told(BOARD, cpu(online="0-3", present="0-3"))
    assert (device.core, device.large, device.max_khz) == (3, (0, 1, 2, 3), None)
    assert (device.model, device.soc) == ("Raspberry Pi 4 Model B Rev 1.4", "Raspberry Pi 4 Model B Rev 1.4, 4 cores")
    assert device.abi == "arm64-v8a"


def test_a_board_with_two_kinds_of_core_needs_frequencies() -> None:
    kinds = "@cpuinfo CPU part\t: 0xd03\n"
    with pytest.raises(DeviceFault, match="hides the frequencies of its cores"):
        told(BOARD, kinds, cpu(online="0-5", present="0-5"))
    device = told(BOARD, kinds, cpu(online="0-5", present="0-5"), policies(("0-3", 1416000), ("4 5", 1800000)))
    assert device.core == 5


def test_a_boards_machine_id_leaves_only_as_a_hash() -> None:
    device = told(BOARD, cpu(online="0-3", present="0-3"))
    hashed = hashlib.sha256(b"0123456789abcdef0123456789abcdef").hexdigest()
    assert device.serial == f"host-{hashed[:12]}"
    assert "0123456789abcdef" not in repr(device)


def without(text: str, names: Iterable[str]) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line[1:].split()[0] not in names)


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ("", "does not say when it booted"),
        (PHONE.replace("5f0c5a52", "$(reboot)"), "does not say when it booted"),
        (PHONE.replace("SM-A525F", "<>"), "does not say what model it is"),
        (without(PHONE, ["serial"]), r"has no serial number \(ro.serialno\)"),
        (PHONE.replace("R58M1234", "unknown"), "has no serial number"),
        (PHONE.replace("R58M1234", "0123456789ABCDEF"), "has no serial number"),
        (PHONE.replace("R58M1234", "R58M;reboot"), "has no serial number"),
        (without(BOARD, ["machine-id"]), r"has no machine id \(/etc/machine-id\)"),
        (PHONE + "@missing taskset\n@missing tar\n", "The device lacks taskset, tar,"),
    ],
)
def test_a_device_that_does_not_say_what_it_is_is_at_fault(answers: str, complaint: str) -> None:
    with pytest.raises(DeviceFault, match=complaint):
        told(answers, OCTA, TWO_AND_SIX)


def test_names_have_only_letters_that_the_service_accepts() -> None:
    device = told(PHONE.replace("SM-A525F", 'A"52`<b>\x1b[31m$(id)'), OCTA, TWO_AND_SIX)
    assert device.model == "A52b31m(id)"


def test_litert_of_a_board_is_known_by_version_and_hash() -> None:
    board = [BOARD, cpu(online="0-3", present="0-3")]
    device = told(*board, f"@litert 2.3.0 {'ab' * 32} 3.11.2\n")
    assert device.litert == ("2.3.0", "ab" * 32, "3.11.2")
    assert told(*board, "@litert 2.3.0 None 3.11.2\n").litert is None


@pytest.mark.parametrize(
    ("line", "free_kb"),
    [
        ("/dev/block/dm-5 54112252 9212104 44769076 18% /data", 44769076),
        ("/dev/fuse 1 1 0 100% /a 5% b", 0),
        ("df: /data/local/tmp: Permission denied", None),
    ],
)
def test_free_space_is_read_from_df(line: str, free_kb: int | None) -> None:
    assert told(PHONE, OCTA, TWO_AND_SIX, f"@free {line}\n").free_kb == free_kb


@pytest.mark.parametrize(
    ("text", "cores"),
    [("7", [7]), ("0-3,7", [0, 1, 2, 3, 7]), ("4 5 6 7", [4, 5, 6, 7]), (" 0, 2\n", [0, 2])],
)
def test_lists_of_cores_in_all_shapes(text: str, cores: list[int]) -> None:
    assert cores_in(text) == cores


@pytest.mark.parametrize("text", ["", "-", "0-", "a", "0;1", "99999"])
def test_what_is_no_list_of_cores_is_the_devices_fault(text: str) -> None:
    with pytest.raises(DeviceFault, match="does not say which cores"):
        cores_in(text)


def test_a_pixel_3_is_enrolled_over_adb(
    debian_adbd: Path,  # noqa: ARG001
    linked: Callable[[int], AdbLink],
    phone: ReplayedPhone,
    tmp_path: Path,
) -> None:
    with Adbd(tmp_path / "device", environment=phone.environment) as adbd:
        link = linked(adbd.port)
        device = enrol(lambda script: link.run(script, limit_s=60.0))
    assert (device.serial, device.model, device.core_mask) == ("89AX0TEST", "Pixel 3", "80")
    assert device.state.unreadable == ()
