"""Accuracy of architectures: the protocol that a search asks, and the supernet as one that answers."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from search_client.data import ImageData
from search_client.gpu_memory import enough_gpu_memory
from search_client.images import ImageSet
from search_client.prefix_tree import BYTES_OF_A_NUMBER, PrefixTree
from search_client.spaces import Architecture
from search_client.supernet import Supernet


class AccuracyOracle(Protocol):
    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        """Accuracy in [0, 1] of each architecture. Asked for a whole generation at once."""
        ...


class SupernetOracle:
    """Accuracy by weight inheritance (equation 2 of the paper): W_S(s) with batch-norm statistics of its own.

    Every candidate is calibrated on the same training images, whole batches of them, and scored on the whole split.
    Each batch passes through the whole generation before the next is loaded. The supernet is never altered, so a score
    depends on nothing but the architecture, neither on the others that are asked about nor on the memory.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        *,
        calibration_images: int = 512,
        batch_size: int = 128,
        memory_mb: int = 2048,
        split: Literal["validation", "test"] = "validation",
        seed: int = 0,
    ) -> None:
        """
        Args:
            memory_mb: for images that are kept from one generation to the next, where a set of them takes up at most
                half of it, and for intermediate results that several architectures share. 0 keeps and shares nothing.
                What one operator needs for one batch comes on top.
            seed: chooses the calibration images among the training images.
        """
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.train.labels)))
        whole_batches = max(min(calibration_images, len(order)) // batch_size, 1) * batch_size
        scored = {"validation": data.validation, "test": data.test}[split]
        self._supernet = supernet
        self._batch_size = batch_size
        self._scored_images = len(scored.labels)
        self._held_bytes = memory_mb * 10**6
        self._calibration = self._batches(data.train, order[:whole_batches])
        self._scored = self._batches(scored, torch.arange(self._scored_images))

    @enough_gpu_memory("The same command goes on with a smaller evaluation_memory_mb in the file of --config.")
    @torch.inference_mode()
    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        tree = PrefixTree(self._supernet, architectures, batch_size=self._batch_size, held_bytes=self._held_bytes)
        tree.calibrate(images for images, _ in self._calibration)
        correct: dict[Architecture, Tensor] = {}  # counts stay on the device, which need not be waited for
        for images, labels in self._scored:
            for architecture, logits in tree.logits(images):
                answers = (logits.argmax(dim=1) == labels).sum()
                correct[architecture] = correct.get(architecture, 0) + answers
        return [correct[architecture].item() / self._scored_images for architecture in architectures]

    @torch.no_grad()
    def calibrated(self, architecture: Architecture) -> nn.Sequential:
        """The candidate with its batch-norm statistics, in evaluation mode: the network that is scored."""
        candidate = self._supernet.candidate(architecture).train()
        for images, _ in self._calibration:
            candidate(images)
        return candidate.eval()

    def _batches(self, images: ImageSet, indices: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Kept on the device where they take up at most half of the memory that is left; otherwise loaded each time."""
        stem = self._supernet.space.stem
        device = next(self._supernet.parameters()).device
        batches = _Batches(images, indices, batch_size=self._batch_size, device=device)
        image_bytes = stem.in_channels * stem.height * stem.width * BYTES_OF_A_NUMBER
        if len(indices) * image_bytes > self._held_bytes // 2:
            return batches
        self._held_bytes -= len(indices) * image_bytes
        return list(batches)


@dataclass(frozen=True, eq=False)
class _Batches:
    """Chosen images and their labels on a device, loaded whenever they are gone through."""

    images: ImageSet
    indices: Tensor
    batch_size: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.images.batches(self.indices, batch_size=self.batch_size):
            yield images.to(self.device), labels.to(self.device)


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
