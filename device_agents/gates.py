"""Gates: what a device's state must be for a block to count, before and after it.

A phone slows itself down when it is warm, when its battery is low and while its screen is on, and says so. Readings
that a device does not give cannot be gated on; they are named in the measurement's provenance.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from device_agents.litert_runner import POSSIBLE_CPU_C
from latency_contract.measurements import DeviceState

# What can be true of a device. A reading outside is no reading: sensors that are absent say 0, -40, -99.9 or -273.
POSSIBLE_KHZ = (10_000, 10_000_000)
POSSIBLE_BATTERY_C = (-30.0, 90.0)
POSSIBLE_COOLING = (0, 1000)
SHUTDOWN = 6  # the highest of Android's thermal statuses

CPU_TYPE = 0  # of a Temperature in `dumpsys thermalservice`
CPU_COOLING_TYPE = 2  # of a CoolingDevice there
CHARGING, IDLE_OR_FULL = "2", ("3", "4", "5")  # battery status: charging; discharging, not charging, full
AWAKE, ASLEEP = ("Awake", "Dreaming"), ("Asleep", "Dozing")  # wakefulness; Dreaming is the screen saver

Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Limits:
    """When a block is rejected, and from where on measuring may begin again: a little better than that, so that it
    does not stop again at once. What follows has no limit but a rule:

    thermal status above 0      already LIGHT (1) means that the device throttles
    cooling state above 0       a cooling device of the processor works by slowing it down
    cap below the maximum       of the core's frequency: throttled, or a battery saver; a cap that moved, the same
    screen on                   drawing takes time on large cores, and memory bandwidth through the GPU
    governor changed            the frequencies under load are others
    charging began or ended     the phone wakes up, starts what waits for power, and is heated otherwise
    """

    cpu_c: float
    cool_cpu_c: float
    battery_c: float = 40.0  # °C; above, phones reduce charging and then the processor to keep their battery whole
    cool_battery_c: float = 38.0
    battery_pct: int = (
        20  # below, weak batteries do not deliver peak currents and large cores are capped; Android saves
    )
    filled_battery_pct: int = 25


# °C. Under load a phone's core has 50 to 70; from about 75 on it is slowed down, also where it does not say so.
PHONE = Limits(cpu_c=75.0, cool_cpu_c=55.0)
# °C. Boards have no more than a heat sink, and slow down from 80 to 85 on.
BOARD = Limits(cpu_c=80.0, cool_cpu_c=70.0)


def readings_script(*, core: int, android: bool) -> str:
    """A shell function `readings` that prints what can be read without root.

    Files are read by one grep, which names each and goes on where one cannot be read. `dumpsys deviceidle get screen`
    answers in one word what PowerManager.isInteractive says, where `dumpsys power` prints hundreds of lines.
    """
    frequency = f"/sys/devices/system/cpu/cpu{core}/cpufreq"
    sysfs = f"""
zones() {{
files=
for name in $(ls /sys/class/thermal 2>/dev/null); do
case $name in
thermal_zone[0-9]*) files="$files /sys/class/thermal/$name/type /sys/class/thermal/$name/temp" ;;
cooling_device[0-9]*) files="$files /sys/class/thermal/$name/type /sys/class/thermal/$name/cur_state" ;;
esac
done
echo "@zones"
[ -z "$files" ] || grep -H . $files 2>/dev/null
}}
readings() {{
echo "@frequency"
grep -H . {frequency}/scaling_cur_freq {frequency}/scaling_governor {frequency}/scaling_max_freq 2>/dev/null
"""
    if not android:
        return f"{sysfs}zones\necho @end\n}}"
    return f"""{sysfs}
thermal=$(dumpsys thermalservice 2>/dev/null)
echo "@thermal"
echo "$thermal"
case $thermal in
*"temperatures from HAL:"*) ;;
*) zones ;;
esac
echo "@battery"
dumpsys battery 2>/dev/null
screen=$(dumpsys deviceidle get screen 2>/dev/null)
case $screen in
true|false) ;;
*) screen=$(dumpsys power 2>/dev/null | grep mWakefulness=) ;;
esac
echo "@screen"
echo "$screen"
echo @end
}}"""


def parse_readings(text: str) -> DeviceState:
    """What was printed by `readings`. What is absent, cut off, or cannot be, is None."""
    sections = _sections(text)
    frequency = _by_file(sections.get("frequency", ""))
    thermal = sections.get("thermal", "")
    zones = _by_file(sections.get("zones", ""))
    temperature_c, cooling_state = _hal(thermal) if " from HAL:" in thermal else _zones(zones)
    return DeviceState(
        governor=_word(frequency.get("scaling_governor", "")),
        frequency_khz=_within(_number(frequency.get("scaling_cur_freq", "")), POSSIBLE_KHZ),
        max_frequency_khz=_within(_number(frequency.get("scaling_max_freq", "")), POSSIBLE_KHZ),
        temperature_c=temperature_c,
        thermal_status=_thermal_status(thermal),
        cooling_state=cooling_state,
        screen_on=_screen_on(sections.get("screen", "")),
        **_battery(sections.get("battery", "")),
    )


def crossed(
    before: DeviceState, after: DeviceState, *, limits: Limits, max_khz: int | None, governor: str | None = None
) -> str | None:
    """Why a block between these two states does not count; None where nothing speaks against it.

    `max_khz` is the measuring core's own maximum, where a lower cap means that it is throttled; `governor` the one that
    the device had when it was enrolled.
    """
    if _differ(before.governor, after.governor):
        return f"the governor changed from {before.governor} to {after.governor} in the middle"
    if _differ(before.max_frequency_khz, after.max_frequency_khz):
        return f"the cap on the core's frequency moved from {before.max_frequency_khz} to {after.max_frequency_khz} kHz"
    if _differ(before.charging, after.charging):
        return f"it {'began' if after.charging else 'ceased'} to charge in the middle"
    for state in (before, after):
        reason = _throttled(state, max_khz=max_khz, governor=governor) or _over(
            state, cpu_c=limits.cpu_c, battery_c=limits.battery_c, battery_pct=limits.battery_pct
        )
        if reason is not None:
            return reason
    return None


def not_fit(state: DeviceState, *, limits: Limits, max_khz: int | None, governor: str | None = None) -> str | None:
    """What still has to be waited for. Stricter than what rejects a block, so that it does not stop again at once."""
    return _throttled(state, max_khz=max_khz, governor=governor) or _over(
        state, cpu_c=limits.cool_cpu_c, battery_c=limits.cool_battery_c, battery_pct=limits.filled_battery_pct
    )


def _throttled(state: DeviceState, *, max_khz: int | None, governor: str | None) -> str | None:
    """What the device itself says of slowing down."""
    if state.thermal_status:
        return f"its thermal status is {state.thermal_status}; at 1 Android begins to throttle"
    if state.cooling_state:
        return f"its processor is being cooled by slowing it down (cooling state {state.cooling_state})"
    if max_khz is not None and state.max_frequency_khz is not None and state.max_frequency_khz < max_khz:
        return f"the core is capped at {state.max_frequency_khz} of {max_khz} kHz"
    if state.screen_on:
        return "its screen is on"
    if _differ(governor, state.governor):
        return f"its governor is {state.governor}, but was {governor} when the agent started"
    return None


def _over(state: DeviceState, *, cpu_c: float, battery_c: float, battery_pct: int) -> str | None:
    if state.temperature_c is not None and state.temperature_c > cpu_c:
        return f"its processor has {state.temperature_c:.1f} °C, more than {cpu_c:g}"
    if state.battery_c is not None and state.battery_c > battery_c:
        return f"its battery has {state.battery_c:.1f} °C, more than {battery_c:g}"
    if state.battery_pct is not None and state.battery_pct < battery_pct:
        return f"its battery holds {state.battery_pct} %, less than {battery_pct}"
    return None


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


def _sections(text: str) -> Mapping[str, str]:
    """What stands between two marks. Without the second it was cut off: half a number, or not the hottest core."""
    sections: dict[str, str] = {}
    name, lines = "", list[str]()
    for line in text.splitlines():
        if match := re.fullmatch(r"@([a-z]+) *", line):
            sections[name] = "\n".join(lines)
            name, lines = match[1], []
        else:
            lines.append(line.rstrip())
    return sections


def _by_file(section: str) -> Mapping[str, str]:
    """Content of each file, by its name; of zones and cooling devices by theirs too."""
    found = re.finditer(r"^\S*?/((?:(?:thermal_zone|cooling_device)\d+/)?\w+):(.*)$", section, re.MULTILINE)
    return {match[1]: match[2].strip() for match in found}


def _hal(thermal: str) -> tuple[float | None, int | None]:
    """Hottest core and highest state of the processor's cooling devices, as the hardware says now.

    `dumpsys thermalservice` shows a cached section first, which may be minutes old.
    """
    celsius, states = [], []
    for value, kind in _items(thermal, "Current temperatures from HAL:", "Temperature"):
        if kind == CPU_TYPE:
            celsius.append(_within(value, POSSIBLE_CPU_C))
    for value, kind in _items(thermal, "Current cooling devices from HAL:", "CoolingDevice"):
        if kind == CPU_COOLING_TYPE:
            states.append(_within(None if value is None else int(value), POSSIBLE_COOLING))
    return _highest(celsius), _highest(states)


def _items(thermal: str, heading: str, name: str) -> Iterator[tuple[float | None, int]]:
    """Value and type of each item in the lines that follow a heading."""
    _, _, rest = thermal.partition(heading)
    for line in rest.splitlines()[1:]:
        item = re.match(rf"\s*{name}\{{mValue=([^,]{{1,30}}), mType=(\d{{1,3}}), ", line)
        if item is None:
            return
        yield _decimal(item[1]), int(item[2])


def _zones(files: Mapping[str, str]) -> tuple[float | None, int | None]:
    """The same from sysfs, of the zones and cooling devices whose type names a processor; zones are in m°C.

    Where no zone that can be read names one, as on processors whose zone is that of the whole chip, all zones count.
    """
    celsius = list[float | None]()
    others = list[float | None]()
    states = list[int | None]()
    for path, kind in files.items():
        place, _, name = path.rpartition("/")
        if name != "type":
            continue
        of_processor = "cpu" in kind.lower()
        if place.startswith("thermal_zone"):
            millidegrees = _number(files.get(f"{place}/temp", ""))
            degrees = None if millidegrees is None else _within(millidegrees / 1000, POSSIBLE_CPU_C)
            (celsius if of_processor else others).append(degrees)
        elif of_processor:
            states.append(_within(_number(files.get(f"{place}/cur_state", "")), POSSIBLE_COOLING))
    hottest = _highest(celsius)
    return _highest(others) if hottest is None else hottest, _highest(states)


def _thermal_status(thermal: str) -> int | None:
    if re.search(r"^IsStatusOverride: true$", thermal, re.MULTILINE):  # someone pretends, for the test of an app
        return None
    match = re.search(r"^Thermal Status: (\d{1,3})$", thermal, re.MULTILINE)
    return _within(int(match[1]), (0, SHUTDOWN)) if match else None


def _battery(text: str) -> dict[str, int | float | bool | None]:
    """Nothing where there is no battery, or where someone pretends to another one (`dumpsys battery set`)."""
    said = dict(re.findall(r"^ +([\w ]+): (\S+)$", text, re.MULTILINE))
    if "UPDATES STOPPED" in text or said.get("present") != "true":
        said = {}
    level, scale = _number(said.get("level", "")), _number(said.get("scale", "100"))
    tenths = _number(said.get("temperature", ""))
    status = said.get("status", "")
    return {
        "battery_pct": _within(100 * level // scale, (0, 100)) if level is not None and scale else None,
        "battery_c": None if tenths is None else _within(tenths / 10, POSSIBLE_BATTERY_C),
        "charging": True if status == CHARGING else False if status in IDLE_OR_FULL else None,
    }


def _screen_on(text: str) -> bool | None:
    word = text.strip().rpartition("mWakefulness=")[2]
    if word in ("true", *AWAKE):
        return True
    return False if word in ("false", *ASLEEP) else None


def _word(text: str) -> str | None:
    return text if re.fullmatch(r"[\w.-]{1,40}", text) else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text.strip()) else None


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()) else None


def _within(value: Value | None, limits: tuple[Value, Value]) -> Value | None:
    return value if value is not None and limits[0] <= value <= limits[1] else None


def _highest(values: list[Value | None]) -> Value | None:
    return max((value for value in values if value is not None), default=None)
