import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from search_client.data import ImageData, load_data
from search_client.errors import InvalidCheckpoint, OutOfGPUMemory, TrainingDiverged
from search_client.images import PixelImages
from search_client.networks import build_network
from search_client.spaces import SearchSpace, load_space
from search_client.supernet import Supernet
from search_client.training import EpochRecord, TrainingRecipe, accuracy, train_network, train_supernet

RECIPE = TrainingRecipe(epochs=4, learning_rate=0.2, batch_size=100)


@pytest.fixture(scope="module")
def data() -> ImageData:
    digits = load_data("digits", input_size=8, validation_per_class=30, seed=0)
    assert isinstance(digits.train, PixelImages)
    few = replace(digits.train, pixels=digits.train.pixels[:250], labels=digits.train.labels[:250])
    return replace(digits, train=few)


@pytest.fixture
def space() -> SearchSpace:
    return load_space(str(Path(__file__).with_name("tiny.toml")))


def fresh(space: SearchSpace) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space)


def train(
    supernet: Supernet, data: ImageData, checkpoint: Path, *, recipe: TrainingRecipe = RECIPE, seed: int = 7
) -> list[EpochRecord]:
    """The epochs after each call of `on_epoch` are one more than before; returns the last ones."""
    heard: list[Sequence[EpochRecord]] = [[]]
    train_supernet(supernet, data, recipe=recipe, seed=seed, checkpoint=checkpoint, on_epoch=heard.append)
    return list(heard[-1])


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Killed(Exception):
    pass


def test_interrupted_and_resumed_training_ends_with_the_same_weights(
    space: SearchSpace, data: ImageData, tmp_path: Path
) -> None:
    whole = fresh(space)
    train(whole, data, tmp_path / "whole")

    def killed_after_two(records: Sequence[EpochRecord]) -> None:
        if len(records) == 2:
            raise Killed

    with pytest.raises(Killed):
        train_supernet(
            fresh(space), data, recipe=RECIPE, seed=7, checkpoint=tmp_path / "killed", on_epoch=killed_after_two
        )
    resumed = Supernet(space)  # other initial weights: everything must come from the checkpoint
    records = train(resumed, data, tmp_path / "killed")
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert same(whole, resumed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_finished_training_is_not_repeated(space: SearchSpace, data: ImageData, tmp_path: Path) -> None:
    trained = fresh(space)
    train(trained, data, tmp_path / "checkpoint")
    loaded = Supernet(space)
    before = (tmp_path / "checkpoint").read_bytes()
    assert len(train(loaded, data, tmp_path / "checkpoint")) == RECIPE.epochs
    assert (tmp_path / "checkpoint").read_bytes() == before
    assert same(trained, loaded)


def test_weights_depend_on_the_seed(space: SearchSpace, data: ImageData, tmp_path: Path) -> None:
    one, other = fresh(space), fresh(space)
    recipe = replace(RECIPE, epochs=1)
    train(one, data, tmp_path / "one", recipe=recipe, seed=1)
    train(other, data, tmp_path / "other", recipe=recipe, seed=2)
    assert not same(one, other)


def test_training_lowers_the_loss(space: SearchSpace, data: ImageData, tmp_path: Path) -> None:
    only = space.restricted([layer.choices[:1] for layer in space.layers])
    records = train(fresh(only), data, tmp_path / "checkpoint", recipe=replace(RECIPE, epochs=8, batch_size=16))
    assert records[-1].loss < records[0].loss - 0.3
    assert records[-1].train_accuracy > 0.4


def test_learning_rate_falls_linearly_to_zero(space: SearchSpace, data: ImageData, tmp_path: Path) -> None:
    records = train(fresh(space), data, tmp_path / "checkpoint")
    steps = len(data.train.labels) // RECIPE.batch_size
    last_steps = [epoch * steps - 1 for epoch in (1, 2, 3, 4)]
    expected = [0.2 * (1 - step / (4 * steps)) for step in last_steps]
    assert [record.learning_rate for record in records] == pytest.approx(expected)


def test_incomplete_batch_is_dropped_unless_it_is_the_only_one(
    space: SearchSpace, data: ImageData, tmp_path: Path
) -> None:
    batches = []

    class Recording(Supernet):
        def forward(self, x: Tensor, architecture: tuple[str, ...]) -> Tensor:
            if torch.is_grad_enabled():  # not while it is validated
                batches.append(len(x))
            return super().forward(x, architecture)

    train(Recording(space), data, tmp_path / "many", recipe=replace(RECIPE, epochs=1, batch_size=100))
    train(Recording(space), data, tmp_path / "one", recipe=replace(RECIPE, epochs=1, batch_size=1000))
    assert batches == [100, 100, 250]


def test_a_choice_that_is_not_sampled_does_not_move(
    space: SearchSpace, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {1: tuple(layer.choices[0] for layer in space.layers), 2: tuple(layer.choices[1] for layer in space.layers)}
    path = paths[1]
    monkeypatch.setattr(SearchSpace, "sample", lambda _space, _rng: path)
    supernet = fresh(space)
    weights = [{name: value.clone() for name, value in supernet.named_parameters()}]

    def next_path(_records: Sequence[EpochRecord]) -> None:
        nonlocal path
        path = paths[2]  # from now on the first path has momentum, but no gradient
        weights.append({name: value.clone() for name, value in supernet.named_parameters()})

    recipe = replace(RECIPE, epochs=2)
    train_supernet(supernet, data, recipe=recipe, seed=7, checkpoint=tmp_path / "checkpoint", on_epoch=next_path)
    for epoch, architecture in paths.items():
        moved = {name for name, value in weights[epoch].items() if not torch.equal(value, weights[epoch - 1][name])}
        on_path = tuple(f"layers.{index}.{choice}." for index, choice in enumerate(architecture))
        assert moved == {name for name in weights[0] if name.startswith(("stem.", "head.", *on_path))}


def test_loss_that_is_not_a_number_stops_training_and_keeps_the_checkpoint(
    space: SearchSpace, data: ImageData, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    train(fresh(space), data, checkpoint, recipe=replace(RECIPE, epochs=1))
    good = checkpoint.read_bytes()
    assert isinstance(data.train, PixelImages)
    broken = replace(data, train=replace(data.train, mean=data.train.mean * float("nan")))
    with pytest.raises(TrainingDiverged, match=r"nan in epoch 2, step 1 \(learning rate .*, batch size 100\)\. Try"):
        train(Supernet(space), broken, checkpoint)
    assert checkpoint.read_bytes() == good


def test_validation_accuracy_is_that_of_paths_sampled_for_each_batch(
    space: SearchSpace, data: ImageData, tmp_path: Path
) -> None:
    validated = []

    class Recording(Supernet):
        def forward(self, x: Tensor, architecture: tuple[str, ...]) -> Tensor:
            logits = super().forward(x, architecture)
            if not torch.is_grad_enabled():
                validated.append((architecture, logits.argmax(dim=1)))
            return logits

    (record,) = train(Recording(space), data, tmp_path / "checkpoint", recipe=replace(RECIPE, epochs=1, batch_size=50))
    assert len({architecture for architecture, _ in validated}) > 1
    predictions = torch.cat([predictions for _, predictions in validated])
    assert record.validation_accuracy == (predictions == data.validation.labels).double().mean().item()


def test_a_network_trained_alone_resumes_to_the_same_weights_and_learns(
    space: SearchSpace, data: ImageData, tmp_path: Path
) -> None:
    def fresh_network() -> nn.Sequential:
        torch.manual_seed(0)
        return build_network(space.network(tuple(layer.choices[0] for layer in space.layers)))

    def killed_after_three(records: Sequence[EpochRecord]) -> None:
        if len(records) == 3:
            raise Killed

    recipe = replace(RECIPE, epochs=8, batch_size=16, learning_rate=0.1)
    whole, resumed = fresh_network(), fresh_network()
    heard: list[Sequence[EpochRecord]] = []
    train_network(whole, data, recipe=recipe, seed=7, checkpoint=tmp_path / "whole", on_epoch=heard.append)
    with pytest.raises(Killed):
        train_network(
            fresh_network(), data, recipe=recipe, seed=7, checkpoint=tmp_path / "killed", on_epoch=killed_after_three
        )
    train_network(resumed, data, recipe=recipe, seed=7, checkpoint=tmp_path / "killed", on_epoch=heard.append)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert heard[-1][-1].validation_accuracy == accuracy(whole, data.validation) > 0.4


def test_gradients_are_clipped_where_asked(space: SearchSpace, data: ImageData, tmp_path: Path) -> None:
    clipped, free = fresh(space), fresh(space)
    before = {name: value.clone() for name, value in free.named_parameters()}
    recipe = replace(RECIPE, epochs=1, batch_size=250, weight_decay=0.0)  # one step
    train(free, data, tmp_path / "free", recipe=recipe)
    train(clipped, data, tmp_path / "clipped", recipe=replace(recipe, max_gradient_norm=0.01))

    def moved(supernet: Supernet) -> float:
        steps = [(value.detach() - before[name]).norm() for name, value in supernet.named_parameters()]
        return torch.stack(steps).norm().item()  # type: ignore[no-any-return]

    assert moved(free) > 0.02
    assert moved(clipped) == pytest.approx(0.2 * 0.01, rel=1e-3)


def test_a_gpu_whose_memory_is_full_is_a_sentence(data: ImageData, tmp_path: Path) -> None:
    """There is none here: what PyTorch would raise is raised by the network."""

    class TooLarge(nn.Linear):
        def forward(self, _: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has")

    said = r"memory is full: CUDA out of memory\. Train with a smaller --batch-size .* another --out"
    with pytest.raises(OutOfGPUMemory, match=said):
        train_network(
            TooLarge(3, 10), data, recipe=RECIPE, seed=0, checkpoint=tmp_path / "checkpoint", on_epoch=lambda _: None
        )


def test_a_checkpoint_that_the_disk_cannot_hold_leaves_the_last_one(
    space: SearchSpace, data: ImageData, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    train(fresh(space), data, checkpoint, recipe=replace(RECIPE, epochs=1))
    good = checkpoint.read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, unlimited[1]))  # the kernel refuses longer files
    try:
        with pytest.raises(OSError, match=r"checkpoint cannot be written: .*What was trained before stays"):
            train(fresh(space), data, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert checkpoint.read_bytes() == good
    assert list(tmp_path.iterdir()) == [checkpoint]  # nothing keeps the room that others need
    assert len(train(fresh(space), data, checkpoint)) == RECIPE.epochs


def test_damaged_or_foreign_checkpoint_is_refused(space: SearchSpace, data: ImageData, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    train(fresh(space.restricted([layer.choices[:1] for layer in space.layers])), data, checkpoint)
    with pytest.raises(InvalidCheckpoint, match="Delete the file"):
        train(fresh(space), data, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InvalidCheckpoint, match="Delete the file"):
        train(fresh(space), data, checkpoint)


@pytest.mark.parametrize(
    "field", [{"epochs": 0}, {"learning_rate": 0.0}, {"batch_size": 1}, {"momentum": 1.0}, {"label_smoothing": 1.0}]
)
def test_recipe_out_of_bounds_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        replace(RECIPE, **field)  # type: ignore[arg-type]
