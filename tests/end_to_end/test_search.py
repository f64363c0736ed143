"""Algorithm 1 end to end: service, agent and client as processes of their own, on this machine's processor."""

import json
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

from benchmarks.processes import Program, running_service
from latency_contract.operators import Network
from latency_contract.tables import Table
from search_client.cli import app
from search_client.data import load_data

pytestmark = pytest.mark.usefixtures("this_machine")

SMALLEST = Path(__file__).parent / "smallest.toml"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a local agent: what `padnas-service serve --with-local-agent` starts."""
    with running_service(tmp_path_factory.mktemp("service"), "--with-local-agent") as (_, url):
        yield url


def search_command(service: str, out: Path, *options: str) -> list[str]:
    return ["search", "--service", service, "--space", str(SMALLEST), "--data", "digits", "--out", str(out), *options]


def client(*arguments: str) -> Result:
    """The client's command line in this process, which has PyTorch already."""
    return CliRunner().invoke(app, arguments)


def table_of_run(path: Path) -> Table:
    return Table.model_validate_json((path / "table.json").read_text())


@pytest.fixture(scope="module")
def finished(service: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a search that ran to its end."""
    folder = tmp_path_factory.mktemp("finished")
    with Program("search_client", *search_command(service, folder / "run"), log=folder / "client.log") as program:
        assert program.process.wait(100) == 0, program.log.read_text()
        assert "Final architectures on" in program.log.read_text()
    return folder / "run"


def test_a_search_leaves_everything_it_should(finished: Path) -> None:
    for name in (
        "config.toml",
        "table.json",
        "final.json",
        "report.html",
        "figures/pareto.png",
        "figures/distribution.png",
        "figures/architectures.png",
        "figures/supernet_accuracy.png",
    ):
        assert (finished / name).stat().st_size > 0, name
    for stage in (1, 2, 3):
        for name in ("space.json", "distribution.json", "history.jsonl", "training.jsonl", "supernet.safetensors"):
            assert (finished / f"stage-{stage}" / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.unfinished"))


def test_final_architectures_are_measured_and_inside_the_bounds(finished: Path) -> None:
    final = json.loads((finished / "final.json").read_text())
    low_ms, high_ms = final["latency_bounds_ms"]
    table = table_of_run(finished)
    assert final["table"] == {"table_id": table.table_id, "version": table.version}
    assert 1 <= len(final["architectures"]) <= 2
    for architecture in final["architectures"]:
        network = Network.model_validate(architecture["network"])
        predicted = sum(table.by_subject[operator.id].latency_ms for operator in network.operators)
        assert architecture["predicted_latency"]["latency_ms"] == pytest.approx(predicted)
        assert low_ms <= predicted <= high_ms
        measured = architecture["measured_latency"]
        assert 0 < measured["low_ms"] <= measured["latency_ms"] <= measured["high_ms"]
        assert (architecture["macs"], architecture["parameters"]) == (network.macs, network.parameters)
        assert 0 <= architecture["one_shot_accuracy"] <= 1


def test_each_stage_searches_a_space_that_the_one_before_has_left(finished: Path) -> None:
    spaces = [json.loads((finished / f"stage-{stage}" / "space.json").read_text()) for stage in (1, 2, 3)]
    for before, after in pairwise(spaces):
        distribution = json.loads((finished / f"stage-{spaces.index(before) + 1}" / "distribution.json").read_text())
        for old, new in zip(before["layers"], after["layers"], strict=True):
            kept = [choice for choice in old["choices"] if distribution[old["name"]][choice] > 0.01]
            assert new["choices"] == kept


def test_a_finished_search_is_shown_again_without_any_service(finished: Path) -> None:
    before = (finished / "final.json").read_bytes()
    result = client(*search_command("http://127.0.0.1:9", finished))
    assert result.exit_code == 0, result.stderr
    assert "holds a finished search" in result.stderr
    assert "Final architectures on" in result.stdout
    assert (finished / "final.json").read_bytes() == before


def test_a_search_whose_device_is_gone_is_finished_without_it(finished: Path, tmp_path: Path) -> None:
    """All that it still needed a device for, is gone from the copy."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("final.json", "measured.json", "report.html"):
        (run / name).unlink()
    options = search_command("http://127.0.0.1:9", run)[3:]
    result = client("search", *options, "--without-device")
    assert result.exit_code == 0, result.stderr
    before, after = (json.loads((path / "final.json").read_text()) for path in (finished, run))
    for architecture in before["architectures"]:
        architecture["measured_latency"] = None
    assert after["architectures"] == before["architectures"]
    assert (run / "report.html").exists()


def test_a_found_network_is_exported_as_the_search_scored_it(finished: Path, tmp_path: Path) -> None:
    final, out = json.loads((finished / "final.json").read_text()), tmp_path / "network.onnx"
    found = final["architectures"][0]
    result = client("export", "--from", str(finished), "--name", found["name"], "--format", "onnx", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    data = load_data("digits", input_size=8, validation_per_class=50, seed=final["config"]["seed"])
    count = len(data.test.labels)
    ((images, labels),) = data.test.batches(torch.arange(count), batch_size=count)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": images.numpy()})
    accuracy = (logits.argmax(axis=1) == labels.numpy()).mean()
    assert accuracy == pytest.approx(found["one_shot_test_accuracy"], abs=1.5 / len(logits))


def test_found_networks_are_trained_alone_exported_and_reported(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    trained = client("train", "--from", str(run), "--spread", "2", "--epochs", "1", "--json")
    assert trained.exit_code == 0, trained.stderr
    names = [one["name"] for one in json.loads(trained.stdout)]
    assert names == [path.name for path in sorted((run / "standalone").iterdir())]
    onnx = tmp_path / "network.onnx"
    alone = run / "standalone" / names[0]
    assert client("export", "--from", str(alone), "--format", "onnx", "--out", str(onnx)).exit_code == 0
    assert onnx.stat().st_size > 0
    assert client("report", str(run)).exit_code == 0
    page = (run / "report.html").read_text()
    assert all(name in page for name in names)
    assert not any(name in (finished / "report.html").read_text() for name in names)


def test_latency_targets_name_the_final_networks(service: str, finished: Path, tmp_path: Path) -> None:
    low_ms, high_ms = json.loads((finished / "final.json").read_text())["latency_bounds_ms"]
    target = f"{(low_ms + high_ms) / 2:.4f}"
    bounds = ["--latency-min", f"{low_ms}", "--latency-max", f"{high_ms}", "--latency-targets", target]
    result = client(*search_command(service, tmp_path / "run", *bounds, "--json"))
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["architectures"]
    assert found["name"] == f"{float(target):g}ms"
    assert found["predicted_latency"]["latency_ms"] <= float(target)


def test_a_search_stopped_before_its_last_file_ends_with_the_same_bytes(
    service: str, finished: Path, tmp_path: Path
) -> None:
    """The measured networks are in the directory: a service that has forgotten them would measure other numbers."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "final.json").unlink()
    measured = (out / "measured.json").read_text()
    assert client(*search_command(service, out)).exit_code == 0
    assert (out / "final.json").read_bytes() == (finished / "final.json").read_bytes()
    assert (out / "measured.json").read_text() == measured


def test_another_directory_with_the_same_settings_ends_with_the_same_bytes(
    service: str, finished: Path, tmp_path: Path
) -> None:
    assert client(*search_command(service, tmp_path / "again")).exit_code == 0
    assert (tmp_path / "again" / "final.json").read_bytes() == (finished / "final.json").read_bytes()


def test_a_search_killed_again_and_again_ends_with_the_same_bytes(service: str, finished: Path, tmp_path: Path) -> None:
    """kill -9 as soon as each of these is there: in training, in a search, at pruning, at the final measurement."""
    out = tmp_path / "run"
    witnesses = ("config.toml", "stage-1/training.jsonl", "stage-1/history.jsonl", "stage-1/distribution.json")
    for witness in (*witnesses, "stage-2/history.jsonl", "stage-3/distribution.json"):
        with Program("search_client", *search_command(service, out), log=tmp_path / "client.log") as program:
            while not (out / witness).exists():
                assert program.process.poll() is None, program.log.read_text()
                time.sleep(0.001)
            program.kill()
    assert client(*search_command(service, out)).exit_code == 0
    assert (out / "final.json").read_bytes() == (finished / "final.json").read_bytes()


def test_a_search_does_not_go_on_under_another_protocol(service: str, finished: Path, tmp_path: Path) -> None:
    """The runtime was updated since the table was measured: the copy in the directory says so."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "final.json").unlink()
    table = json.loads((out / "table.json").read_text())
    table["protocol"]["runtime_version"] = "1.0.0"
    (out / "table.json").write_text(json.dumps(table))
    result = client(*search_command(service, out))
    assert result.exit_code == 1
    assert "under litert 1.0.0" in result.stderr
    assert "Start a new search with another --out" in result.stderr


def test_other_settings_in_the_same_directory_are_refused(service: str, finished: Path) -> None:
    result = client(*search_command(service, finished, "--seed", "7"))
    assert result.exit_code == 1
    assert "belongs to another search: seed is 0 there and 7 here" in result.stderr


def test_bounds_that_nothing_meets_name_the_attainable_range(service: str, finished: Path, tmp_path: Path) -> None:
    del finished  # its table is complete, so the refusal comes before the training
    result = client(*search_command(service, tmp_path / "run", "--latency-min", "500", "--latency-max", "600"))
    assert result.exit_code == 1
    assert "No architecture with a latency between 500 and 600 ms was found: this space reaches from" in result.stderr
    assert not (tmp_path / "run" / "stage-1").exists()


def test_parts_of_a_search_work_on_their_own(service: str, finished: Path, tmp_path: Path) -> None:
    final = json.loads((finished / "final.json").read_text())
    first = final["architectures"][0]
    at = ["--service", service]
    assert json.loads(client("devices", *at, "--json").stdout)[0]["model"] == final["device_model"]
    assert "smallest" not in client("spaces").stdout
    built = client("table", "build", *at, "--space", str(SMALLEST))
    assert "of this space:" in built.stdout, built.stderr
    assert "IBConv_K5_E2" in client("table", "show", *at).stdout
    assert client("table", "export", *at, "--format", "csv", "--out", str(tmp_path / "t.csv")).exit_code == 0
    assert (tmp_path / "t.csv").read_text().startswith(f"# device model: {final['device_model']}\n")
    stem_key = table_of_run(finished).entries[0].key
    assert "reference before" in client("table", "show", *at, "--operator", stem_key).stdout
    assert client("table", "export", *at, "--out", str(tmp_path / "t.json")).exit_code == 0
    assert (
        "differ significantly" in client("table", "diff", final["device_model"], str(tmp_path / "t.json"), *at).stdout
    )
    predicted = client("predict", *at, "--from", str(finished / "final.json"), "--json")
    assert json.loads(predicted.stdout)["latency_ms"] == pytest.approx(first["predicted_latency"]["latency_ms"])
    choices = ",".join(first["choices"].values())
    same = client("predict", *at, "--space", str(SMALLEST), "--choices", choices, "--json")
    assert same.stdout == predicted.stdout
    measured = client("measure", *at, "--from", str(finished / "final.json"), "--json")
    assert json.loads(measured.stdout)["latency_ms"] == first["measured_latency"]["latency_ms"]
    key = first["network"]["operators"][0]
    one = httpx.get(
        f"{service}/v1/devices/{final['device_model']}/latencies/Conv_K3_H{key['height']}_W{key['width']}"
        f"_I3_O{key['out_channels']}_S{key['stride']}_relu6"
    ).json()
    assert one["status"] == "measured"
