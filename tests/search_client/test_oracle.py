from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from search_client.data import ImageData, load_data
from search_client.images import ImageSet
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


@dataclass(eq=False)
class CountedImages:
    """An image set that counts how often it is gone through."""

    images: ImageSet
    passes: int = 0

    @property
    def labels(self) -> Tensor:
        return self.images.labels

    def batches(self, indices: Tensor, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        return self.images.batches(indices, batch_size=batch_size)

    def augmented_batches(
        self, indices: Tensor, *, batch_size: int, seed: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self.images.augmented_batches(indices, batch_size=batch_size, seed=seed)


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
    expected = (predictions == labels).sum().item() / 300
    assert oracle.evaluate(architectures[:1]) == [expected]


@pytest.mark.parametrize("memory_mb", [0, 1])
def test_memory_changes_no_accuracy(supernet: Supernet, data: ImageData, space: SearchSpace, memory_mb: int) -> None:
    rng = np.random.default_rng(1)
    architectures = [space.sample(rng) for _ in range(12)]
    expected = SupernetOracle(supernet, data).evaluate(architectures)
    assert SupernetOracle(supernet, data, memory_mb=memory_mb).evaluate(architectures) == expected


@pytest.mark.parametrize(
    ("memory_mb", "passes"),
    [
        (0, (2, 2)),
        (1, (1, 2)),  # 640 calibration images are 0.49 MB, the 360 to score 0.28 MB
        (2048, (1, 1)),
    ],
)
def test_images_are_loaded_once_a_generation_or_kept_where_memory_allows(
    supernet: Supernet,
    data: ImageData,
    architectures: list[Architecture],
    memory_mb: int,
    passes: tuple[int, int],
) -> None:
    train, test = CountedImages(data.train), CountedImages(data.test)
    counted = replace(data, train=train, test=test)
    oracle = SupernetOracle(supernet, counted, calibration_images=640, split="test", memory_mb=memory_mb)
    for _ in range(2):
        oracle.evaluate(architectures)
    assert (train.passes, test.passes) == passes


def test_an_architecture_asked_for_twice_is_answered_twice(
    supernet: Supernet, data: ImageData, architectures: list[Architecture]
) -> None:
    oracle = SupernetOracle(supernet, data)
    once = oracle.evaluate(architectures)
    assert oracle.evaluate([*architectures, *architectures]) == [*once, *once]


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
