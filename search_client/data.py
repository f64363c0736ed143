"""Image data sets and their splits.

Validation images are drawn from the training part, a fixed number per class, as in section 4.1 of the paper; the
test part is never seen by a search.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from search_client.errors import InvalidData
from search_client.images import ImageSet, PixelImages

TEST_FRACTION = 0.2  # of each class, where a data set has no test part of its own


@dataclass(frozen=True, eq=False)
class ImageData:
    name: str
    classes: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    fingerprint: str  # two searches with one fingerprint saw the same images, split alike


class _Pixels(NamedTuple):
    """A data set of small images without a test part of its own."""

    pixels: Tensor  # (N, H, W, 3) uint8
    labels: Tensor  # (N,) int64
    flip: bool


def load_data(name: str, *, input_size: int, validation_per_class: int, seed: int) -> ImageData:
    """A data set by name, resized to `input_size` pixels a side and split by `seed`.

    Raises:
        InvalidData: no data set has this name, or a class has too few images.
    """
    if name not in DATA_SETS:
        raise InvalidData(f"There is no data set '{name}'. Known data sets: {', '.join(DATA_SETS)}.")
    pixels, labels, flip = DATA_SETS[name](input_size)
    parts = _split(labels.numpy(), validation_per_class=validation_per_class, rng=np.random.default_rng(seed))
    learned = pixels[parts[0]].double()
    mean, deviation = learned.mean(dim=(0, 1, 2)).float(), learned.std(dim=(0, 1, 2)).float()
    train, validation, test = (PixelImages(pixels[part], labels[part], mean, deviation, flip) for part in parts)
    return ImageData(
        name=name,
        classes=int(labels.max()) + 1,
        train=train,
        validation=validation,
        test=test,
        fingerprint=_fingerprint(train, validation, test),
    )


def _split(
    labels: NDArray[np.int64], *, validation_per_class: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of training, validation and test images: each class is split alike, and the order is shuffled."""
    train, validation, test = [], [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        tests = round(TEST_FRACTION * len(members))
        if len(members) - tests <= validation_per_class:
            raise InvalidData(
                f"Class {label} has {len(members) - tests} images to train and validate on, which leaves none to train"
                f" on with validation_per_class = {validation_per_class}. Use a smaller number."
            )
        test.append(members[:tests])
        validation.append(members[tests : tests + validation_per_class])
        train.append(members[tests + validation_per_class :])
    return (
        rng.permutation(np.concatenate(train)),
        rng.permutation(np.concatenate(validation)),
        rng.permutation(np.concatenate(test)),
    )


def _fingerprint(*parts: PixelImages) -> str:
    """SHA-256 of every image and label."""
    digest = hashlib.sha256()
    for part in parts:
        for tensor in (part.pixels, part.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digits(input_size: int) -> _Pixels:
    """1,797 handwritten digits of 8x8 grey pixels (UCI optical recognition), which scikit-learn brings along."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # (N, 1, 8, 8) of 0 to 255
    resized = F.interpolate(grey, size=(input_size, input_size), mode="bilinear", align_corners=False)
    pixels = resized.round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3)
    return _Pixels(pixels, torch.from_numpy(digits.target).long(), flip=False)


# Name to a function that makes square images of this many pixels a side.
DATA_SETS: dict[str, Callable[[int], _Pixels]] = {"digits": _digits}
