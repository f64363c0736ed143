"""Algorithm 1 against a table in a file: no service, no agent, no device."""

import json
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.processes import Program
from latency_contract.tables import Table
from search_client.cli import app
from search_client.imported_tables import ImportedTable, LinearModel, read_table
from search_client.spaces import load_space
from tests.search_client.tables import linear_model_of, table_of

SMALLEST = Path(__file__).parent / "smallest.toml"
SPACE = load_space(str(SMALLEST))


def client(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"PADNAS_SERVICE": ""})


def search_command(table: Path, out: Path, *options: str) -> list[str]:
    where = ["--space", str(SMALLEST), "--data", "digits", "--out", str(out)]
    return ["search", "--table", str(table), *where, *options]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's CSV, imported: a microsecond for a thousand multiply-accumulates."""
    folder = tmp_path_factory.mktemp("table")
    lines = [f"{operator.key},{operator.macs / 1e6}" for operator in SPACE.operators()]
    (folder / "theirs.csv").write_text("key,latency_ms\n" + "\n".join(lines))
    out = folder / "theirs.json"
    result = client("table", "import", str(folder / "theirs.csv"), "--device", "Pixel 1", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert "theirs.csv is csv (by its content): 10 operators of Pixel 1" in result.stdout
    return out


@pytest.fixture(scope="module")
def finished(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    result = client(*search_command(table, out))
    assert result.exit_code == 0, result.stderr
    assert "latencies imported, nothing measured" in result.stdout
    assert "imported table of Pixel 1 (theirs.csv): architectures take" in result.stderr
    return out


def test_what_was_found_says_where_latencies_come_from_and_that_nothing_was_measured(
    table: Path, finished: Path
) -> None:
    final = json.loads((finished / "final.json").read_text())
    imported = read_table(table)
    assert isinstance(imported, ImportedTable)
    assert read_table(finished / "table.json") == imported
    assert final["device_model"] == "Pixel 1"
    assert final["table"]["imported"]["files"][0]["name"] == "theirs.csv"
    assert final["protocol"] is None
    assert final["architectures"]
    low_ms, high_ms = final["latency_bounds_ms"]
    for one in final["architectures"]:
        assert one["measured_latency"] is None
        predicted = one["predicted_latency"]
        assert predicted["latency_ms"] == pytest.approx(one["macs"] / 1e6)
        assert (predicted["low_ms"], predicted["high_ms"]) == (None, None)
        assert low_ms <= predicted["latency_ms"] <= high_ms
    page = (finished / "report.html").read_text()
    assert "no network was measured" in page
    assert "imported on" in page
    assert not (finished / "measured.json").exists()


def test_a_comparison_says_that_latencies_are_imported(finished: Path, tmp_path: Path) -> None:
    result = client("compare", str(finished), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    assert "Latencies were not measured but taken from a table: imported on" in result.stdout


def test_found_networks_are_predicted_from_the_file_as_the_search_did(table: Path, finished: Path) -> None:
    final = finished / "final.json"
    result = client("predict", "--table", str(table), "--from", str(final), "--json")
    found = json.loads(final.read_text())["architectures"][0]
    assert json.loads(result.stdout) == found["predicted_latency"]


def test_a_search_stopped_before_its_last_file_ends_with_the_same_bytes(
    table: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "final.json").unlink()
    assert client(*search_command(table, out)).exit_code == 0
    assert (out / "final.json").read_bytes() == (finished / "final.json").read_bytes()


def test_a_search_killed_again_and_again_ends_with_the_same_bytes(table: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for witness in ("stage-1/training.jsonl", "stage-2/history.jsonl"):
        with Program("search_client", *search_command(table, out), log=tmp_path / "client.log") as program:
            while not (out / witness).exists():
                assert program.process.poll() is None, program.log.read_text()
                time.sleep(0.001)
            program.kill()
    assert client(*search_command(table, out)).exit_code == 0
    assert (out / "final.json").read_bytes() == (finished / "final.json").read_bytes()


def test_a_search_does_not_go_on_with_another_table(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(table_of(SPACE, lambda _: 2.0).model_dump_json())
    shutil.copytree(finished, tmp_path / "run")
    result = client(*search_command(other, tmp_path / "run"))
    assert (result.exit_code, "belongs to another search: table is" in result.stderr) == (1, True)


def test_a_search_does_not_go_on_when_its_table_says_something_else(
    table: Path, finished: Path, tmp_path: Path
) -> None:
    out, changed = tmp_path / "run", tmp_path / "theirs.json"
    shutil.copytree(finished, out)
    (out / "final.json").unlink()
    (out / "config.toml").write_text((out / "config.toml").read_text().replace(str(table), str(changed)))
    changed.write_text(table.read_text().replace('"device_model": "Pixel 1"', '"device_model": "Pixel 2"'))
    result = client(*search_command(changed, out))
    assert result.exit_code == 1
    assert "This search began with the imported table of Pixel 1 (theirs.csv), and the file" in result.stderr


def test_an_operator_that_the_table_lacks_is_named_before_anything_is_trained(table: Path, tmp_path: Path) -> None:
    document = json.loads(table.read_text())
    missing = document["entries"].pop()
    short = tmp_path / "short.json"
    short.write_text(json.dumps(document))
    result = client(*search_command(short, tmp_path / "run"))
    assert result.exit_code == 1
    assert f"does not hold {missing['key']} (1 of 10 operators). Import a table that covers this space" in result.stderr
    assert not (tmp_path / "run" / "stage-1").exists()
    assert not (tmp_path / "run" / "table.json").exists()


def test_another_device_than_the_tables_is_refused(table: Path, tmp_path: Path) -> None:
    result = client(*search_command(table, tmp_path / "run", "--device", "Pixel 3"))
    assert result.exit_code == 2
    assert "is of Pixel 1, not of Pixel 3. Leave --device out." in result.stderr


def test_a_search_goes_by_the_offsets_of_a_linear_model(tmp_path: Path) -> None:
    model = linear_model_of(SPACE, lambda index, choice: sum(map(ord, choice)) % 11 - 3.0 * index, bias_ms=20.0)
    (tmp_path / "model.json").write_text(model.model_dump_json())
    result = client(*search_command(tmp_path / "model.json", tmp_path / "run", "--json"))
    assert result.exit_code == 0, result.stderr
    assert isinstance(read_table(tmp_path / "run" / "table.json"), LinearModel)
    for one in json.loads(result.stdout)["architectures"]:
        expected = model.latency_ms(tuple(one["choices"].values()))
        assert one["predicted_latency"]["latency_ms"] == pytest.approx(expected)


def test_an_exported_table_serves_without_its_service(tmp_path: Path) -> None:
    measured = table_of(SPACE, lambda operator: operator.macs / 1e5)
    (tmp_path / "table.json").write_text(measured.model_dump_json())
    result = client(*search_command(tmp_path / "table.json", tmp_path / "run", "--json"))
    assert result.exit_code == 0, result.stderr
    final = json.loads(result.stdout)
    assert final["table"] == {"table_id": measured.table_id, "version": 1}
    assert final["protocol"]["runtime"] == "litert"
    assert all(one["measured_latency"] is None for one in final["architectures"])
    assert all(one["predicted_latency"]["low_ms"] is not None for one in final["architectures"])
    assert isinstance(read_table(tmp_path / "run" / "table.json"), Table)
    assert "no network was measured" in (tmp_path / "run" / "report.html").read_text()


def test_without_a_service_and_a_table_it_is_said_what_to_give(tmp_path: Path) -> None:
    command = ["search", "--space", str(SMALLEST), "--data", "digits", "--out", str(tmp_path / "run")]
    result = client(*command)
    assert result.exit_code == 2
    assert "Latencies come from a service (--service URL) or from a file (--table FILE). Give one." in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_bound_that_holds_with_a_probability_leaves_room_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """A measured table that knows its operators to a tenth; the same search, stopped before its end, goes on."""
    table = table_of(SPACE, lambda operator: operator.macs / 1e4)
    (tmp_path / "measured.json").write_text(table.model_dump_json())
    command = search_command(tmp_path / "measured.json", tmp_path / "run", "--latency-confidence", "0.9")
    result = client(*command)
    assert result.exit_code == 0, result.stderr
    document = (tmp_path / "run" / "final.json").read_bytes()
    final = json.loads(document)
    assert final["calibration"] is None
    assert "not calibrated for this space (whole networks were never held against these measurements)" in result.stderr
    assert "and so does --latency-confidence. `padnas-client table calibrate`, with the same --space" in result.stderr
    evaluated = [json.loads(line) for line in (tmp_path / "run" / "stage-1" / "history.jsonl").read_text().splitlines()]
    assert all(one["latency_ms"] < one["at_most_ms"] <= final["latency_bounds_ms"][1] for one in evaluated)
    assert all(one["low_ms"] < one["latency_ms"] < one["high_ms"] for one in evaluated)
    assert "the upper with probability 0.9 at least" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "final.json").unlink()
    assert client(*command).exit_code == 0
    assert (tmp_path / "run" / "final.json").read_bytes() == document


def test_a_band_that_leaves_no_room_for_the_confidence_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """The band overlaps what the space attains, and still holds nothing."""
    measured = tmp_path / "measured.json"
    measured.write_text(table_of(SPACE, lambda operator: operator.macs / 1e4).model_dump_json())
    found = json.loads(client(*search_command(measured, tmp_path / "free", "--json")).stdout)
    middle_ms = found["architectures"][0]["predicted_latency"]["latency_ms"]
    bounds = ["--latency-min", str(0.99 * middle_ms), "--latency-max", str(1.01 * middle_ms)]
    result = client(*search_command(measured, tmp_path / "run", *bounds, "--latency-confidence", "0.9999"))
    assert result.exit_code == 1
    assert "With --latency-confidence, predictions have to stay" in result.stderr
    assert not (tmp_path / "run" / "stage-1").exists()


def test_a_table_without_intervals_cannot_promise_a_probability(table: Path, tmp_path: Path) -> None:
    result = client(*search_command(table, tmp_path / "run", "--latency-confidence", "0.9"))
    assert result.exit_code == 1
    assert "does not say how well it knows its latencies" in result.stderr
    assert "Leave out --latency-confidence" in result.stderr
