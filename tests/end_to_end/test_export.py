"""From trained weights to a TFLite file and to its latency: export by the service, measured as it is by an agent."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from benchmarks.processes import running_service
from latency_contract.canonical import canonical_json
from latency_contract.operators import Network
from latency_contract.tables import Latency
from search_client.cli import app
from tests.conftest import sha256
from tests.search_client.test_export import NETWORKS, SQUEEZED, TOLERANCE, digits, trained_on_digits

pytestmark = pytest.mark.usefixtures("this_machine")

IMAGES = 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(tmp_path_factory.mktemp("service"), "--with-local-agent") as (_, url):
        yield url


def client(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def save(module: nn.Module, network: Network, folder: Path) -> None:
    """As `padnas-client train` leaves a network."""
    (folder / "network.json").write_text(canonical_json(network))
    save_file(module.state_dict(), folder / "weights.safetensors")


def export(service: str, folder: Path) -> Result:
    out = str(folder / "network.tflite")
    return client("export", "--service", service, "--from", str(folder), "--format", "tflite", "--out", out)


@pytest.mark.parametrize("name", NETWORKS)
def test_tflite_computes_what_pytorch_computes(service: str, tmp_path: Path, name: str) -> None:
    network, module = NETWORKS[name], trained_on_digits(NETWORKS[name])
    save(module, network, tmp_path)
    result = export(service, tmp_path)
    assert result.exit_code == 0, result.stderr
    side = network.operators[0].height
    assert f"for images (1, {side}, {side}, 3) normalised as in training" in result.stdout
    ((images, _),) = digits(side).test.batches(torch.arange(IMAGES), batch_size=IMAGES)
    with torch.no_grad():
        expected = module(images).numpy()
    interpreter = Interpreter(model_path=str(tmp_path / "network.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    got = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.permute(1, 2, 0)[None].numpy())
        interpreter.invoke()
        got.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    assert np.abs(np.array(got) - expected).max() < TOLERANCE


def test_an_exported_file_is_measured_as_it_is_and_once(service: str, tmp_path: Path) -> None:
    save(trained_on_digits(SQUEEZED), SQUEEZED, tmp_path)
    export(service, tmp_path)
    command = ["measure", "--service", service, "--tflite", str(tmp_path / "network.tflite"), "--json"]
    result = client(*command)
    assert result.exit_code == 0, result.stderr
    latency = Latency.model_validate_json(result.stdout)
    assert latency.latency_ms > 0
    assert Latency.model_validate_json(client(*command).stdout) == latency


def test_a_file_that_litert_refuses_is_a_sentence(service: str, tmp_path: Path) -> None:
    file = tmp_path / "cut.tflite"
    file.write_bytes(b"\x1c\x00\x00\x00TFL3 and then nothing")
    result = client("measure", "--service", service, "--tflite", str(file))
    assert result.exit_code == 1
    assert f"TFLite_{sha256(file.read_bytes())[:12]}: LiteRT refuses this model" in result.stderr


def test_weights_that_are_not_finite_are_refused_by_name(service: str, tmp_path: Path) -> None:
    module = trained_on_digits(SQUEEZED)
    module.state_dict()["2.linear.conv.bias"].fill_(torch.nan)
    save(module, SQUEEZED, tmp_path)
    result = export(service, tmp_path)
    assert result.exit_code == 1
    assert "2.linear.bias holds values that are not finite" in result.stderr
    assert not (tmp_path / "network.tflite").exists()
