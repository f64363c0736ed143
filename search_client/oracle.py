"""Accuracy of architectures: the protocol that a search asks, and the supernet as one that answers."""

import time
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch

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
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.train.labels)))
        whole_batches = max(min(calibration_images, len(order)) // batch_size, 1) * batch_size
        images = {"validation": data.validation, "test": data.test}[split]
        self._supernet = supernet
        self._calibration = [x.to(device) for x, _ in data.train.batches(order[:whole_batches], batch_size=batch_size)]
        everything = torch.arange(len(images.labels))
        self._images = [x.to(device) for x, _ in images.batches(everything, batch_size=batch_size)]
        self._labels = images.labels.to(device)

    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        return [self._accuracy(architecture) for architecture in architectures]

    @torch.no_grad()
    def _accuracy(self, architecture: Architecture) -> float:
        candidate = self._supernet.candidate(architecture)
        candidate.train()
        for batch in self._calibration:
            candidate(batch)
        candidate.eval()
        predictions = torch.cat([candidate(batch).argmax(dim=1) for batch in self._images])
        return (predictions == self._labels).double().mean().item()


class TimedOracle:
    """Another oracle, and how long it took to answer."""

    def __init__(self, oracle: AccuracyOracle) -> None:
        self._oracle = oracle
        self.seconds = 0.0

    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        started = time.perf_counter()
        try:
            return self._oracle.evaluate(architectures)
        finally:
            self.seconds += time.perf_counter() - started
