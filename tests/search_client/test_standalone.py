import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from latency_contract.operators import Network
from search_client.data import ImageData, load_data
from search_client.errors import AnotherSearch
from search_client.images import PixelImages
from search_client.networks import build_network
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunFiles
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace, load_space
from search_client.standalone import Found, final_architecture, spread_along_front, train_alone
from search_client.training import TrainingRecipe, accuracy

RECIPE = TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=50)
QUIET = ConsoleProgress(Console(quiet=True))


@pytest.fixture(scope="module")
def data() -> ImageData:
    digits = load_data("digits", input_size=8, validation_per_class=30, seed=0)
    assert isinstance(digits.train, PixelImages)
    return replace(
        digits, train=replace(digits.train, pixels=digits.train.pixels[:250], labels=digits.train.labels[:250])
    )


@pytest.fixture
def space() -> SearchSpace:
    return load_space(str(Path(__file__).with_name("tiny.toml")))


@pytest.fixture
def found(space: SearchSpace) -> Found:
    return Found("1", tuple(layer.choices[0] for layer in space.layers), latency_ms=0.5, one_shot_accuracy=0.25)


def evaluated(name: str, latency_ms: float, accuracy: float) -> Evaluated:
    return Evaluated((name,), latency_ms, accuracy, 0)


def test_architectures_are_spread_over_the_front_at_equal_distances() -> None:
    front = [evaluated(str(place), float(place), place / 100) for place in range(11)]
    behind = [evaluated("slow and poor", 5.5, 0.01)]
    spread = spread_along_front([*front, *behind], count=3)
    assert [(one.name, one.architecture[0]) for one in spread] == [
        ("front-01", "0"),
        ("front-02", "5"),
        ("front-03", "10"),
    ]
    assert len(spread_along_front([*front, *behind], count=50)) == 11


def test_what_is_left_is_the_network_with_its_weights_and_its_scores(
    space: SearchSpace, data: ImageData, found: Found, tmp_path: Path
) -> None:
    directory = tmp_path / "standalone" / "1"
    result = train_alone(found, space, data, recipe=RECIPE, seed=3, directory=directory, progress=QUIET)
    network = Network.model_validate_json((directory / "network.json").read_text())
    module = build_network(network)
    module.load_state_dict(load_file(directory / "weights.safetensors"))
    assert result["validation_accuracy"] == accuracy(module, data.validation)
    assert result["test_accuracy"] == accuracy(module, data.test)
    assert (result["macs"], result["parameters"]) == (network.macs, network.parameters)
    assert (result["one_shot_accuracy"], result["predicted_latency_ms"]) == (0.25, 0.5)
    assert len((directory / "training.jsonl").read_text().splitlines()) == RECIPE.epochs


def test_an_architecture_whose_accuracy_was_published_can_be_trained_too(make_run: Callable[..., Path]) -> None:
    run = RunFiles(make_run("run", trained=False))
    final = json.loads(run.final.read_text())
    for one in final["architectures"]:
        one["accuracy"] = one.pop("one_shot_accuracy")
    run.final.write_text(json.dumps(final))
    name = final["architectures"][0]["name"]
    assert final_architecture(run, name).one_shot_accuracy == final["architectures"][0]["accuracy"]


def test_training_that_was_killed_ends_with_the_same_bytes(
    space: SearchSpace, data: ImageData, found: Found, tmp_path: Path
) -> None:
    whole = train_alone(found, space, data, recipe=RECIPE, seed=3, directory=tmp_path / "whole", progress=QUIET)
    killed = tmp_path / "killed"
    full_disk = killed / "result.json.unfinished"
    full_disk.mkdir(parents=True)  # the very last file cannot be written
    with pytest.raises(OSError, match=r"result\.json"):
        train_alone(found, space, data, recipe=RECIPE, seed=3, directory=killed, progress=QUIET)
    full_disk.rmdir()
    torch.manual_seed(99)
    assert train_alone(found, space, data, recipe=RECIPE, seed=3, directory=killed, progress=QUIET) == whole
    for name in ("result.json", "weights.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_directory_of_other_settings_is_refused(
    space: SearchSpace, data: ImageData, found: Found, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, epochs=1)
    train_alone(found, space, data, recipe=recipe, seed=3, directory=tmp_path, progress=QUIET)
    before = json.loads((tmp_path / "result.json").read_text())
    with pytest.raises(AnotherSearch, match="began with something else"):
        train_alone(found, space, data, recipe=recipe, seed=4, directory=tmp_path, progress=QUIET)
    assert json.loads((tmp_path / "result.json").read_text()) == before
