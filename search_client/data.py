"""Image data for training, validation and test, as normalised tensors in memory.

Validation images are drawn from the training part, a fixed number per class, as in section 4.1 of the paper; the
test part is never seen by a search.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from search_client.errors import InvalidData

TEST_FRACTION = 0.2  # of each class
VALIDATION_PER_CLASS = 30  # images


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images (N, 3, H, W) float32, normalised with the training part's mean and deviation; labels (N,) int64."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every image and label: two searches with one fingerprint saw the same data."""
        digest = hashlib.sha256()
        for tensor in (
            self.train_images,
            self.train_labels,
            self.validation_images,
            self.validation_labels,
            self.test_images,
            self.test_labels,
        ):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_data(name: str, *, input_size: int, seed: int) -> ImageData:
    """A data set by name, resized to `input_size` pixels a side and split by `seed`.

    Raises:
        InvalidData: no data set has this name.
    """
    if name not in DATA_SETS:
        raise InvalidData(f"There is no data set '{name}'. Known data sets: {', '.join(DATA_SETS)}.")
    images, labels = DATA_SETS[name]()
    images = F.interpolate(images, size=(input_size, input_size), mode="bilinear", align_corners=False)
    train, validation, test = _split(labels.numpy(), rng=np.random.default_rng(seed))
    mean = images[train].mean(dim=(0, 2, 3), keepdim=True)
    deviation = images[train].std(dim=(0, 2, 3), keepdim=True)
    images = (images - mean) / deviation
    return ImageData(
        name=name,
        train_images=images[train],
        train_labels=labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
        test_images=images[test],
        test_labels=labels[test],
        classes=int(labels.max()) + 1,
    )


def _split(
    labels: NDArray[np.int64], *, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training, validation and test images: each class is split alike, and the order is shuffled."""
    train, validation, test = [], [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        tests = round(TEST_FRACTION * len(members))
        test.append(members[:tests])
        validation.append(members[tests : tests + VALIDATION_PER_CLASS])
        train.append(members[tests + VALIDATION_PER_CLASS :])
    return (
        rng.permutation(np.concatenate(train)),
        rng.permutation(np.concatenate(validation)),
        rng.permutation(np.concatenate(test)),
    )


def _digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits of 8x8 grey pixels (UCI optical recognition), which scikit-learn brings along."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1).repeat(1, 3, 1, 1)  # (N, 3, 8, 8)
    return images, torch.from_numpy(digits.target).long()


# Name to a function that gives images (N, 3, H, W) float32 and labels (N,) int64.
DATA_SETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {"digits": _digits}
