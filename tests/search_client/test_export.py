"""Exported files compute what PyTorch computes, on real images; and what cannot be exported is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from latency_contract.canonical import canonical_json
from latency_contract.operators import Activation, Conv, Head, IBConv, Network
from search_client.cli import app
from search_client.data import load_data
from search_client.errors import MissingPackage, NoTrainedNetwork
from search_client.export import Trained, load_trained, to_onnx
from search_client.networks import build_network
from search_client.spaces import load_space

TOLERANCE = 1e-4
Make = Callable[..., Path]

DEMO = load_space("demo")
# What the demo space has not: squeeze-and-excitation, h-swish, an even kernel's uneven padding under stride 2.
SQUEEZED = Network(
    operators=(
        Conv(height=32, width=32, in_channels=3, out_channels=8, kernel=3, stride=2, activation=Activation.HSWISH),
        IBConv(
            height=16, width=16, in_channels=8, out_channels=8, kernel=5, stride=1, expansion=4, residual=True,
            activation=Activation.HSWISH, squeeze_excite=True,
        ),
        Head(
            height=16, width=16, in_channels=8, hidden_channels=32, out_channels=10, activation=Activation.HSWISH
        ),
    )
)  # fmt: skip
NETWORKS = {"demo": DEMO.network(DEMO.sample(np.random.default_rng(0))), "squeezed": SQUEEZED}


def trained_on_digits(network: Network) -> nn.Sequential:
    """Some steps of training: weights, scales, shifts and batch-norm statistics are all those of real images."""
    torch.manual_seed(0)
    data = load_data("digits", input_size=network.operators[0].height, seed=0)
    module = build_network(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    for step in range(18):
        batch = slice(64 * step, 64 * (step + 1))
        loss = nn.functional.cross_entropy(module(data.train_images[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


@pytest.fixture
def directory(tmp_path: Path) -> Make:
    """What `padnas-client train` leaves."""

    def make(network: Network) -> Path:
        (tmp_path / "network.json").write_text(canonical_json(network))
        save_file(trained_on_digits(network).state_dict(), tmp_path / "weights.safetensors")
        return tmp_path

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_computes_what_pytorch_computes(directory: Make, name: str) -> None:
    trained = load_trained(directory(NETWORKS[name]), name="1")
    assert trained.network == NETWORKS[name]
    session = onnxruntime.InferenceSession(to_onnx(trained), providers=["CPUExecutionProvider"])
    side = trained.network.operators[0].height
    images = load_data("digits", input_size=side, seed=0).test_images
    with torch.no_grad():
        expected = trained.module(images).numpy()
    for count in (1, len(images)):  # a batch of any size
        (logits,) = session.run(["logits"], {"input": images[:count].numpy()})
        assert np.abs(logits - expected[:count]).max() < TOLERANCE
    assert expected.std() > 0.1, "logits of zeros would agree with anything"


def test_onnx_has_batch_normalisation_folded_in_and_names_nothing_of_this_machine(directory: Make) -> None:
    content = to_onnx(load_trained(directory(SQUEEZED), name="1"))
    graph = onnx.load_model_from_string(content).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert str(Path(__file__).parents[2]).encode() not in content
    assert [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input] == [
        ["batch", 3, 32, 32]
    ]


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackage, match=r"pip install 'pad-nas\[export\]'"):
        to_onnx(Trained(SQUEEZED, build_network(SQUEEZED).eval()))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "network.json").unlink(), "holds no trained network: neither network.json"),
        (lambda folder: (folder / "network.json").write_text("{}"), "operators Field required"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "No such file"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "cannot be loaded"),
        (lambda folder: (folder / "network.json").write_text(canonical_json(NETWORKS["demo"])), "Missing key"),
    ],
)
def test_a_directory_without_a_whole_trained_network_is_refused(
    directory: Make, spoil: Callable[[Path], object], sentence: str
) -> None:
    folder = directory(SQUEEZED)
    spoil(folder)
    with pytest.raises(NoTrainedNetwork, match=sentence):
        load_trained(folder, name="1")


def test_tflite_without_a_service_says_what_to_give(directory: Make) -> None:
    folder = directory(SQUEEZED)
    command = ["export", "--from", str(folder), "--format", "tflite", "--out", str(folder / "network.tflite")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "Say where it is with --service URL" in result.stderr
    assert not (folder / "network.tflite").exists()
