"""The command line in this process, against a live service."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latency_contract import connection as connection_module
from latency_contract.canonical import content_hash
from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, DeviceReport
from search_client.cli import app

TINY = str(Path(__file__).parent / "tiny.toml")
runner = CliRunner()


@pytest.fixture
def phone(connection: ServiceConnection, report: Callable[..., DeviceReport], request: pytest.FixtureRequest) -> str:
    serial = content_hash(request.node.nodeid)[:12]
    name = f"phone {serial}"
    connection.ask("PUT", f"/v1/devices/{serial}", Device, body=report(serial=serial, model=name))
    return name


def test_spaces_lists_what_the_paper_says() -> None:
    listed = {space["space"]: space for space in json.loads(runner.invoke(app, ["spaces", "--json"]).stdout)}
    assert set(listed) == {"basic", "demo", "large", "mbv3", "nas-bench-macro"}
    assert listed["basic"]["size"] == 3 * 6**6 * 7**15
    assert listed["large"]["size"] == 3 * 18**6 * 19**15
    assert "6.65e+17" in runner.invoke(app, ["spaces"]).stdout


def test_devices_are_listed_with_their_state(service_url: str, phone: str) -> None:
    result = runner.invoke(app, ["devices", "--service", service_url, "--json"])
    units = {device["model"]: device["unit"] for device in json.loads(result.stdout)}
    assert units[phone] is None  # one unit has nothing to be compared with
    assert "ready" in runner.invoke(app, ["devices", "--service", service_url]).stdout


def test_units_of_one_model_are_shown_side_by_side_and_the_odd_one_is_flagged(
    service_url: str, measured_units: Callable[[str, dict[str, float]], None]
) -> None:
    model = "Pixel #3 w/ units"
    measured_units(model, {"client-1": 1.0, "client-2": 1.01, "client-3": 1.2})
    shown = runner.invoke(app, ["devices", "--service", service_url]).stdout
    (odd,) = (line for line in shown.splitlines() if "client-3" in line and "ready" in line)
    assert "1.188 odd" in odd
    (normal,) = (line for line in shown.splitlines() if "client-2" in line and "ready" in line)
    assert "1.000" in normal
    assert "odd" not in normal
    assert f"{model}: units up to 19.8 % apart" in shown
    assert f"{model}, client-3: It is 18.8 % slower than client-2, the nearest of 2 units that agree." in shown
    as_json = json.loads(runner.invoke(app, ["devices", "--service", service_url, "--json"]).stdout)
    odd_by_serial = {device["serial"]: device["unit"]["odd"] for device in as_json if device["model"] == model}
    assert odd_by_serial == {"client-1": False, "client-2": False, "client-3": True}


def test_units_that_differ_without_a_majority_share_one_sentence(
    service_url: str, measured_units: Callable[[str, dict[str, float]], None]
) -> None:
    measured_units("Pixel pair", {"pair-1": 1.0, "pair-2": 1.2})
    shown = runner.invoke(app, ["devices", "--service", service_url]).stdout
    assert "Pixel pair, pair-1, pair-2: The units differ, and no latency is that of more than half of them." in shown
    rows = [line for line in shown.splitlines() if "pair-" in line and "ready" in line]
    assert len(rows) == 2
    assert not any("odd" in row for row in rows)


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--device", "Pixel 99"], 1, "There is no device 'Pixel 99'. The service knows:"),
        (["--space", "nowhere"], 1, "There is no search space 'nowhere'. Use basic, demo, large"),
        (["--data", "nothing"], 1, "There is no data set 'nothing'. Known data sets: digits"),
        (["--latency-min", "2", "--latency-max", "1"], 2, "latency_min_ms 2 is above latency_max_ms 1"),
        (["--epochs", "1,x"], 2, "'1,x' is not a list of numbers"),
        (["--stages", "9"], 2, "9 stages train the supernet 8 times"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml cannot be read"),
        (["--table", "Pixel 3@2"], 2, "padnas-client table export --table 'Pixel 3@2' --out table.json"),
        (["--without-device"], 2, "has no table yet: its operators have to be measured. Leave out --without-device."),
    ],
)
def test_wrong_input_to_a_search_is_a_sentence(
    service_url: str, phone: str, tmp_path: Path, options: list[str], status: int, sentence: str
) -> None:
    command = ["search", "--service", service_url, "--device", phone, "--space", TINY, "--data", "digits"]
    result = runner.invoke(app, [*command, "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == status
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        ([], 2, "No architecture given. Use --from FINAL.JSON, or --space and --choices."),
        (["--space", TINY, "--choices", "Identity"], 2, "has 4 layers, but 1 choices are given"),
        (
            ["--space", TINY, "--choices", "a,b,c,d"],
            1,
            "block1.1 does not offer a. It offers IBConv_K3_E1, IBConv_K5_E1.",
        ),
        (["--from", "nowhere.json"], 1, "nowhere.json: No such file or directory."),
        (["--from", str(Path(TINY).parent)], 1, "final.json: No such file or directory."),
        (["--from", TINY], 2, "is not the final.json of a search"),
        (["--from", TINY, "--classes", "7"], 2, "--from has networks of their own size. Leave out --input-size"),
        (["--from", TINY, "--space", TINY], 2, "--from says which architecture. Leave out --space and --choices"),
        (["--space", TINY, "--choices", "a,b,c,d", "--width", "0"], 1, "width is 0; use one above 0"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "measure"])
def test_wrong_input_to_predict_and_measure_is_a_sentence(
    service_url: str, phone: str, command: str, options: list[str], status: int, sentence: str
) -> None:
    result = runner.invoke(app, [command, "--service", service_url, "--device", phone, *options])
    assert result.exit_code == status
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--tflite", "nowhere.tflite"], 1, "nowhere.tflite"),
        (["--tflite", TINY], 1, "This is no TFLite file"),
        (["--tflite", TINY, "--from", "final.json"], 2, "--tflite measures a file as it is. Leave out --from"),
        (["--tflite", TINY, "--width", "2"], 2, "Leave out --from, --space, --choices and their size"),
    ],
)
def test_wrong_files_to_measure_are_a_sentence(
    service_url: str, phone: str, options: list[str], status: int, sentence: str
) -> None:
    result = runner.invoke(app, ["measure", "--service", service_url, "--device", phone, *options])
    assert result.exit_code == status
    assert sentence in result.stderr


def test_a_table_that_was_never_built_is_a_sentence(service_url: str, phone: str) -> None:
    result = runner.invoke(app, ["table", "show", "--service", service_url, "--device", phone])
    assert result.exit_code == 1
    assert "There is no table" in result.stderr


@pytest.mark.parametrize("command", [["devices"], ["table", "show"], ["table", "build", "--space", TINY]])
def test_a_service_that_cannot_be_reached_is_a_sentence(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PATIENCE_S", 0.2)
    result = runner.invoke(app, [*command, "--service", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "The service at http://127.0.0.1:9 does not answer" in result.stderr
    assert "Is `padnas-service serve` running there?" in result.stderr


def test_report_and_compare_need_no_service(make_run: Callable[..., Path], tmp_path: Path) -> None:
    short = {"epochs": (2, 2, 2)}
    one, two = make_run("one", seed=1, **short), make_run("two", seed=2, alone=6, **short)
    result = runner.invoke(app, ["report", str(two)])
    assert result.exit_code == 0, result.stderr
    assert "Final architectures on Pixel 3" in result.stdout
    assert str(two / "report.html") in result.stdout
    as_json = json.loads(runner.invoke(app, ["report", str(two), "--json"]).stdout)
    assert (as_json["seed"], as_json["trained_alone"]) == (2, 6)
    result = runner.invoke(app, ["compare", str(one), str(two), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert "tiny, M = 4" in result.stdout
    assert (tmp_path / "out" / "compare.html").exists()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["report", "nowhere"], "nowhere does not hold a finished search"),
        (["compare", "nowhere", "--out", "out"], "nowhere does not hold a finished search"),
        (["compare", "--out", "out"], "Missing argument"),
    ],
)
def test_wrong_input_to_report_and_compare_is_a_sentence(command: list[str], sentence: str) -> None:
    result = runner.invoke(app, command, terminal_width=160)
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["search"], ["spaces"], ["devices"], ["train"], ["export"], ["report"], ["compare"], ["predict"], ["measure"],
        ["table", "build"], ["table", "show"], ["table", "export"], ["table", "import"], ["table", "diff"],
    ],
)  # fmt: skip
def test_help_has_an_example(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"], terminal_width=200)
    assert f"Example: padnas-client {' '.join(command)}" in result.stdout
