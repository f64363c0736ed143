"""Images in the form that networks are trained and scored on: one protocol, and small images held in memory.

An image set never hands out a whole split. It is asked for batches, so that images may as well be decoded from files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MAX_SHIFT_FRACTION = 1 / 8  # of the image's side, by which augmentation moves an image: pad by four, crop 32


class ImageSet(Protocol):
    """Images (B, 3, H, W) float32, normalised, channels last in memory; labels (B,) int64."""

    @property
    def labels(self) -> Tensor:
        """Of every image, (N,) int64."""
        ...

    def batches(self, indices: Tensor, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels in this order, as a network is scored on them. The last batch may be smaller."""
        ...

    def augmented_batches(
        self, indices: Tensor, *, batch_size: int, seed: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, each image altered at random by `seed` and its place alone."""
        ...


@dataclass(frozen=True, eq=False)
class PixelImages:
    """Small images in memory."""

    pixels: Tensor  # (N, H, W, 3) uint8
    labels: Tensor  # (N,) int64
    mean: Tensor  # (3,) of pixel values, to be subtracted
    deviation: Tensor  # (3,)
    flip: bool  # whether a mirrored image is still of its class

    def batches(self, indices: Tensor, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.split(indices, batch_size):
            yield self._normalised(self.pixels[batch]), self.labels[batch]

    def augmented_batches(
        self, indices: Tensor, *, batch_size: int, seed: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Moved by up to an eighth of the side, and mirrored half of the time where that makes sense."""
        rng = np.random.default_rng(seed)
        for batch in torch.split(indices, batch_size):
            yield self._normalised(self._altered(batch, rng=rng)), self.labels[batch]

    def _altered(self, batch: Tensor, *, rng: np.random.Generator) -> Tensor:
        """Pixels (B, H, W, 3); the border's pixels fill the gap that a move leaves."""
        _, height, width, _ = self.pixels.shape
        rows = _shifted_indices(height, len(batch), rng=rng)
        columns = _shifted_indices(width, len(batch), rng=rng)
        if self.flip:
            mirrored = torch.from_numpy(rng.random(len(batch)) < 0.5)
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        return self.pixels[batch[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32, in memory as before: convolutions on a CPU want it so."""
        return ((pixels.float() - self.mean) / self.deviation).permute(0, 3, 1, 2)


def _shifted_indices(side: int, count: int, *, rng: np.random.Generator) -> Tensor:
    """(count, side)."""
    reach = round(side * MAX_SHIFT_FRACTION)
    shifts = torch.from_numpy(rng.integers(-reach, reach + 1, size=count))
    return (torch.arange(side) + shifts[:, None]).clamp(0, side - 1)
