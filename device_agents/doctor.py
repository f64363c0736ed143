"""Is this device fit to measure, and if not, why not and what to do about it?"""

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from device_agents.errors import DeviceFault
from device_agents.local_device import LocalDevice, maximal_khz, processor_name, runtime_version

WATCH_S = 2.0  # how long the processor is watched
BUSY_SHARE = 0.10  # of one core taken by others that begins to show in measurements
TIMER_LIMIT_NS = 1000  # a timer coarser than this hides small operators


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
