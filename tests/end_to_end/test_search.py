"""Algorithm 1 end to end: service, agent and client as processes of their own, on this machine's processor."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from benchmarks.processes import Program, running_agent, running_service
from latency_contract.operators import Network
from latency_contract.tables import Table

SMALLEST = Path(__file__).parent / "smallest.toml"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a local agent: what `padnas-service serve --with-local-agent` starts."""
    with running_service(tmp_path_factory.mktemp("service"), "--with-local-agent") as (_, url):
        yield url


def client(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "search_client", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=200,
    )


def search(service: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return client(
        "search", "--service", service, "--space", str(SMALLEST), "--data", "digits", "--out", str(out), *arguments
    )


@pytest.fixture(scope="module")
def finished(service: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a search that ran to its end."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = search(service, out)
    assert result.returncode == 0, result.stderr
    assert "Final architectures on" in result.stdout
    return out


def test_a_search_leaves_everything_it_should(finished: Path) -> None:
    for name in (
        "config.toml",
        "table.json",
        "final.json",
        "report.html",
        "figures/pareto.png",
        "figures/distribution.png",
    ):
        assert (finished / name).stat().st_size > 0, name
    for stage in (1, 2, 3):
        for name in ("space.json", "distribution.json", "history.jsonl", "training.jsonl", "supernet.safetensors"):
            assert (finished / f"stage-{stage}" / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.unfinished"))


def test_final_architectures_are_measured_and_inside_the_bounds(finished: Path) -> None:
    final = json.loads((finished / "final.json").read_text())
    low_ms, high_ms = final["latency_bounds_ms"]
    table = Table.model_validate_json((finished / "table.json").read_text())
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


def test_the_same_command_again_ends_at_once_with_the_same_result(service: str, finished: Path) -> None:
    before = (finished / "final.json").read_bytes()
    result = search(service, finished)
    assert result.returncode == 0, result.stderr
    assert (finished / "final.json").read_bytes() == before


def test_another_directory_with_the_same_settings_ends_with_the_same_bytes(
    service: str, finished: Path, tmp_path: Path
) -> None:
    assert search(service, tmp_path / "again").returncode == 0
    assert (tmp_path / "again" / "final.json").read_bytes() == (finished / "final.json").read_bytes()


def test_a_search_killed_again_and_again_ends_with_the_same_bytes(service: str, finished: Path, tmp_path: Path) -> None:
    """kill -9 as soon as each of these files is there: in training, between stages, in a search."""
    out = tmp_path / "run"
    arguments = ["search", "--service", service, "--space", str(SMALLEST), "--data", "digits", "--out", str(out)]
    for witness in ("config.toml", "stage-1/training.jsonl", "stage-1/history.jsonl", "stage-2/history.jsonl"):
        program = Program("search_client", *arguments, log=tmp_path / "client.log")
        while not (out / witness).exists():
            assert program.process.poll() is None, program.log.read_text()
        program.kill()
    assert search(service, out).returncode == 0
    assert (out / "final.json").read_bytes() == (finished / "final.json").read_bytes()


def test_other_settings_in_the_same_directory_are_refused(service: str, finished: Path) -> None:
    result = search(service, finished, "--seed", "7")
    assert result.returncode == 1
    assert "belongs to another search: seed is 0 there and 7 here" in result.stderr
    assert "Traceback" not in result.stderr


def test_bounds_that_nothing_meets_name_the_attainable_range(service: str, finished: Path, tmp_path: Path) -> None:
    del finished  # its table is complete, so the refusal comes before the training
    result = search(service, tmp_path / "run", "--latency-min", "500", "--latency-max", "600")
    assert result.returncode == 1
    assert "No architecture with a latency between 500 and 600 ms was found: this space reaches from" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "stage-1").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--device", "Pixel 99"], 1, "There is no device 'Pixel 99'. The service knows:"),
        (["--space", "nowhere"], 1, "There is no search space 'nowhere'. Use basic, demo, large"),
        (["--data", "nothing"], 1, "There is no data set 'nothing'. Known data sets: digits"),
        (["--latency-min", "2", "--latency-max", "1"], 2, "latency_min_ms 2 is above latency_max_ms 1"),
        (["--epochs", "1,x"], 2, "'1,x' is not a list of numbers"),
        (["--stages", "9"], 2, "9 stages train the supernet 8 times"),
    ],
)
def test_wrong_input_is_a_sentence(
    service: str, tmp_path: Path, arguments: list[str], status: int, sentence: str
) -> None:
    result = search(service, tmp_path / "run", *arguments)
    assert result.returncode == status
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_service_that_cannot_be_reached_is_a_sentence(tmp_path: Path) -> None:
    result = search("http://127.0.0.1:9", tmp_path / "run")
    assert result.returncode == 1
    assert "The service at http://127.0.0.1:9 does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_parts_of_a_search_work_on_their_own(service: str, finished: Path, tmp_path: Path) -> None:
    final = json.loads((finished / "final.json").read_text())
    first = final["architectures"][0]
    at = ["--service", service]
    assert json.loads(client("devices", *at, "--json").stdout)[0]["model"] == final["device_model"]
    assert "smallest" not in client("spaces").stdout
    built = client("table", "build", *at, "--space", str(SMALLEST))
    assert "of this space:" in built.stdout, built.stderr
    assert "IBConv_K5_E2" in client("table", "show", *at).stdout
    assert client("table", "export", *at, "--format", "csv", "--out", str(tmp_path / "t.csv")).returncode == 0
    assert (tmp_path / "t.csv").read_text().startswith(f"# device model: {final['device_model']}\n")
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


def test_a_search_survives_a_killed_agent_and_a_killed_service(finished: Path, tmp_path: Path) -> None:
    """Both die by kill -9 in the middle of a table and come back; nothing is lost, nothing is counted twice."""
    (tmp_path / "service").mkdir()
    with running_service(tmp_path / "service") as (first, url):
        port = int(url.rpartition(":")[2])
        searching = Program(
            "search_client", "search", "--service", url, "--space", str(SMALLEST), "--data", "digits",
            "--out", str(tmp_path / "run"), "--wait", log=tmp_path / "client.log",
        )  # fmt: skip
        with running_agent(tmp_path, url) as agent:
            agent.wait_for_line(r"(leased \d+ jobs)")
            agent.kill()
        first.kill()
    with running_service(tmp_path / "service", port=port) as (_, url), running_agent(tmp_path, url):
        assert searching.process.wait(150) == 0, searching.log.read_text()
        entries = json.loads((tmp_path / "run" / "table.json").read_text())["entries"]
        assert len({entry["key"] for entry in entries}) == len(entries)
        expected = json.loads((finished / "table.json").read_text())["entries"]
        assert {entry["key"] for entry in expected} <= {entry["key"] for entry in entries}


def test_stopping_the_service_stops_its_agent(tmp_path: Path) -> None:
    with running_service(tmp_path, "--with-local-agent") as (service, _):
        service.wait_for_line(r"(measuring on .*)")
        agent = int(
            subprocess.check_output(["pgrep", "-P", str(service.process.pid), "-f", "device_agents"], text=True)
        )
        assert service.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(agent, signal.SIGCONT)
