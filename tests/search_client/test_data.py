import pytest
import torch
from torch import Tensor

from search_client.data import ImageData, load_data
from search_client.errors import InvalidData
from search_client.images import ImageSet
from search_client.splits import TEST_FRACTION


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
    with pytest.raises(InvalidData, match=r"no data set 'letters'\. Known data sets: digits"):
        load_data("letters", input_size=8, validation_per_class=30, seed=0)
