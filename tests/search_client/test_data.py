import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search_client.data import ImageData, load_data
from search_client.decoding import DecodingPass
from search_client.errors import InvalidData
from search_client.images import ImageSet
from search_client.oracle import SupernetOracle
from search_client.photo_images import PhotoImages
from search_client.spaces import load_space
from search_client.splits import TEST_FRACTION
from search_client.supernet import Supernet
from search_client.training import TrainingRecipe, train_supernet


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", input_size=8, validation_per_class=30, seed=0)


def everything(images: ImageSet) -> Tensor:
    """(N, 3, H, W)."""
    return torch.cat([x for x, _ in images.batches(torch.arange(len(images.labels)), batch_size=500)])


def test_parts_are_disjoint_and_complete(digits: ImageData) -> None:
    images = torch.cat([everything(part) for part in (digits.train, digits.validation, digits.test)])
    assert len(images) == 1797
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797
    assert digits.classes == 10


def test_validation_has_a_fixed_number_per_class(digits: ImageData) -> None:
    assert torch.bincount(digits.validation.labels).tolist() == [30] * 10


def test_a_class_with_too_few_images_is_refused() -> None:
    with pytest.raises(InvalidData, match=r"Class 8 has 139 images .* validation_per_class = 139\. Use a smaller"):
        load_data("digits", input_size=8, validation_per_class=139, seed=0)


def test_test_part_is_stratified(digits: ImageData) -> None:
    counts = [torch.bincount(part.labels) for part in (digits.train, digits.validation, digits.test)]
    shares = counts[2] / sum(counts)
    assert torch.allclose(shares, torch.full((10,), TEST_FRACTION), atol=0.005)


def test_training_part_is_normalised_per_channel(digits: ImageData) -> None:
    images = everything(digits.train)
    assert torch.allclose(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4)


def test_split_and_fingerprint_are_a_function_of_the_seed(digits: ImageData) -> None:
    again = load_data("digits", input_size=8, validation_per_class=30, seed=0)
    other = load_data("digits", input_size=8, validation_per_class=30, seed=1)
    assert again.fingerprint == digits.fingerprint
    assert other.fingerprint != digits.fingerprint


def test_images_are_resized() -> None:
    data = load_data("digits", input_size=12, validation_per_class=30, seed=0)
    assert everything(data.test).shape[1:] == (3, 12, 12)


def test_unknown_data_set_is_refused_with_the_known_ones() -> None:
    for name in ("letters", "cifar10", "cifar10:", "digits:somewhere"):
        with pytest.raises(
            InvalidData, match=rf"no data set '{name}'\. Known data sets: digits, cifar10:PATH, folder:"
        ):
            load_data(name, input_size=8, validation_per_class=30, seed=0)


def test_a_path_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidData, match=r"nothing at /nowhere\. Give the path of the data set: --data folder:PATH"):
        load_data("folder:/nowhere", input_size=8, validation_per_class=30, seed=0)


def test_training_images_may_be_fewer_of_each_class(digits: ImageData) -> None:
    few = load_data("digits", input_size=8, validation_per_class=30, seed=0, train_per_class=20)
    assert torch.bincount(few.train.labels).tolist() == [20] * 10
    assert few.validation_indices_sha256 == digits.validation_indices_sha256
    assert few.fingerprint != digits.fingerprint


def test_what_is_recorded_says_which_images_were_used(digits: ImageData) -> None:
    record = digits.record()
    other = load_data("digits", input_size=12, validation_per_class=30, seed=1).record()
    assert record["images"] == {"train": 1138, "validation": 300, "test": 359}
    assert record["left_out"] == []
    assert record["validation_indices_sha256"] != other["validation_indices_sha256"]


@pytest.fixture
def folder(photo_folder: Callable[..., Path]) -> Path:
    """100 training and 6 validation images in two classes, the first training image damaged."""
    root = photo_folder(train=50, val=3)
    damaged = root / "train" / "cat" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


def load_folder(root: Path, **changes: Any) -> ImageData:
    settings = {"input_size": 8, "validation_per_class": 10, "seed": 0} | changes
    return load_data(f"folder:{root}", **settings)


def test_validation_is_drawn_from_the_training_part_and_the_test_part_is_the_original_one(folder: Path) -> None:
    data = load_folder(folder)
    assert isinstance(data.test, PhotoImages)
    assert [data.test.photos.names[place].split("/")[0] for place in data.test.chosen] == ["val"] * 6
    assert data.classes == 2
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.bincount(data.validation.labels).tolist() == [10, 10]
    assert torch.bincount(data.train.labels).tolist() == [39, 40]
    assert isinstance(data.train, PhotoImages)
    assert isinstance(data.validation, PhotoImages)
    places = torch.cat([part.chosen for part in (data.train, data.validation, data.test)])
    assert len(torch.unique(places)) == len(places) == 105


def test_damaged_images_are_left_out_and_recorded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_folder(folder)
    assert data.record()["left_out"] == ["train/cat/0.png"]
    assert "left out 1 images that do not decode: train/cat/0.png (" in capsys.readouterr().err
    for part in (data.train, data.validation, data.test):
        everything(part)


def test_an_unchanged_listing_is_not_decoded_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_folder(folder)
    assert "decoding every image once" in capsys.readouterr().err
    again = load_folder(folder, known=first.decoding)
    assert "decoding every image once" not in capsys.readouterr().err
    assert again.record() == first.record()
    shutil.copy(folder / "train" / "cat" / "3.png", folder / "train" / "cat" / "0.png")
    mended = load_folder(folder, known=first.decoding)
    assert mended.record()["left_out"] == []


def test_what_a_pass_found_is_kept_where_too_many_are_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train" / "dog" / "1.JPEG").write_bytes(b"")
    found: list[DecodingPass] = []
    with pytest.raises(InvalidData, match="2 of 106 images do not decode"):
        load_folder(folder, on_decoded=found.append)
    assert set(found[0].damaged) == {"train/cat/0.png", "train/dog/1.JPEG"}
    capsys.readouterr()
    with pytest.raises(InvalidData, match="2 of 106 images do not decode"):
        load_folder(folder, known=found[0])
    assert "decoding every image once" not in capsys.readouterr().err


def test_a_photo_may_have_a_name_that_is_no_unicode(folder: Path) -> None:
    cat = os.fsencode(folder / "train" / "cat")
    os.rename(cat + b"/1.JPEG", cat + b"/caf\xe9.JPEG")
    os.rename(cat + b"/0.png", cat + b"/d\xe9j\xe0.png")  # the damaged one
    data = load_folder(folder)
    assert data.record()["left_out"] == [r"train/cat/d\xe9j\xe0.png"]
    everything(data.train)
    json.dumps(data.record(), ensure_ascii=False).encode()


def test_photos_that_are_renamed_or_change_in_size_are_another_data_set(folder: Path) -> None:
    before = load_folder(folder)
    (folder / "val" / "dog" / "1.JPEG").rename(folder / "val" / "dog" / "7.JPEG")
    renamed = load_folder(folder)
    with (folder / "val" / "dog" / "2.JPEG").open("ab") as file:
        file.write(b"behind the image")
    assert len({before.fingerprint, renamed.fingerprint, load_folder(folder).fingerprint}) == 3


def test_a_class_with_too_few_photos_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(InvalidData, match=r"Class cat has 49 images .* validation_per_class = 49\. Use a smaller"):
        load_folder(folder, validation_per_class=49)


def test_a_supernet_trains_on_photos_and_is_scored_on_them(folder: Path, tmp_path: Path) -> None:
    """Twice the same, to the bit."""
    data = load_folder(folder)
    weights, accuracies = [], []
    for attempt in ("one", "two"):
        torch.manual_seed(0)
        supernet = Supernet(load_space(str(Path(__file__).with_name("tiny.toml")), classes=data.classes))
        recipe = TrainingRecipe(epochs=1, learning_rate=0.05, batch_size=30)
        train_supernet(supernet, data, recipe=recipe, seed=0, checkpoint=tmp_path / attempt, on_epoch=lambda _: None)
        weights.append(torch.cat([value.flatten() for value in supernet.state_dict().values()]))
        architecture = tuple(layer.choices[0] for layer in supernet.space.layers)
        accuracies += SupernetOracle(supernet, data, batch_size=16, split="test").evaluate([architecture])
    assert torch.equal(weights[0], weights[1])
    assert accuracies[0] == accuracies[1]
