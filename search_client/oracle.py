"""Accuracy of architectures: the protocol that a search asks, and the supernet as one that answers."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from search_client.data import ImageData
from search_client.spaces import Architecture
from search_client.supernet import Supernet


class AccuracyOracle(Protocol):
    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        """Accuracy in [0, 1] of each architecture. Asked for a whole generation at once."""
        ...


class SupernetOracle:
    """Accuracy by weight inheritance (equation 2 of the paper): W_S(s) with batch-norm statistics of its own.

    Every candidate is calibrated on the same training images, whole batches of them, and scored on the whole split.
    The supernet is never altered, so a score depends on nothing but the architecture.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        *,
        calibration_images: int = 512,
        batch_size: int = 128,
        split: Literal["validation", "test"] = "validation",
        seed: int = 0,
    ) -> None:
        """`seed` chooses the calibration images among the training images."""
        device = next(supernet.parameters()).device
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.train_labels)))
        whole_batches = max(min(calibration_images, len(order)) // batch_size, 1) * batch_size
        images, labels = {
            "validation": (data.validation_images, data.validation_labels),
            "test": (data.test_images, data.test_labels),
        }[split]
        self._supernet = supernet
        self._calibration = _batches(data.train_images[order[:whole_batches]].to(device), batch_size)
        self._images = _batches(images.to(device), batch_size)
        self._labels = labels.to(device)

    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        return [self._accuracy(architecture) for architecture in architectures]

    @torch.no_grad()
    def calibrated(self, architecture: Architecture) -> nn.Sequential:
        """The candidate with its batch-norm statistics, in evaluation mode: the network that is scored."""
        candidate = self._supernet.candidate(architecture)
        candidate.train()
        for batch in self._calibration:
            candidate(batch)
        return candidate.eval()

    @torch.no_grad()
    def _accuracy(self, architecture: Architecture) -> float:
        candidate = self.calibrated(architecture)
        predictions = torch.cat([candidate(batch).argmax(dim=1) for batch in self._images])
        return (predictions == self._labels).double().mean().item()


def _batches(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split, with the channels last in memory, which makes inference on a CPU about twice as fast."""
    return torch.split(images.contiguous(memory_format=torch.channels_last), batch_size)
