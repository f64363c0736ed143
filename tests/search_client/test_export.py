"""Exported files compute what PyTorch computes, on real images; and what cannot be exported is refused."""

import json
import shutil
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
from search_client.config import SearchConfig
from search_client.data import ImageData, load_data
from search_client.durable_files import write_text
from search_client.errors import InvalidData, MissingPackage, NoTrainedNetwork
from search_client.export import Trained, load_trained, to_onnx
from search_client.images import ImageSet
from search_client.networks import build_network
from search_client.oracle import SupernetOracle
from search_client.run_directory import RunFiles, StageDirectory, write_json
from search_client.spaces import load_space
from search_client.supernet import Supernet
from search_client.training import train_supernet

TOLERANCE = 1e-4
TINY = str(Path(__file__).parent / "tiny.toml")
Make = Callable[..., Path]

DEMO = load_space("demo")
# What the demo space has not: squeeze-and-excitation and h-swish.
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


def digits(side: int) -> ImageData:
    return load_data("digits", input_size=side, validation_per_class=20, seed=0)


def whole(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """All of them and their labels, in one batch."""
    count = len(images.labels)
    ((x, labels),) = images.batches(torch.arange(count), batch_size=count)
    return x, labels


def trained_on_digits(network: Network) -> nn.Sequential:
    """Some steps of training: weights, scales, shifts and batch-norm statistics are all those of real images."""
    torch.manual_seed(0)
    images, labels = whole(digits(network.operators[0].height).train)
    module = build_network(network)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    for step in range(18):
        batch = slice(64 * step, 64 * (step + 1))
        loss = nn.functional.cross_entropy(module(images[batch]), labels[batch])
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
    images, _ = whole(digits(side).test)
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


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's directory, as far as an export reads it: two stages, two architectures of the second."""
    folder = tmp_path_factory.mktemp("search")
    config = SearchConfig(
        space=TINY,
        data="digits",
        stages=3,
        epochs=(1, 1),
        learning_rates=(0.2, 0.1),
        batch_size=128,
        validation_per_class=20,
    )
    write_text(folder / "config.toml", config.to_toml())
    data = digits(8)
    space = load_space(TINY).restricted([layer.choices[:2] + layer.choices[-1:] for layer in load_space(TINY).layers])
    stages = [StageDirectory(folder / f"stage-{number}") for number in (1, 2)]
    for stage in stages:
        stage.path.mkdir()
        stage.record_space(space)
    torch.manual_seed(0)
    supernet = Supernet(space)
    train_supernet(
        supernet, data, recipe=config.training(1), seed=0, checkpoint=stages[1].checkpoint, on_epoch=lambda _: None
    )
    oracle = SupernetOracle(
        supernet, data, calibration_images=config.calibration_images, batch_size=64, split="test", seed=config.seed
    )
    found = [tuple(layer.choices[-1] for layer in space.layers), tuple(layer.choices[0] for layer in space.layers)]
    final = {
        "data_sha256": data.fingerprint,
        "architectures": [
            {
                "name": str(place),
                "choices": dict(zip((layer.name for layer in space.layers), architecture, strict=True)),
                "one_shot_test_accuracy": accuracy,
                "network": space.network(architecture).model_dump(mode="json"),
            }
            for place, (architecture, accuracy) in enumerate(zip(found, oracle.evaluate(found), strict=True), start=1)
        ],
    }
    write_json(folder / "final.json", final)
    return folder


@pytest.mark.parametrize("place", [0, 1])
def test_a_found_network_has_the_accuracy_that_the_search_saw(search: Path, place: int) -> None:
    """The weights of the last stage, and batch-norm statistics as when the architecture was scored."""
    expected = json.loads((search / "final.json").read_text())["architectures"][place]
    trained = load_trained(search, name=expected["name"])
    assert trained.network.model_dump(mode="json") == expected["network"]
    session = onnxruntime.InferenceSession(to_onnx(trained), providers=["CPUExecutionProvider"])
    images, labels = whole(digits(8).test)
    (logits,) = session.run(["logits"], {"input": images.numpy()})
    accuracy = (logits.argmax(axis=1) == labels.numpy()).mean()
    assert accuracy == pytest.approx(expected["one_shot_test_accuracy"], abs=1.5 / len(logits))


def test_a_search_without_the_architecture_or_with_other_images_is_refused(search: Path, tmp_path: Path) -> None:
    with pytest.raises(NoTrainedNetwork, match=r"no architecture '7'\. It has 1, 2"):
        load_trained(search, name="7")
    folder = tmp_path / "search"
    shutil.copytree(search, folder)
    write_json(folder / "final.json", json.loads((search / "final.json").read_text()) | {"data_sha256": "0" * 64})
    with pytest.raises(InvalidData, match="saw other images than 'digits' holds now"):
        load_trained(folder, name="1")
    published = {"data": None, "oracle": "nas-bench-macro:table.json"}
    settings = RunFiles(folder).config().model_copy(update=published)
    write_text(folder / "config.toml", settings.to_toml())
    with pytest.raises(
        NoTrainedNetwork, match=r"trained nothing.* padnas-client train --from \S+ --name 1 --data DATA"
    ):
        load_trained(folder, name="1")


def test_tflite_without_a_service_says_what_to_give(directory: Make) -> None:
    folder = directory(SQUEEZED)
    command = ["export", "--from", str(folder), "--format", "tflite", "--out", str(folder / "network.tflite")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "Say where it is with --service URL" in result.stderr
    assert not (folder / "network.tflite").exists()
