import pytest
import torch

from search_client.data import TEST_FRACTION, VALIDATION_PER_CLASS, ImageData, load_data
from search_client.errors import InvalidData


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", input_size=8, seed=0)


def test_images_and_labels_have_the_promised_form(digits: ImageData) -> None:
    assert digits.train_images.shape[1:] == (3, 8, 8)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    assert digits.classes == 10


def test_parts_are_disjoint_and_complete() -> None:
    data = load_data("digits", input_size=8, seed=3)
    images = torch.cat([data.train_images, data.validation_images, data.test_images])
    assert len(images) == 1797
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797


def test_validation_has_a_fixed_number_per_class(digits: ImageData) -> None:
    assert torch.bincount(digits.validation_labels).tolist() == [VALIDATION_PER_CLASS] * 10


def test_test_part_is_stratified(digits: ImageData) -> None:
    totals = sum(
        torch.bincount(labels) for labels in (digits.train_labels, digits.validation_labels, digits.test_labels)
    )
    assert isinstance(totals, torch.Tensor)
    shares = torch.bincount(digits.test_labels) / totals
    assert torch.allclose(shares, torch.full((10,), TEST_FRACTION), atol=0.005)


def test_training_part_is_normalised_per_channel(digits: ImageData) -> None:
    assert torch.allclose(digits.train_images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(digits.train_images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4)


def test_split_and_fingerprint_are_a_function_of_the_seed(digits: ImageData) -> None:
    assert load_data("digits", input_size=8, seed=0).fingerprint == digits.fingerprint
    assert load_data("digits", input_size=8, seed=1).fingerprint != digits.fingerprint


def test_images_are_resized() -> None:
    assert load_data("digits", input_size=12, seed=0).test_images.shape[2:] == (12, 12)


def test_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidData, match=r"no data set 'letters'\. Known data sets: digits"):
        load_data("letters", input_size=8, seed=0)
