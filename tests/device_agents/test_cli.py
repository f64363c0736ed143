import json

import pytest
from typer.testing import CliRunner

from device_agents.cli import app
from device_agents.local_device import LocalDevice, processor_name

runner = CliRunner()


def test_devices_lists_this_machine() -> None:
    result = runner.invoke(app, ["devices", "--json"])
    assert json.loads(result.stdout) == [{"device": "local", "model": processor_name(), "state": "ready"}]
    assert processor_name() in runner.invoke(app, ["devices"]).stdout


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
    result = runner.invoke(app, [*command, "--device", "usb"])
    assert result.exit_code == 2
    assert "This agent cannot measure on 'usb'. Use --device local." in result.stderr


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
