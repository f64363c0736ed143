import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from latency_contract.operators import Network
from search_client.cli import app
from search_client.data import ImageData, load_data
from search_client.errors import AnotherSearch, TrainingDiverged
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
    assert [one.architecture[0] for one in spread] == ["0", "5", "10"]
    assert len(spread_along_front([*front, *behind], count=50)) == 11


def test_an_architecture_of_the_front_has_one_name_however_many_are_trained() -> None:
    front = [evaluated(str(place), float(place), place / 100) for place in range(11)]
    few, more = ({one.architecture: one.name for one in spread_along_front(front, count=n)} for n in (3, 5))
    assert more.items() >= few.items()
    assert len(set(more.values())) == 5


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
    with pytest.raises(AnotherSearch, match=r"other settings: seed is 3 there and 4 here\. Use those .* remove it"):
        train_alone(found, space, data, recipe=recipe, seed=4, directory=tmp_path, progress=QUIET)
    assert json.loads((tmp_path / "result.json").read_text()) == before


def test_settings_may_be_corrected_until_something_is_trained(
    space: SearchSpace, data: ImageData, found: Found, tmp_path: Path
) -> None:
    hopeless = replace(RECIPE, learning_rate=1e20)
    with pytest.raises(TrainingDiverged):
        train_alone(found, space, data, recipe=hopeless, seed=3, directory=tmp_path, progress=QUIET)
    train_alone(found, space, data, recipe=RECIPE, seed=3, directory=tmp_path, progress=QUIET)
    assert json.loads((tmp_path / "settings.json").read_text())["learning_rate"] == RECIPE.learning_rate


@pytest.fixture
def finished(tmp_path: Path, space: SearchSpace, make_run: Callable[..., Path]) -> Path:
    """A search in a space of one's own, whose file lies beside it."""
    shutil.copy(Path(__file__).with_name("tiny.toml"), tmp_path / "mine.toml")
    run = make_run("run", trained=False, space=str(tmp_path / "mine.toml"), validation_per_class=30, finals=1)
    final = json.loads((run / "final.json").read_text())
    digits = load_data("digits", input_size=space.stem.height, validation_per_class=30, seed=0)
    (run / "final.json").write_text(json.dumps(final | {"data_sha256": digits.fingerprint}))
    return run


def train(run: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["train", "--from", str(run), "--epochs", "1", "--batch-size", "512", *options])


def test_what_is_trained_is_what_was_found_whatever_became_of_the_file_of_the_space(
    finished: Path, space: SearchSpace, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").unlink()
    trained = train(finished, "--json")
    assert trained.exit_code == 0, trained.stderr
    (found,) = json.loads((finished / "final.json").read_text())["architectures"]
    network = Network.model_validate_json((finished / "standalone" / found["name"] / "network.json").read_text())
    assert network == space.network(tuple(found["choices"].values()))


def test_other_images_than_the_search_saw_are_refused(finished: Path) -> None:
    final = json.loads((finished / "final.json").read_text())
    (finished / "final.json").write_text(json.dumps(final | {"data_sha256": "0" * 64}))
    assert "saw other images than 'digits' holds now" in train(finished).stderr
    assert not (finished / "standalone").exists()


@pytest.mark.parametrize("options", [[], ["--spread", "2"]])
def test_a_search_that_is_not_finished_has_nothing_to_train(finished: Path, options: list[str]) -> None:
    (finished / "final.json").unlink()
    result = train(finished, *options)
    assert (result.exit_code, "does not hold a finished search" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--learning-rate", "0"], "cannot have learning_rate = 0"),
        (["--batch-size", "0"], "cannot have batch_size = 0"),
        (["--epochs", "0"], "cannot have epochs = 0"),
    ],
)
def test_no_setting_of_a_training_is_ignored(finished: Path, options: list[str], sentence: str) -> None:
    result = train(finished, *options)
    assert (result.exit_code, sentence in result.stderr) == (2, True)
