"""How good is what a search found? Known where the accuracy of every architecture is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_client.oracle import AccuracyOracle
from search_client.search_problem import AdditiveLatency, Evaluated, LatencyBounds
from search_client.spaces import SearchSpace
from search_client.tabular_oracle import all_architectures


@dataclass(frozen=True, eq=False)
class KnownOptimum:
    """Everything within the bounds."""

    latency_ms: NDArray[np.float64]  # (N,)
    accuracy: NDArray[np.float64]  # (N,), in [0, 1]

    @classmethod
    def of(
        cls, space: SearchSpace, *, latency: AdditiveLatency, oracle: AccuracyOracle, bounds: LatencyBounds
    ) -> "KnownOptimum":
        genes = np.indices([len(layer.choices) for layer in space.layers]).reshape(len(space.layers), -1).T
        within = latency.within(bounds, genes)  # in the order of `all_architectures`, the last layer fastest
        accuracy = np.array(oracle.evaluate(list(all_architectures(space))))
        return cls(latency.of(genes)[within], accuracy[within])

    def regret(self, found: Sequence[Evaluated]) -> float:
        """Accuracy of the best architecture within the bounds minus that of the best found, in [0, 1]."""
        return float(self.accuracy.max()) - max(item.accuracy for item in found)

    def hypervolume_ratio(self, found: Sequence[Evaluated]) -> float:
        """What was found dominates this share of what the true Pareto front dominates, in [0, 1].

        Dominated is what is slower and less accurate, up to the slowest and down to the least accurate architecture
        within the bounds. 1 where these are one point, as then there is nothing to dominate.
        """
        worst = float(self.latency_ms.max()), float(self.accuracy.min())
        whole = dominated_area(self.latency_ms, self.accuracy, worst=worst)
        part = dominated_area(
            np.array([item.latency_ms for item in found]), np.array([item.accuracy for item in found]), worst=worst
        )
        return part / whole if whole > 0 else 1.0


def dominated_area(
    latency_ms: NDArray[np.float64], accuracy: NDArray[np.float64], *, worst: tuple[float, float]
) -> float:
    """Hypervolume of points (N,), (N,): the area between them and a worst point (ms, accuracy), in milliseconds."""
    order = np.argsort(latency_ms)
    widths_ms = np.diff(np.append(latency_ms[order], worst[0]))  # until the next point, or the worst
    heights = np.maximum.accumulate(accuracy[order]) - worst[1]
    return float((widths_ms * heights).sum())
