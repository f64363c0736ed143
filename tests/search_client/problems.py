"""Search problems with latencies and accuracies that cost nothing, for the tests of every search algorithm."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from search_client.search_problem import (
    AdditiveLatency,
    Evaluated,
    LatencyBounds,
    SearchAlgorithm,
    SearchBudget,
    SearchProblem,
)
from search_client.spaces import IDENTITY, Architecture, SearchSpace, load_space

TINY = load_space(str(Path(__file__).with_name("tiny.toml")))  # 2 x 3 x 4 x 4 architectures
BASIC = load_space("basic")
SMALL = SearchBudget(population=8, iterations=6, max_tries=20)


def random_latency(space: SearchSpace, *, seed: int) -> AdditiveLatency:
    rng = np.random.default_rng(seed)
    return AdditiveLatency(
        fixed_ms=2.0,
        layer_ms=tuple(
            np.array([0.0 if choice == IDENTITY else rng.uniform(1, 4) for choice in layer.choices])
            for layer in space.layers
        ),
    )


class AnalyticOracle:
    """Accuracy as a fixed, saturating function of the choices; remembers what it was asked."""

    def __init__(self, space: SearchSpace, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.gain = [{choice: rng.uniform() for choice in layer.choices} for layer in space.layers]
        self.asked: list[Architecture] = []

    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        self.asked += architectures
        gains = (sum(gain[c] for gain, c in zip(self.gain, item, strict=True)) for item in architectures)
        return [float(1 - np.exp(-gain)) for gain in gains]


class SilentOracle:
    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        raise AssertionError(f"asked for {architectures}")


def search(
    algorithm: SearchAlgorithm,
    space: SearchSpace,
    latency: AdditiveLatency,
    bounds: LatencyBounds,
    *,
    oracle: AnalyticOracle | SilentOracle | None = None,
    budget: SearchBudget = SMALL,
    seed: int = 0,
    known: Mapping[Architecture, float] | None = None,
) -> list[Evaluated]:
    return algorithm(
        SearchProblem(space, latency, oracle or AnalyticOracle(space), bounds, budget),
        seed=seed,
        known=known or {},
        on_generation=lambda _generation, _evaluated: None,
    )


def middle(latency: AdditiveLatency, *, low: float = 0.4, high: float = 0.6) -> LatencyBounds:
    low_ms, high_ms = latency.attainable()
    return LatencyBounds(low_ms + low * (high_ms - low_ms), low_ms + high * (high_ms - low_ms))
