"""The state of a replayed Pixel 3 through real shells, other devices as text, and what speaks against a block."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents import litert_runner
from device_agents.gates import BOARD, PHONE, Limits, crossed, not_fit, parse_readings, readings_script
from latency_contract.measurements import DeviceState
from tests.device_agents.replayed_phone import ReplayedPhone

CPU = "sys/devices/system/cpu"
THERMAL = "dumpsys/thermalservice"
BATTERY = "dumpsys/battery"
SCREEN = "dumpsys/deviceidle-get-screen"
MAX_KHZ = 2803200
GOOD = DeviceState(
    governor="schedutil",
    frequency_khz=825600,
    max_frequency_khz=MAX_KHZ,
    temperature_c=32.300003,
    thermal_status=0,
    cooling_state=0,
    battery_pct=86,
    battery_c=25.9,
    charging=True,
    screen_on=False,
)


@pytest.fixture
def phone(tmp_path: Path) -> ReplayedPhone:
    return ReplayedPhone(tmp_path / "phone")


def read(phone: ReplayedPhone, *, android: bool = True) -> DeviceState:
    output = phone(f"{readings_script(core=7, android=android)}\nreadings")
    assert output.status == 0
    return parse_readings(output.text)


def put(phone: ReplayedPhone, **files: str) -> None:
    """Write files of /sys/class/thermal; `thermal_zone0__temp` is thermal_zone0/temp."""
    for name, text in files.items():
        file = phone.folder / "sys/class/thermal" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


def test_every_reading_of_a_pixel_3_is_understood(shell: list[str], tmp_path: Path) -> None:
    assert read(ReplayedPhone(tmp_path / "phone", shell=shell)) == GOOD


def test_temperatures_are_the_hardwares_not_the_cached_ones(phone: ReplayedPhone) -> None:
    """The hottest core is 57.2 °C in the cache, and 32.3 °C now."""
    assert read(phone).temperature_c == 32.300003
    phone.change(THERMAL, "mValue=31.000002, mType=0", "mValue=61.5, mType=0")
    assert read(phone).temperature_c == 61.5


def test_heat_of_other_parts_is_not_the_processors(phone: ReplayedPhone) -> None:
    phone.change(THERMAL, "mValue=31.400002, mType=1", "mValue=71.0, mType=1")
    phone.change(THERMAL, "mValue=0, mType=1, mName=battery", "mValue=3, mType=1, mName=battery")
    assert read(phone) == GOOD


def test_the_phone_may_change_between_two_readings(phone: ReplayedPhone) -> None:
    phone.change(f"{CPU}/cpufreq/policy4/scaling_max_freq", "2803200", "1996800", after=1)
    phone.change(SCREEN, "false", "true", after=2)
    states = [read(phone) for _ in range(3)]
    assert [state.max_frequency_khz for state in states] == [2803200, 1996800, 1996800]
    assert [state.screen_on for state in states] == [False, False, True]


def test_the_screen_is_read_from_the_power_manager_where_deviceidle_does_not_say(phone: ReplayedPhone) -> None:
    phone.change(SCREEN, "false", "Unknown get option: screen")
    assert read(phone).screen_on is False
    phone.change("dumpsys/power", "mWakefulness=Asleep", "mWakefulness=Dreaming")
    assert read(phone).screen_on is True
    phone.hide("dumpsys/power")
    assert read(phone).screen_on is None


def test_android_9_has_no_thermal_service_but_zones(phone: ReplayedPhone) -> None:
    phone.hide(THERMAL)
    assert (read(phone).temperature_c, read(phone).cooling_state) == (None, None)
    put(phone, thermal_zone0__type="cpu-1-0-usr", thermal_zone0__temp="41000")
    put(phone, thermal_zone1__type="CPU-1-1-usr", thermal_zone1__temp="43500")
    put(phone, thermal_zone2__type="gpu0-usr", thermal_zone2__temp="99000", thermal_zone3__type="cpu-unreadable")
    put(phone, cooling_device0__type="thermal-cpufreq-4", cooling_device0__cur_state="2")
    put(phone, cooling_device1__type="thermal-devfreq-0", cooling_device1__cur_state="5")
    state = read(phone)
    assert (state.temperature_c, state.cooling_state, state.thermal_status) == (43.5, 2, None)
    assert state.battery_pct == 86


def test_zones_do_not_stand_in_for_a_hardware_that_answers(phone: ReplayedPhone) -> None:
    put(phone, thermal_zone0__type="cpu-1-0-usr", thermal_zone0__temp="41000")
    assert read(phone).temperature_c == 32.300003


def test_a_board_is_read_from_sysfs_alone(phone: ReplayedPhone) -> None:
    put(phone, thermal_zone0__type="cpu-thermal", thermal_zone0__temp="52000")
    state = read(phone, android=False)
    assert state == DeviceState(
        governor="schedutil", frequency_khz=825600, max_frequency_khz=MAX_KHZ, temperature_c=52.0
    )


def test_where_no_zone_names_a_processor_all_count(phone: ReplayedPhone) -> None:
    put(phone, thermal_zone0__type="soc-thermal", thermal_zone0__temp="61000")
    put(phone, thermal_zone1__type="broken", thermal_zone1__temp="-274000")
    assert read(phone, android=False).temperature_c == 61.0
    put(phone, thermal_zone2__type="cpu-thermal", thermal_zone2__temp="52000")
    assert read(phone, android=False).temperature_c == 52.0


def test_a_boards_runner_reads_zones_as_its_agent_does(phone: ReplayedPhone, monkeypatch: pytest.MonkeyPatch) -> None:
    thermal = phone.folder / "sys/class/thermal"
    monkeypatch.setattr(litert_runner, "THERMAL", thermal)
    for zones in (
        {"thermal_zone0__type": "soc-thermal", "thermal_zone0__temp": "61000"},
        {"thermal_zone1__type": "broken", "thermal_zone1__temp": "200000"},
        {"thermal_zone2__type": "cpu-thermal", "thermal_zone2__temp": "52000"},
        {"cooling_device0__type": "thermal-cpufreq-0", "cooling_device0__cur_state": "2"},
        {"cooling_device1__type": "pwm-fan", "cooling_device1__cur_state": "5"},
    ):
        put(phone, **zones)
        ours, theirs = litert_runner.state(None), read(phone, android=False)
        assert (ours["temperature_c"], ours["cooling_state"]) == (theirs.temperature_c, theirs.cooling_state)
    assert (theirs.temperature_c, theirs.cooling_state) == (52.0, 2)


def test_what_is_hidden_is_none_and_named(phone: ReplayedPhone) -> None:
    phone.hide(f"{CPU}/cpufreq", THERMAL, BATTERY, SCREEN, "dumpsys/power")
    state = read(phone)
    assert state == DeviceState()
    assert set(state.unreadable) == set(DeviceState.model_fields)


@pytest.mark.parametrize(
    ("file", "old", "new", "hidden"),
    [
        (THERMAL, "IsStatusOverride: false", "IsStatusOverride: true", {"thermal_status"}),
        (THERMAL, "Thermal Status: 0", "Thermal Status: 7", {"thermal_status"}),
        (THERMAL, "mType=0", "mType=9", {"temperature_c"}),
        (
            BATTERY,
            "  AC",
            "  (UPDATES STOPPED -- use 'reset' to restart)\n  AC",
            {"battery_pct", "battery_c", "charging"},
        ),
        (BATTERY, "present: true", "present: false", {"battery_pct", "battery_c", "charging"}),
        (BATTERY, "level: 86", "level: 250", {"battery_pct"}),
        (BATTERY, "scale: 100", "scale: 0", {"battery_pct"}),
        (BATTERY, "temperature: 259", "temperature: -2730", {"battery_c"}),
        (BATTERY, "status: 2", "status: 1", {"charging"}),
        (f"{CPU}/cpufreq/policy4/scaling_cur_freq", "825600", "0", {"frequency_khz"}),
        (f"{CPU}/cpufreq/policy4/scaling_max_freq", "2803200", "<unknown>", {"max_frequency_khz"}),
        (f"{CPU}/cpufreq/policy4/scaling_governor", "schedutil", "a b;c", {"governor"}),
    ],
)
def test_what_cannot_be_or_is_pretended_is_none(
    phone: ReplayedPhone, file: str, old: str, new: str, hidden: set[str]
) -> None:
    phone.change(file, old, new)
    assert set(read(phone).unreadable) == hidden


@pytest.mark.parametrize("celsius", ["-273.15", "0.0", "-99.9", "900.0", "NaN", "Infinity", "1.0E9", "", "-", "4٣"])
def test_a_temperature_that_cannot_be_is_none(celsius: str) -> None:
    line = f"\tTemperature{{mValue={celsius}, mType=0, mName=CPU, mStatus=0}}"
    text = f"@thermal\nCurrent temperatures from HAL:\n{line}\n@end\n"
    assert parse_readings(text).temperature_c is None


@pytest.mark.parametrize("millidegrees", ["45", "0", "-273000", "900000", "hot", "45.5"])
def test_a_zone_that_cannot_be_is_none(millidegrees: str) -> None:
    """45 may be whole degrees, as old kernels have them, or none at all."""
    zone = "/sys/class/thermal/thermal_zone3"
    assert parse_readings(f"@zones\n{zone}/type:cpu0\n{zone}/temp:{millidegrees}\n@end\n").temperature_c is None


def test_charging_is_a_current_into_the_battery(phone: ReplayedPhone) -> None:
    for old, new, charging in (("2", "5", False), ("5", "3", False), ("3", "4", False), ("4", "2", True)):
        phone.change(BATTERY, f"status: {old}", f"status: {new}")
        assert read(phone).charging is charging


def printed(tmp_path: Path) -> str:
    return ReplayedPhone(tmp_path / "phone")(f"{readings_script(core=7, android=True)}\nreadings").text


def test_readings_cut_off_anywhere_are_the_true_ones_or_none(tmp_path: Path) -> None:
    text = printed(tmp_path)
    whole = dict(GOOD)
    for length in range(len(text)):
        for name, value in parse_readings(text[:length]):
            assert value in (None, whole[name]), (length, name)


def test_lines_may_end_as_old_terminals_end_them(tmp_path: Path) -> None:
    assert parse_readings(printed(tmp_path).replace("\n", "\r\n")) == GOOD


PIECES = [
    "@frequency\n", "@thermal\n", "@zones\n", "@battery\n", "@screen\n", "@end\n", "\n", "\r\n",
    "/sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq:", "/cpufreq/scaling_max_freq:", "/scaling_governor:",
    "/sys/class/thermal/thermal_zone0/type:cpu0\n", "/sys/class/thermal/thermal_zone0/temp:",
    "/sys/class/thermal/cooling_device1/type:cpufreq-cpu\n", "/sys/class/thermal/cooling_device1/cur_state:",
    "Thermal Status: ", "Current temperatures from HAL:\n", "Current cooling devices from HAL:\n",
    "\tTemperature{mValue=", "\tCoolingDevice{mValue=", ", mType=0, mName=CPU, mStatus=0}\n", ", mType=2, mName=a}\n",
    "  present: true\n", "  level: ", "  scale: ", "  temperature: ", "  status: ", "true", "mWakefulness=Awake",
]  # fmt: skip
noise = st.one_of(
    st.sampled_from(PIECES), st.integers().map(str), st.floats().map(str), st.text(max_size=20), st.characters()
)


@given(st.lists(noise, max_size=40).map("".join))
def test_whatever_a_device_prints_no_reading_is_impossible(text: str) -> None:
    state = parse_readings(f"{text}\n@end\n")
    bounds: dict[str, tuple[float, float]] = {
        "frequency_khz": (10_000, 10_000_000),
        "max_frequency_khz": (10_000, 10_000_000),
        "temperature_c": (1, 130),
        "thermal_status": (0, 6),
        "cooling_state": (0, 1000),
        "battery_pct": (0, 100),
        "battery_c": (-30, 90),
    }
    for name, (low, high) in bounds.items():
        value = getattr(state, name)
        assert value is None or low <= value <= high
    assert state.governor is None or 0 < len(state.governor) <= 40


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text_are_no_readings(data: bytes) -> None:
    assert parse_readings(data.decode(errors="replace")) == DeviceState()


def changed(**changes: Any) -> DeviceState:
    return GOOD.model_copy(update=changes)


def test_a_block_in_a_good_state_counts() -> None:
    assert crossed(GOOD, GOOD, limits=PHONE, max_khz=MAX_KHZ, governor="schedutil") is None
    warm = changed(temperature_c=70.0, battery_c=39.9, battery_pct=20, frequency_khz=2803200)
    assert crossed(GOOD, warm, limits=PHONE, max_khz=MAX_KHZ) is None


CROSSINGS = [
    ({"thermal_status": 1}, "its thermal status is 1; at 1 Android begins to throttle"),
    ({"cooling_state": 2}, "its processor is being cooled by slowing it down (cooling state 2)"),
    ({"temperature_c": 75.1}, "its processor has 75.1 °C, more than 75"),
    ({"battery_c": 40.1}, "its battery has 40.1 °C, more than 40"),
    ({"battery_pct": 19}, "its battery holds 19 %, less than 20"),
    ({"screen_on": True}, "its screen is on"),
]


@pytest.mark.parametrize(("change", "reason"), CROSSINGS)
def test_a_gate_is_held_before_and_after_a_block(change: dict[str, Any], reason: str) -> None:
    bad = changed(**change)
    for before, after in ((GOOD, bad), (bad, GOOD), (bad, bad)):
        assert crossed(before, after, limits=PHONE, max_khz=MAX_KHZ) == reason
    assert not_fit(bad, limits=PHONE, max_khz=MAX_KHZ) is not None


def test_a_capped_core_is_throttled_and_a_cap_that_moves_too() -> None:
    capped = changed(max_frequency_khz=1996800)
    assert crossed(capped, capped, limits=PHONE, max_khz=MAX_KHZ) == "the core is capped at 1996800 of 2803200 kHz"
    moved = crossed(GOOD, capped, limits=PHONE, max_khz=None)
    assert moved == "the cap on the core's frequency moved from 2803200 to 1996800 kHz"


def test_a_board_that_its_owner_capped_is_measured_so() -> None:
    capped = changed(max_frequency_khz=1996800)
    assert crossed(capped, capped, limits=BOARD, max_khz=None) is None
    assert not_fit(capped, limits=BOARD, max_khz=None) is None


def test_a_governor_is_the_one_of_enrolment_or_nothing_counts() -> None:
    other = changed(governor="powersave")
    assert crossed(GOOD, other, limits=PHONE, max_khz=MAX_KHZ) == (
        "the governor changed from schedutil to powersave in the middle"
    )
    said = "its governor is powersave, but was schedutil when the agent started"
    assert crossed(other, other, limits=PHONE, max_khz=MAX_KHZ, governor="schedutil") == said
    assert not_fit(other, limits=PHONE, max_khz=MAX_KHZ, governor="schedutil") == said
    assert crossed(other, other, limits=PHONE, max_khz=MAX_KHZ) is None


def test_charging_may_go_on_but_not_begin_or_end_in_a_block() -> None:
    unplugged = changed(charging=False)
    assert crossed(unplugged, unplugged, limits=PHONE, max_khz=MAX_KHZ) is None
    assert crossed(GOOD, unplugged, limits=PHONE, max_khz=MAX_KHZ) == "it ceased to charge in the middle"
    assert crossed(unplugged, GOOD, limits=PHONE, max_khz=MAX_KHZ) == "it began to charge in the middle"


@pytest.mark.parametrize("name", DeviceState.model_fields)
def test_what_cannot_be_read_never_crosses(name: str) -> None:
    hidden = changed(**{name: None})
    for before, after in ((GOOD, hidden), (hidden, GOOD), (hidden, hidden)):
        assert crossed(before, after, limits=PHONE, max_khz=MAX_KHZ, governor="schedutil") is None
    assert not_fit(hidden, limits=PHONE, max_khz=MAX_KHZ, governor="schedutil") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperature_c": 60.0}, "its processor has 60.0 °C, more than 55"),
        ({"battery_c": 39.0}, "its battery has 39.0 °C, more than 38"),
        ({"battery_pct": 22}, "its battery holds 22 %, less than 25"),
    ],
)
def test_measuring_begins_again_only_well_inside_the_limits(change: dict[str, Any], reason: str) -> None:
    state = changed(**change)
    assert crossed(state, state, limits=PHONE, max_khz=MAX_KHZ) is None
    assert not_fit(state, limits=PHONE, max_khz=MAX_KHZ) == reason


@pytest.mark.parametrize("limits", [PHONE, BOARD], ids=["phone", "board"])
def test_a_device_that_is_fit_to_begin_is_inside_every_limit(limits: Limits) -> None:
    assert limits.cool_cpu_c < limits.cpu_c
    assert limits.cool_battery_c < limits.battery_c
    assert limits.filled_battery_pct > limits.battery_pct


def test_a_phone_that_warms_up_is_rejected_and_waited_for_by_its_temperature(phone: ReplayedPhone) -> None:
    phone.change(THERMAL, "mValue=31.000002, mType=0", "mValue=81.0, mType=0", after=1)
    phone.change(THERMAL, "mValue=31.000002, mType=0", "mValue=60.0, mType=0", after=2)
    phone.change(THERMAL, "mValue=31.000002, mType=0", "mValue=54.0, mType=0", after=3)
    before, after, *waiting = (read(phone) for _ in range(4))
    rejected = crossed(before, after, limits=PHONE, max_khz=MAX_KHZ)
    assert rejected == "its processor has 81.0 °C, more than 75"
    waits = [not_fit(state, limits=PHONE, max_khz=MAX_KHZ) for state in waiting]
    assert waits == ["its processor has 60.0 °C, more than 55", None]


def test_possible_values_next_to_impossible_ones_are_kept() -> None:
    """The control of the tests above: the same shapes, with values that can be."""
    line = "\tTemperature{mValue=45.5, mType=0, mName=CPU, mStatus=0}"
    assert parse_readings(f"@thermal\nCurrent temperatures from HAL:\n{line}\n@end\n").temperature_c == 45.5
    zone = "/sys/class/thermal/thermal_zone3"
    assert parse_readings(f"@zones\n{zone}/type:cpu0\n{zone}/temp:45000\n@end\n").temperature_c == 45.0
