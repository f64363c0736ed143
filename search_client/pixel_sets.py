"""Data sets of small images, which are held in memory whole."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

RESIZED_AT_ONCE = 1000  # images; a float copy of all of them would need four times the memory of the result


class Pixels(NamedTuple):
    """Square images with their labels."""

    pixels: Tensor  # (N, H, W, 3) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True, eq=False)
class PixelSet:
    train: Pixels
    test: Pixels | None  # None: a data set without a test part of its own
    classes: tuple[str, ...]
    flip: bool  # whether a mirrored image is still of its class


def digits(side: int) -> PixelSet:
    """1,797 handwritten digits of 8x8 grey pixels (UCI optical recognition), which scikit-learn brings along."""
    loaded = load_digits()
    grey = torch.from_numpy(loaded.images).unsqueeze(-1) * (255 / 16)  # (N, 8, 8, 1) of 0 to 255
    pixels = resized(grey, side=side).repeat(1, 1, 1, 3)
    names = tuple(str(name) for name in loaded.target_names)
    return PixelSet(Pixels(pixels, torch.from_numpy(loaded.target).long()), test=None, classes=names, flip=False)


def resized(images: Tensor, *, side: int) -> Tensor:
    """Images (N, H, W, C) with values of 0 to 255, as uint8 (N, side, side, C)."""
    if images.dtype == torch.uint8 and images.shape[1:3] == (side, side):
        return images
    result = torch.empty((len(images), side, side, images.shape[3]), dtype=torch.uint8)
    for source, target in zip(torch.split(images, RESIZED_AT_ONCE), torch.split(result, RESIZED_AT_ONCE), strict=True):
        smooth = F.interpolate(
            source.permute(0, 3, 1, 2).float(),
            size=(side, side),
            mode="bilinear",
            align_corners=False,
            antialias=side < images.shape[1],
        )
        target.copy_(smooth.round().permute(0, 2, 3, 1))
    return result
