"""`padnas-client table` in this process: on files alone, and against a live service."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from latency_contract.measurements import DeviceState, Measurement, RejectedRound
from latency_contract.operators import IBConv
from latency_contract.tables import Purpose
from search_client.cli import app
from search_client.imported_tables import LinearModel, read_table
from search_client.latencies import LatencyService
from search_client.proxylessnas_format import last_convolution
from search_client.spaces import load_space
from search_client.table_commands import print_measurement
from search_client.tunas_format import COLUMNS
from tests.search_client.conftest import Agent
from tests.search_client.problems import BASIC, TINY
from tests.search_client.tables import linear_model_of, table_of
from tests.search_client.test_tunas_format import lines


def client(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"PADNAS_SERVICE": ""})


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A table of `basic` from a CSV without intervals, imported."""
    made = [f"{operator.key},{operator.macs / 1e6}" for operator in (*BASIC.operators(), last_convolution(BASIC.head))]
    (tmp_path / "theirs.csv").write_text("key,latency_ms\n" + "\n".join(made))
    out = tmp_path / "theirs.json"
    said = ["--device", "Pixel 1", "--according-to", "its authors", "--out", str(out)]
    result = client("table", "import", str(tmp_path / "theirs.csv"), *said)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def measured(service: LatencyService, agent: Agent, operator: Callable[..., IBConv], phone: str) -> str:
    """A device with two versions of its table: the second holds one operator more."""
    agent(lambda subject: float(subject.height))
    for heights in ((1, 2), (3,)):
        wanted = [operator(height=height) for height in heights]
        service.measured(wanted, purpose=Purpose.TABLE, on_progress=lambda _: None)
        service.publish()
    return phone


def test_an_imported_table_is_shown_as_what_it_is(theirs: Path) -> None:
    shown = client("table", "show", "--table", str(theirs))
    assert shown.exit_code == 0, shown.stderr
    assert "Pixel 1, imported on" in shown.stdout
    assert "by its authors" in shown.stdout
    assert "intervals: none are known" in shown.stdout
    assert BASIC.stem.key in shown.stdout
    assert json.loads(client("table", "show", "--table", str(theirs), "--json").stdout)["imported"] is True


def test_an_imported_entry_opens_to_its_source(theirs: Path) -> None:
    entry = client("table", "show", "--table", str(theirs), "--operator", BASIC.stem.key)
    assert f"{BASIC.stem.key}: {BASIC.stem.macs / 1e6:.4f} ms (no interval), imported" in entry.stdout
    assert "theirs.csv" in entry.stdout
    missing = client("table", "show", "--table", str(theirs), "--operator", "IBConv")
    assert (missing.exit_code, "does not hold 'IBConv'. `padnas-client table show` lists" in missing.stderr) == (
        2,
        True,
    )


def test_a_measured_entry_opens_to_its_rounds(service_url: str, measured: str, operator: Callable[..., IBConv]) -> None:
    where = ["table", "show", "--service", service_url, "--device", measured, "--operator", operator(height=2).key]
    shown = client(*where)
    assert shown.exit_code == 0, shown.stderr
    assert f"{operator(height=2).key}: 2.0000 ms (" in shown.stdout
    assert "after 6 rounds" in shown.stdout
    assert "2.0100" in shown.stdout  # the last round
    assert measured in shown.stdout
    assert "nothing is readable" in shown.stdout
    assert len(json.loads(client(*where, "--json").stdout)["rounds"]) == 6


def test_a_rejected_round_is_shown_with_its_reason(
    measurement: Callable[..., Measurement], capsys: pytest.CaptureFixture[str]
) -> None:
    made = measurement("0" * 64)
    state = DeviceState(temperature_c=61.5)
    rejected = RejectedRound(round=made.rounds[0], reason="too hot", before=state, after=state)
    provenance = made.provenance.model_copy(update={"before": state})
    print_measurement("KEY", made.model_copy(update={"rejected": (rejected,), "provenance": provenance}))
    shown = capsys.readouterr().out
    assert "rejected, 2026-01-01 00:00:00, 1.0000 ms: too hot" in shown
    assert "temperature_c 61.5" in shown


def test_a_measured_entry_in_a_file_says_where_its_rounds_are(
    service_url: str, measured: str, operator: Callable[..., IBConv], tmp_path: Path
) -> None:
    out = tmp_path / "table.json"
    exported = client("table", "export", "--service", service_url, "--device", measured, "--out", str(out))
    assert exported.stdout == f"{out}: table version 2 of {measured}\n"
    shown = client("table", "show", "--table", str(out), "--operator", operator(height=2).key)
    assert "The rounds are kept by the service that measured it, as measurement" in shown.stdout
    assert "version 2" in client("table", "show", "--table", str(out)).stdout


def test_an_earlier_version_is_shown_and_exported_by_its_name(
    service_url: str, measured: str, operator: Callable[..., IBConv], tmp_path: Path
) -> None:
    at = ["--service", service_url, "--table", f"{measured}@1"]
    shown = client("table", "show", *at).stdout
    assert "version 1" in shown
    assert operator(height=3).key not in shown
    assert "round" in client("table", "show", *at, "--operator", operator(height=2).key).stdout
    out = tmp_path / "first.json"
    assert f"table version 1 of {measured}" in client("table", "export", *at, "--out", str(out)).stdout


def test_versions_are_compared_by_device_and_by_file(
    service_url: str, measured: str, operator: Callable[..., IBConv], tmp_path: Path
) -> None:
    at = ["--service", service_url]
    found = json.loads(client("table", "diff", f"{measured}@1", measured, *at, "--json").stdout)
    assert (found["in_both"], found["only_in_second"]) == (2, [operator(height=3).key])
    assert found["differs_in"]["version"] == ["1", "2"]
    out = tmp_path / "slower.json"
    document = json.loads(client("table", "show", *at, "--device", measured, "--json").stdout)
    for name in ("latency_ms", "low_ms", "high_ms"):
        document["entries"][0][name] *= 2
    out.write_text(json.dumps(document))
    shown = client("table", "diff", measured, str(out), *at)
    assert shown.exit_code == 0, shown.stderr
    assert operator(height=1).key in shown.stdout
    assert "2.000" in shown.stdout
    assert operator(height=2).key not in shown.stdout
    assert "1 of 3 with intervals differ significantly" in shown.stdout
    everything = client("table", "diff", measured, str(out), *at, "--all").stdout
    assert operator(height=2).key in everything


def test_a_table_to_compare_that_is_not_there_is_a_sentence(service_url: str, theirs: Path) -> None:
    nowhere = client("table", "diff", str(theirs), "nowhere")
    assert (nowhere.exit_code, "nowhere is no file. For a table of a service, give --service" in nowhere.stderr) == (
        2,
        True,
    )
    unknown = client("table", "diff", str(theirs), "nowhere", "--service", service_url)
    assert (unknown.exit_code, "There is no table 'nowhere'. The service has:" in unknown.stderr) == (2, True)


def test_a_table_is_exported_for_proxylessnas_with_its_variances(
    service_url: str, measured: str, tmp_path: Path
) -> None:
    out = tmp_path / "t.yaml"
    where = ["--service", service_url, "--device", measured, "--out", str(out)]
    result = client("table", "export", *where, "--format", "yaml")
    assert result.exit_code == 0, result.stderr
    document = yaml.safe_load(out.read_text())
    assert len(document) == 3
    entry = document["expanded_conv-input:2x8x8-output:2x8x8-expand:3-kernel:3-stride:1-idskip:0"]
    assert entry == {"count": 6, "mean": 2.0, "var": pytest.approx(4 * 3.5e-6)}


def test_operators_of_one_space_are_exported(theirs: Path, tmp_path: Path) -> None:
    for as_format, name in (("yaml", "t.yaml"), ("csv", "t.csv")):
        out = tmp_path / name
        where = ["--table", str(theirs), "--format", as_format, "--space", "basic", "--out", str(out)]
        result = client("table", "export", *where)
        assert result.exit_code == 0, result.stderr
        assert out.stat().st_size > 0
    lut = yaml.safe_load((tmp_path / "t.yaml").read_text())
    assert "Conv_1-input:7x7x320-output:7x7x1280" in lut
    assert "Logits-input:7x7x1280-output:1000" in lut
    assert len(lut) == len(BASIC.operators()) + 1
    refused = client("table", "export", "--table", str(theirs), "--format", "csv", "--space", "demo", "--out", "x")
    assert (refused.exit_code, "does not hold" in refused.stderr) == (1, True)


def test_a_linear_model_is_imported_shown_and_exported_as_json_alone(tmp_path: Path) -> None:
    rows = [",".join(COLUMNS), *(",".join(row[name] for name in COLUMNS) for row in lines())]
    (tmp_path / "model.csv").write_text("\n".join(rows))
    (tmp_path / "meta.json").write_text('{"bias_ms": 200}')
    out, copy = tmp_path / "model.json", tmp_path / "copy.json"
    command = ["table", "import", str(tmp_path / "model.csv"), "--device", "Pixel 1", "--out", str(out)]
    without = client(*command)
    assert (without.exit_code, "Give the JSON file with its bias_ms with --bias." in without.stderr) == (2, True)
    result = client(*command, "--bias", str(tmp_path / "meta.json"))
    assert "is tunas (by its content): a linear model of the space 'basic', 22 layers" in result.stdout
    assert isinstance(read_table(out), LinearModel)
    assert "IBConv_K3_E1 +0.000" in client("table", "show", "--table", str(out)).stdout
    assert client("table", "export", "--table", str(out), "--out", str(copy)).exit_code == 0
    assert read_table(copy) == read_table(out)
    for options in (["--format", "csv"], ["--format", "yaml"]):
        refused = client("table", "export", "--table", str(out), "--out", str(copy), *options)
        assert (refused.exit_code, "is a linear model" in refused.stderr) == (2, True)
    choices = ",".join(layer.choices[0] for layer in BASIC.layers)
    predicted = client("predict", "--table", str(out), "--space", "basic", "--choices", choices)
    assert predicted.stdout.startswith(f"{200 + sum(range(22)):.4f} ms (no interval is known)\nimported on")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["table", "show"], "Latencies come from a service (--service URL) or from a file (--table FILE). Give one."),
        (["table", "export", "--out", "x"], "Latencies come from a service"),
        (["table", "export", "--out", "x", "--width", "2"], "are the size of a space. Name it with --space"),
        (["table", "show", "--table", "nowhere.json"], "nowhere.json"),
        (["table", "import", "nowhere.csv", "--device", "Pixel 1", "--out", "x"], "nowhere.csv"),
        (["predict", "--space", "basic", "--choices", "a"], "'basic' has 22 layers, but 1 choices are given"),
    ],
)
def test_wrong_use_is_a_sentence(command: list[str], sentence: str) -> None:
    result = client(*command)
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr


def test_json_keeps_the_whole_table(theirs: Path) -> None:
    result = client("table", "export", "--table", str(theirs), "--space", "basic", "--out", "x")
    assert (result.exit_code, "--format json keeps the whole table. Leave out --space" in result.stderr) == (2, True)


def test_predictions_from_a_file_have_the_interval_that_its_operators_have(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(table_of(TINY, lambda _: 3.0).model_dump_json())
    choices = "IBConv_K3_E1,IBConv_K3_E1,IBConv_K3_E1,IBConv_K3_E2"
    space = str(Path(__file__).parent / "tiny.toml")
    result = client("predict", "--table", str(tmp_path / "t.json"), "--space", space, "--choices", choices, "--json")
    found = json.loads(result.stdout)
    assert found["latency_ms"] == pytest.approx(14.0)
    assert found["low_ms"] < 14.0 < found["high_ms"]


def test_a_space_of_another_size_is_predicted_and_exported_as_it_was_built(tmp_path: Path) -> None:
    tiny = str(Path(__file__).parent / "tiny.toml")
    larger = load_space(tiny, input_size=16, width=2.0, classes=7)
    (tmp_path / "t.json").write_text(table_of(larger, lambda _: 3.0).model_dump_json())
    table, size = ["--table", str(tmp_path / "t.json")], ["--input-size", "16", "--width", "2", "--classes", "7"]
    choices = "IBConv_K3_E1,IBConv_K3_E1,IBConv_K3_E1,IBConv_K3_E2"
    predict = ["predict", *table, "--space", tiny, "--choices", choices, "--json"]
    assert "does not hold" in client(*predict).stderr
    assert json.loads(client(*predict, *size).stdout)["latency_ms"] == pytest.approx(14.0)
    out = tmp_path / "t.csv"
    export = ["table", "export", *table, "--format", "csv", "--space", tiny, "--out", str(out)]
    assert "does not hold" in client(*export).stderr
    assert client(*export, *size).exit_code == 0
    rows = [line for line in out.read_text().splitlines() if not line.startswith("#")]
    assert len(rows) == 1 + len(larger.operators())


def test_a_choice_that_a_layer_does_not_offer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(table_of(TINY, lambda _: 3.0).model_dump_json())
    space = str(Path(__file__).parent / "tiny.toml")
    for choices in (
        "Identity,IBConv_K3_E1,IBConv_K3_E1,IBConv_K3_E2",
        "IBConv_K7_E6,IBConv_K3_E1,IBConv_K3_E1,Identity",
    ):
        result = client("predict", "--table", str(tmp_path / "t.json"), "--space", space, "--choices", choices)
        assert (result.exit_code, "does not offer" in result.stderr) == (1, True), result.stderr


def test_a_table_of_another_device_than_asked_for_is_refused(theirs: Path) -> None:
    for command in (["table", "show"], ["table", "export", "--out", "x"]):
        result = client(*command, "--table", str(theirs), "--device", "Pixel 9")
        assert (result.exit_code, "not of Pixel 9. Leave --device out." in result.stderr) == (2, True)


def test_a_key_of_another_operator_is_checked_before_anything_is_asked() -> None:
    result = client("table", "build", "--service", "http://127.0.0.1:9", "--space", "demo", "--operator", "Conv")
    assert (result.exit_code, "'Conv' is not an operator's key" in result.stderr) == (2, True)


def test_a_linear_model_has_no_entries_to_open(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(linear_model_of(TINY, lambda index, _: index).model_dump_json())
    result = client("table", "show", "--table", str(tmp_path / "m.json"), "--operator", TINY.stem.key)
    assert (result.exit_code, "is a linear model" in result.stderr) == (2, True)
