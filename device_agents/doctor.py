"""Is this device fit to measure, and if not, why not and what to do about it?"""

import os
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from device_agents.adb import AdbTarget
from device_agents.adb_device import SPARE_KB
from device_agents.enrolment import Enrolment
from device_agents.errors import DeviceFault
from device_agents.gates import BOARD, PHONE, Limits, not_fit
from device_agents.local_device import LocalDevice, maximal_khz, processor_name, runtime_version
from device_agents.opening import open_device
from latency_contract.measurements import DeviceState

WATCH_S = 2.0  # how long the processor is watched
BUSY_SHARE = 0.10  # of one core taken by others that begins to show in measurements
TIMER_LIMIT_NS = 1000  # a timer coarser than this hides small operators
ROOT = "as root on the board: cpupower frequency-set -g performance"
SCREEN_OFF = "adb shell svc power stayon false; adb shell input keyevent KEYCODE_SLEEP"
OF_PHONES = ("thermal_status", "battery_pct", "battery_c", "charging", "screen_on")  # what no board has
READABLE_AS = {
    "governor": "governor",
    "frequency_khz": "frequency",
    "max_frequency_khz": "cap on the frequency",
    "temperature_c": "temperature",
    "thermal_status": "thermal status",
    "cooling_state": "cooling devices",
    "battery_pct": "battery level",
    "battery_c": "battery temperature",
    "charging": "charging",
    "screen_on": "screen",
}


class Finding(StrEnum):
    GOOD = "good"
    WARNING = "warning"  # measurements will be wider or slower to come
    UNFIT = "unfit"  # nothing can be measured


class Check(NamedTuple):
    name: str
    finding: Finding
    seen: str
    advice: str = ""


def examine_local() -> list[Check]:
    """Every check of this machine."""
    try:
        device = LocalDevice()
    except DeviceFault as fault:
        return [Check("device", Finding.UNFIT, str(fault), "see the sentence on the left")]
    with device:
        return [
            Check("device", Finding.GOOD, f"{processor_name()}, serial {device.identity.serial}"),
            Check("runtime", Finding.GOOD, f"LiteRT {runtime_version()}"),
            _pinning(device),
            _governor(device),
            _timer(),
            *_load(device.core),
        ]


def examine(target: AdbTarget, *, keys: Path, benchmark_binary: Path | None, folder: str | None) -> list[Check]:
    """Every check of a device over ADB: it is opened as for measuring, and nothing of it is left there.

    Raises:
        ValueError: the binary is for another kind of processor, or the folder cannot be one.
    """
    try:
        device = open_device(target, keys=keys, benchmark_binary=benchmark_binary, folder=folder)
    except DeviceFault as fault:
        return [Check("device", Finding.UNFIT, str(fault), "see the sentence on the left")]
    with device:
        return examine_remote(device.enrolment, device.state(), runner=device.identity.runner)


def examine_remote(enrolment: Enrolment, readings: DeviceState, *, runner: str) -> list[Check]:
    """What a device over ADB is, and its state now. What a gate would wait for is unfit.

    `runner` is the program that was found to work there.
    """
    return [
        Check("device", Finding.GOOD, f"{enrolment.model}, {enrolment.soc}, serial {enrolment.serial}"),
        Check("system", Finding.GOOD, f"{enrolment.os_build}, {enrolment.abi}"),
        Check("runner", Finding.GOOD, runner),
        _remote_core(enrolment),
        _remote_governor(enrolment, readings),
        *_gates(enrolment, readings),
        *_charging(readings),
        _free_space(enrolment),
        _unreadable(enrolment, readings),
    ]


def _remote_core(enrolment: Enrolment) -> Check:
    clusters = ", ".join(f"{_cores(c.cores)} up to {c.max_khz / 1e6:.2f} GHz" for c in enrolment.clusters)
    seen = f"core {enrolment.core} (mask {enrolment.core_mask}) of {clusters or _cores(enrolment.online)}"
    if enrolment.core != enrolment.large[-1]:
        advice = "let it cool and charge, restart the agent: another core makes another table"
        return Check("core", Finding.WARNING, f"{seen}; core {enrolment.large[-1]} is offline", advice)
    if enrolment.max_khz is None:
        advice = "none without root: that it is throttled will show only in its temperature and in the reference"
        return Check("core", Finding.WARNING, f"{seen}; its frequency cannot be read", advice)
    return Check("core", Finding.GOOD, seen)


def _cores(cores: Sequence[int]) -> str:
    return str(cores[0]) if len(cores) == 1 else f"{cores[0]}-{cores[-1]}"


def _remote_governor(enrolment: Enrolment, readings: DeviceState) -> Check:
    governor = readings.governor
    if governor is None:
        return Check("governor", Finding.WARNING, "cannot be read", "none needed on a virtual machine or without root")
    if governor in ("powersave", "conservative"):
        advice = "switch battery saver off: adb shell settings put global low_power 0" if enrolment.android else ROOT
        return Check("governor", Finding.WARNING, f"'{governor}' keeps the frequency low", advice)
    if enrolment.android or governor == "performance":
        return Check("governor", Finding.GOOD, governor)
    return Check("governor", Finding.WARNING, f"'{governor}' changes the frequency under load", ROOT)


def _gates(enrolment: Enrolment, readings: DeviceState) -> list[Check]:
    """Each gate alone, by the rule that measuring waits by."""
    limits = PHONE if enrolment.android else BOARD
    max_khz = enrolment.max_khz if enrolment.android else None
    cool = "let it cool: out of its case, off its cushion, a fan on it; fewer phones to a shelf"
    cap = "let it cool; switch battery saver off: adb shell settings put global low_power 0"
    rows: list[tuple[str, dict[str, int | float | bool | None], str]] = [
        ("cap", {"max_frequency_khz": readings.max_frequency_khz}, cap),
        ("temperature", {"temperature_c": readings.temperature_c}, cool),
        ("throttling", {"thermal_status": readings.thermal_status, "cooling_state": readings.cooling_state}, cool),
        ("battery", {"battery_pct": readings.battery_pct}, "charge it: a port that gives 500 mA or more"),
        ("battery heat", {"battery_c": readings.battery_c}, f"stop charging for a while; {cool}"),
        ("screen", {"screen_on": readings.screen_on}, SCREEN_OFF),
    ]
    checks = []
    for name, fields, advice in rows:
        seen = {field: value for field, value in fields.items() if value is not None}
        if seen:
            checks.append(_gate(name, DeviceState(**seen), advice, limits=limits, max_khz=max_khz))
    return checks


def _gate(name: str, state: DeviceState, advice: str, *, limits: Limits, max_khz: int | None) -> Check:
    reason = not_fit(state, limits=limits, max_khz=max_khz)
    if reason is not None:
        return Check(name, Finding.UNFIT, reason, advice)
    seen = (_shown(field, value) for field, value in state if value is not None)
    return Check(name, Finding.GOOD, ", ".join(seen))


def _shown(field: str, value: float) -> str:
    """A reading for people."""
    match field:
        case "max_frequency_khz":
            return f"none below {value / 1e6:.2f} GHz"
        case "temperature_c" | "battery_c":
            return f"{value:.1f} °C"
        case "battery_pct":
            return f"{value} %"
        case "screen_on":
            return "off"
        case _:
            return f"{READABLE_AS[field]} {value}"


def _charging(readings: DeviceState) -> list[Check]:
    if readings.charging is None:
        return []
    if readings.charging:
        advice = "full is best: wait, or use a hub whose ports can be switched, and charge between tables"
        return [Check("charging", Finding.WARNING, "charges, which heats it", advice)]
    return [Check("charging", Finding.GOOD, "no current into the battery")]


def _free_space(enrolment: Enrolment) -> Check:
    if enrolment.free_kb is None:
        return Check("space", Finding.WARNING, "cannot be read", f"keep {SPARE_KB // 1024} MB free")
    seen = f"{enrolment.free_kb // 1024} MB free"
    if enrolment.free_kb < SPARE_KB:
        where = "/data: remove apps or files" if enrolment.android else "/var/tmp"
        return Check("space", Finding.UNFIT, seen, f"free {SPARE_KB // 1024} MB at least in {where}")
    return Check("space", Finding.GOOD, seen)


def _unreadable(enrolment: Enrolment, readings: DeviceState) -> Check:
    missing = [name for name in readings.unreadable if enrolment.android or name not in OF_PHONES]
    if not missing:
        return Check("readable", Finding.GOOD, "everything that is gated on")
    seen = f"not without root: {', '.join(READABLE_AS[name] for name in missing)}"
    advice = "every measurement names it; watch the spread between units, since nothing else shows what it hides"
    if "battery_pct" in missing or "thermal_status" in missing:
        advice = f"if someone pretended: adb shell dumpsys battery reset; adb shell cmd thermalservice reset. {advice}"
    return Check("readable", Finding.WARNING, seen, advice)


def _pinning(device: LocalDevice) -> Check:
    if device.core is None:
        return Check("core", Finding.WARNING, "this system cannot pin a process to a core", "prefer Linux")
    khz = maximal_khz(device.core)
    speed = f"at most {khz / 1e6:.2f} GHz" if khz else "its frequency cannot be read"
    return Check("core", Finding.GOOD, f"core {device.core} of {os.cpu_count()}, {speed}")


def _governor(device: LocalDevice) -> Check:
    governor = device.state().governor
    if governor is None:
        return Check("governor", Finding.WARNING, "cannot be read here", "none needed on a virtual machine")
    if governor != "performance":
        advice = "as root: cpupower frequency-set -g performance"
        return Check("governor", Finding.WARNING, f"'{governor}' changes the frequency under load", advice)
    return Check("governor", Finding.GOOD, governor)


def _timer() -> Check:
    ticks = sorted({b - a for a, b in _clock_pairs()} - {0})
    step_ns = ticks[0] if ticks else TIMER_LIMIT_NS + 1
    if step_ns > TIMER_LIMIT_NS:
        return Check("timer", Finding.WARNING, f"resolution {step_ns} ns", "small operators will be unsteady")
    return Check("timer", Finding.GOOD, f"resolution {step_ns} ns or better")


def _clock_pairs() -> list[tuple[int, int]]:
    return [(time.perf_counter_ns(), time.perf_counter_ns()) for _ in range(1000)]


def _load(core: int | None) -> list[Check]:
    """How busy others keep the measuring core, and how much of it the hypervisor takes away."""
    if core is None or not Path("/proc/stat").exists():
        return [Check("load", Finding.WARNING, "cannot be read here", "keep the machine idle while it measures")]
    before = _core_ticks(core)
    time.sleep(WATCH_S)
    spent = [after - b for after, b in zip(_core_ticks(core), before, strict=True)]
    total = sum(spent) or 1
    busy, stolen = (total - spent[3] - spent[4]) / total, spent[7] / total  # columns 3 and 4: idle, waiting for disks
    return [
        Check("load", Finding.WARNING, f"core {core} is {busy:.0%} busy", "stop other programs while it measures")
        if busy > BUSY_SHARE
        else Check("load", Finding.GOOD, f"core {core} is {busy:.0%} busy"),
        Check("steal", Finding.WARNING, f"the hypervisor takes {stolen:.1%} away", "use a dedicated machine if you can")
        if stolen > BUSY_SHARE / 10
        else Check("steal", Finding.GOOD, f"the hypervisor takes {stolen:.1%} away"),
    ]


def _core_ticks(core: int) -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal of one core (proc(5))."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            return [int(t) for t in ticks[:8]]
    raise AssertionError(f"/proc/stat has no line for core {core}")
