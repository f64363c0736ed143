import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.debian_adbd import Adbd
from device_agents import adb
from device_agents.cli import app
from device_agents.local_device import LocalDevice, processor_name
from tests.device_agents.replayed_phone import PROGRAMS, ReplayedPhone

pytestmark = pytest.mark.usefixtures("this_machine")

runner = CliRunner()


def test_devices_lists_this_machine() -> None:
    result = runner.invoke(app, ["devices", "--json"])
    local = {"device": "local", "model": processor_name(), "state": "ready", "advice": ""}
    assert json.loads(result.stdout)[0] == local
    assert processor_name() in runner.invoke(app, ["devices"]).stdout


def test_devices_lists_the_addresses_of_options_and_environment(adbd: Adbd, tmp_path: Path) -> None:
    address = f"127.0.0.1:{adbd.port}"
    command = ["devices", "--json", "--adb-key", str(tmp_path / "adbkey")]
    by_option = runner.invoke(app, [*command, "--tcp", address, "--tcp", "127.0.0.1:1"])
    by_environment = runner.invoke(app, command, env={"PADNAS_ADB": f"{address},127.0.0.1:1"})
    rows = [row for row in json.loads(by_option.stdout) if row["device"].startswith("adb:")]
    assert [(row["device"], row["state"]) for row in rows] == [
        (f"adb:{address}", "ready"),
        ("adb:127.0.0.1:1", "unreachable"),
    ]
    assert json.loads(by_environment.stdout) == json.loads(by_option.stdout)


def test_devices_says_what_is_no_address() -> None:
    result = runner.invoke(app, ["devices", "--tcp", "phone"])
    assert result.exit_code == 2
    assert "'adb:phone' names no device. Say adb:HOST:PORT" in result.stderr


def test_devices_says_why_usb_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "UsbTransport", None)
    result = runner.invoke(app, ["devices"])
    assert result.exit_code == 0
    assert "apt install libusb-1.0-0" in result.stderr


def test_doctor_prints_every_check() -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    assert {"name", "finding", "seen", "advice"} == set(json.loads(result.stdout)[0])


def test_doctor_fails_for_a_machine_that_cannot_measure() -> None:
    with LocalDevice():
        result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 1


@pytest.mark.parametrize("command", [["run", "--service", "http://127.0.0.1:1"], ["doctor"]])
def test_a_device_that_this_agent_cannot_drive_is_wrong_use(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--device", "pixel"])
    assert result.exit_code == 2
    assert "'pixel' names no device. Say adb:HOST:PORT" in result.stderr


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        (["--device", "local", "--benchmark-binary", __file__, "--adb-key", "key"], "--benchmark-binary and --adb-key"),
        (["--device", "usb", "--tcp", "127.0.0.1:5555"], "--tcp"),
    ],
)
def test_an_option_that_would_be_ignored_is_wrong_use(options: list[str], ignored: str) -> None:
    result = runner.invoke(app, ["run", "--service", "http://127.0.0.1:1", *options])
    assert result.exit_code == 2
    assert f"{ignored} would be ignored with --device {options[1]}" in result.stderr


def test_what_the_environment_says_is_for_whichever_device_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADNAS_BENCHMARK_BINARY", __file__)
    monkeypatch.setenv("PADNAS_ADB", "127.0.0.1:5555")
    result = runner.invoke(app, ["doctor", "--device", "local", "--json"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", [["run", "--service", "http://127.0.0.1:1"], ["doctor", "--json"]])
def test_a_device_that_cannot_be_reached_is_a_sentence(command: list[str], tmp_path: Path) -> None:
    options = ["--device", "adb:127.0.0.1:1", "--adb-key", str(tmp_path / "key")]
    result = runner.invoke(app, [*command, *options])
    assert result.exit_code == 1
    assert "adb:127.0.0.1:1 cannot be reached: Connection refused" in result.output


def test_a_phone_is_examined_and_what_speaks_against_measuring_has_its_remedy(
    debian_adbd: Path,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    phone = ReplayedPhone(tmp_path / "phone")
    with Adbd(tmp_path / "device", environment=phone.environment) as adbd:
        options = ["--device", f"adb:127.0.0.1:{adbd.port}", "--adb-key", str(tmp_path / "key")]
        without = runner.invoke(app, ["doctor", *options])
        assert without.exit_code == 1
        assert "--benchmark-binary PATH" in " ".join(without.output.split())
        options += ["--benchmark-binary", str(PROGRAMS / "benchmark_model"), "--device-folder", f"{tmp_path}/padnas"]
        fit = runner.invoke(app, ["doctor", *options, "--json"])
        phone.change("dumpsys/deviceidle-get-screen", "false", "true")
        lit = runner.invoke(app, ["doctor", *options, "--json"])
    assert fit.exit_code == 0, fit.output
    assert {check["finding"] for check in json.loads(fit.output)} <= {"good", "warning"}
    assert lit.exit_code == 1
    (screen,) = [check for check in json.loads(lit.output) if check["name"] == "screen"]
    assert (screen["finding"], screen["seen"]) == ("unfit", "its screen is on")
    assert "KEYCODE_SLEEP" in screen["advice"]


def test_an_address_that_is_none_is_a_sentence() -> None:
    result = runner.invoke(app, ["run", "--service", "localhost:8000"])
    assert result.exit_code == 1
    assert "'localhost:8000' is not an address" in result.stderr


def test_a_token_that_cannot_be_used_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADNAS_TOKEN", "padnas_secret")
    result = runner.invoke(app, ["run", "--service", "http://farm.example:8000"])
    assert result.exit_code == 1
    assert "The token is not sent to http://farm.example:8000 over http" in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize("command", ["run", "doctor", "devices"])
def test_help_has_an_example(command: str) -> None:
    assert f"Example: padnas-agent {command}" in runner.invoke(app, [command, "--help"]).stdout
