from pathlib import Path

import numpy as np
import pytest
import torch

from search_client.data import ImageData, load_data
from search_client.oracle import SupernetOracle
from search_client.spaces import Architecture, SearchSpace, load_space
from search_client.supernet import Supernet
from search_client.training import TrainingRecipe, train_supernet


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", input_size=8, validation_per_class=30, seed=0)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space(str(Path(__file__).with_name("tiny.toml")))


@pytest.fixture(scope="module")
def supernet(space: SearchSpace, data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Supernet:
    """Trained a little, so that its architectures differ in accuracy."""
    torch.manual_seed(0)
    supernet = Supernet(space)
    train_supernet(
        supernet,
        data,
        recipe=TrainingRecipe(epochs=3, learning_rate=0.2, batch_size=32),
        seed=0,
        checkpoint=tmp_path_factory.mktemp("oracle") / "checkpoint",
        on_epoch=lambda _record: None,
    )
    return supernet


@pytest.fixture
def architectures(space: SearchSpace) -> list[Architecture]:
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(4)]


def test_the_supernet_is_never_altered(supernet: Supernet, data: ImageData, architectures: list[Architecture]) -> None:
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    SupernetOracle(supernet, data).evaluate(architectures)
    after = supernet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert supernet.training


def test_an_accuracy_depends_on_the_architecture_alone(
    supernet: Supernet, data: ImageData, architectures: list[Architecture]
) -> None:
    oracle = SupernetOracle(supernet, data)
    together = oracle.evaluate(architectures)
    assert len(set(together)) > 1
    assert oracle.evaluate(architectures[::-1]) == together[::-1]
    assert [oracle.evaluate([architecture])[0] for architecture in architectures] == together


def test_accuracy_is_the_share_of_correct_answers_of_the_calibrated_candidate(
    supernet: Supernet, data: ImageData, architectures: list[Architecture]
) -> None:
    oracle = SupernetOracle(supernet, data, calibration_images=300, batch_size=100, seed=5)
    order = torch.from_numpy(np.random.default_rng(5).permutation(len(data.train.labels)))
    candidate = supernet.candidate(architectures[0]).train()
    with torch.no_grad():
        for batch, _ in data.train.batches(order[:300], batch_size=100):
            candidate(batch)
        ((images, labels),) = data.validation.batches(torch.arange(300), batch_size=300)
        predictions = candidate.eval()(images).argmax(dim=1)
    expected = (predictions == labels).float().mean().item()
    assert oracle.evaluate(architectures[:1]) == pytest.approx([expected], abs=1 / 300 + 1e-6)


def test_split_chooses_the_images_to_score(
    supernet: Supernet, data: ImageData, architectures: list[Architecture]
) -> None:
    for split, images in (("validation", 300), ("test", len(data.test.labels))):
        (accuracy,) = SupernetOracle(supernet, data, split=split).evaluate(architectures[:1])  # type: ignore[arg-type]
        assert accuracy * images == pytest.approx(round(accuracy * images))


def test_a_small_training_set_is_calibrated_on_whole(
    supernet: Supernet, data: ImageData, architectures: list[Architecture]
) -> None:
    (few,) = SupernetOracle(supernet, data, calibration_images=10**6, batch_size=2000).evaluate(architectures[:1])
    assert 0 <= few <= 1
