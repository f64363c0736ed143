"""Algorithm 1 with published accuracies: latencies are measured here, nothing is trained."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.processes import running_service
from search_client.cli import app

pytestmark = pytest.mark.usefixtures("this_machine")


def test_a_search_with_published_accuracies_knows_how_far_it_is_from_the_optimum(
    shared_data: Path, tmp_path: Path
) -> None:
    table = shared_data / "nas-bench-macro_cifar10.json"
    out = tmp_path / "run"
    with running_service(tmp_path, "--with-local-agent") as (_, url):
        command = ["search", "--service", url, "--space", "nas-bench-macro", "--oracle", f"nas-bench-macro:{table}"]
        result = CliRunner().invoke(app, [*command, "--out", str(out), "--wait"])
        assert result.exit_code == 0, result.stderr
        final = json.loads((out / "final.json").read_text())
        (out / "final.json").unlink()
        assert CliRunner().invoke(app, [*command, "--out", str(out)]).exit_code == 0
        assert json.loads((out / "final.json").read_text()) == final
    assert [stage["stage"] for stage in final["stages"]] == [1, 2, 3]
    assert final["stages"][-1]["size"] <= final["stages"][0]["size"] == 6561
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    assert final["data_sha256"] == json.loads((out / "data.json").read_text())["sha256"] == sha256
    entries = json.loads(table.read_text())
    places = {"Identity": "0", "Conv_K1": "0", "IBConv_K3_E3": "1", "IBConv_K5_E6": "2"}
    for architecture in final["architectures"]:
        digits = "".join(places[choice] for choice in architecture["choices"].values())
        assert architecture["accuracy"] == entries[digits]["mean_acc"] / 100
        assert "one_shot_accuracy" not in architecture
    assert final["regret"] == pytest.approx(0.0, abs=0.005)
    assert 0.9 < final["hypervolume_ratio"] <= 1
    assert not list(out.rglob("*.safetensors"))
    assert not list(out.rglob("training.jsonl"))
    assert "published accuracy" in (out / "report.html").read_text()
