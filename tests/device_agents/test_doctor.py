from pathlib import Path
from typing import Any

import pytest

from benchmarks.adb_board import running_board
from benchmarks.debian_adbd import Adbd
from device_agents.adb import parse_target
from device_agents.doctor import Check, Finding, examine, examine_local, examine_remote
from device_agents.enrolment import Enrolment, LiteRT, enrol
from device_agents.local_device import LocalDevice
from tests.device_agents.replayed_phone import ReplayedPhone

pytestmark = pytest.mark.usefixtures("this_machine")


@pytest.fixture
def phone(tmp_path: Path) -> Enrolment:
    return enrol(ReplayedPhone(tmp_path / "phone"))


def examined(enrolment: Enrolment, **changes: Any) -> dict[str, Check]:
    """The checks by their names; the state is that of enrolment with changes."""
    checks = examine_remote(enrolment, enrolment.state.model_copy(update=changes), runner="benchmark_model")
    return {check.name: check for check in checks}


def test_this_machine_is_examined_and_fit() -> None:
    checks = {check.name: check for check in examine_local()}
    assert set(checks) == {"device", "runtime", "core", "governor", "timer", "load", "steal"}
    assert Finding.UNFIT not in {check.finding for check in checks.values()}
    assert checks["runtime"].seen.startswith("LiteRT ")


def test_a_warning_says_what_to_do() -> None:
    assert all(check.advice for check in examine_local() if check.finding != Finding.GOOD)


def test_a_machine_that_another_agent_has_is_unfit() -> None:
    with LocalDevice():
        (check,) = examine_local()
    assert check.finding == Finding.UNFIT
    assert "Another agent already measures" in check.seen


def test_a_phone_is_examined_and_fit(phone: Enrolment) -> None:
    checks = examined(phone, charging=False)
    assert [check.name for check in checks.values() if check.finding != Finding.GOOD] == []
    assert checks["runner"].seen == "benchmark_model"
    assert checks["device"].seen == "Pixel 3, SDM845, serial 89AX0TEST"
    assert checks["system"].seen.startswith("google/blueline/")
    assert checks["core"].seen == "core 7 (mask 80) of 0-3 up to 1.77 GHz, 4-7 up to 2.80 GHz"
    assert checks["cap"].seen == "none below 2.80 GHz"
    assert checks["temperature"].seen == "32.3 °C"
    assert checks["throttling"].seen == "thermal status 0, cooling devices 0"
    assert (checks["battery"].seen, checks["screen"].seen) == ("86 %", "off")
    assert checks["readable"].seen == "everything that is gated on"


@pytest.mark.parametrize(
    ("name", "change", "seen", "advice"),
    [
        ("cap", {"max_frequency_khz": 1996800}, "capped at 1996800 of 2803200 kHz", "settings put global low_power 0"),
        ("temperature", {"temperature_c": 60.0}, "60.0 °C, more than 55", "let it cool"),
        ("throttling", {"thermal_status": 2}, "thermal status is 2", "let it cool"),
        ("throttling", {"cooling_state": 3}, "cooling state 3", "let it cool"),
        ("battery", {"battery_pct": 12}, "12 %", "charge it"),
        ("battery heat", {"battery_c": 43.0}, "43.0 °C", "stop charging"),
        ("screen", {"screen_on": True}, "screen is on", "adb shell svc power stayon false"),
    ],
)
def test_what_measuring_waits_for_is_unfit_and_says_what_to_do(
    phone: Enrolment, name: str, change: dict[str, Any], seen: str, advice: str
) -> None:
    checks = examined(phone, **change)
    assert [check.name for check in checks.values() if check.finding == Finding.UNFIT] == [name]
    assert seen in checks[name].seen
    assert advice in checks[name].advice


def test_a_board_is_examined_over_adb(debian_adbd: Path, tmp_path: Path) -> None:  # noqa: ARG001
    with running_board(tmp_path) as adbd:
        target = parse_target(f"adb:127.0.0.1:{adbd.port}")
        checks = {c.name: c for c in examine(target, keys=tmp_path / "adbkey", benchmark_binary=None, folder=None)}
    assert checks["runner"].seen.startswith("ai-edge-litert ")
    assert {"device", "system", "core", "space", "readable"} <= checks.keys()
    assert Finding.UNFIT not in {check.finding for check in checks.values()}


def test_a_phone_without_a_runner_is_unfit_and_says_what_to_give_it(
    debian_adbd: Path,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    phone = ReplayedPhone(tmp_path / "phone")
    with Adbd(tmp_path / "device", environment=phone.environment) as adbd:
        target = parse_target(f"adb:127.0.0.1:{adbd.port}")
        (check,) = examine(target, keys=tmp_path / "adbkey", benchmark_binary=None, folder=None)
    assert check.finding == Finding.UNFIT
    assert "--benchmark-binary PATH: TensorFlow Lite's or LiteRT's benchmark_model, built for Android" in check.seen


def test_charging_is_warned_of(phone: Enrolment) -> None:
    assert examined(phone)["charging"].finding == Finding.WARNING
    assert "a hub whose ports can be switched" in examined(phone)["charging"].advice


def test_a_full_phone_is_unfit(phone: Enrolment) -> None:
    check = examined(phone._replace(free_kb=20 * 1024))["space"]
    assert (check.finding, check.seen) == (Finding.UNFIT, "20 MB free")
    assert check.advice == "free 64 MB at least in /data: remove apps or files"


def test_a_core_that_is_not_the_usual_one_is_warned_of(phone: Enrolment) -> None:
    check = examined(phone._replace(core=6))["core"]
    assert check.finding == Finding.WARNING
    assert check.seen.startswith("core 6 (mask 40)")
    assert check.seen.endswith("; core 7 is offline")


def test_what_cannot_be_read_without_root_is_named(phone: Enrolment) -> None:
    checks = examined(phone, governor=None, max_frequency_khz=None, battery_pct=None)
    assert checks["readable"].seen == "not without root: governor, cap on the frequency, battery level"
    assert "dumpsys battery reset" in checks["readable"].advice
    assert {"cap", "battery"}.isdisjoint(checks)


def test_a_board_has_nothing_of_a_phone(phone: Enrolment) -> None:
    hidden = dict.fromkeys(("thermal_status", "battery_pct", "battery_c", "charging", "screen_on"))
    board = phone._replace(android=False, litert=LiteRT("2.3.0", "ab" * 32, "3.11.2"))
    checks = examined(board, **hidden)
    assert {"battery", "battery heat", "screen", "charging"}.isdisjoint(checks)
    assert checks["governor"].advice == "as root on the board: cpupower frequency-set -g performance"
    assert checks["readable"].finding == Finding.GOOD


def test_every_remote_warning_says_what_to_do(phone: Enrolment) -> None:
    states = [
        {},
        {"governor": "powersave", "screen_on": True, "battery_pct": 3, "battery_c": 50.0, "temperature_c": 90.0},
        dict.fromkeys(type(phone.state).model_fields),
    ]
    for enrolment in (phone, phone._replace(android=False, max_khz=None, free_kb=None)):
        for state in states:
            for check in examined(enrolment, **state).values():
                assert bool(check.advice) == (check.finding != Finding.GOOD), check
