"""What every search algorithm is given and gives: bounds, latencies as arrays, feasible draws, what was evaluated.

An architecture is a row of genes: per layer, the index of its choice.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latency_contract.predictions import CONFIDENCE
from search_client.errors import NoFeasibleArchitecture
from search_client.latency_spread import LatencySpread
from search_client.oracle import AccuracyOracle
from search_client.spaces import Architecture, SearchSpace

Genes = NDArray[np.int64]
Row = tuple[int, ...]  # the genes of one architecture
NOTHING_KNOWN: Mapping[Architecture, float] = MappingProxyType({})


@dataclass(frozen=True)
class LatencyBounds:
    """Lat_min and Lat_max of equation 2; both may be attained."""

    min_ms: float
    max_ms: float
    targets_ms: tuple[float, ...] = ()  # the most accurate under each is wanted; none: under the upper bound

    def __post_init__(self) -> None:
        if not 0 <= self.min_ms <= self.max_ms < math.inf:
            raise ValueError(
                f"Latency bounds must be finite with 0 <= min <= max, got {self.min_ms:g} to {self.max_ms:g} ms."
            )

    def must_overlap(self, attainable_ms: tuple[float, float]) -> None:
        """Raises NoFeasibleArchitecture where a space that attains this range has nothing within the bounds."""
        low_ms, high_ms = attainable_ms
        if high_ms < self.min_ms or self.max_ms < low_ms:
            raise self.infeasible(attainable_ms)

    def infeasible(self, attainable_ms: tuple[float, float], *, margin_ms: float = 0.0) -> NoFeasibleArchitecture:
        low_ms, high_ms = attainable_ms
        return NoFeasibleArchitecture(
            min_ms=self.min_ms, max_ms=self.max_ms, low_ms=low_ms, high_ms=high_ms, margin_ms=margin_ms
        )


@dataclass(frozen=True, eq=False)
class AdditiveLatency:
    """Latency of an architecture as a sum over its layers, which is the paper's latency predictor.

    Calibrated or not: what a calibration looks at adds up over the layers, too.
    """

    fixed_ms: float  # stem, head and whatever else every architecture pays
    layer_ms: tuple[NDArray[np.float64], ...]  # per layer, in the order of its choices
    spread: LatencySpread | None = None  # None where nobody knows
    confidence: float | None = None  # the probability that an architecture stays below a bound; None: as predicted

    def __post_init__(self) -> None:
        assert math.isfinite(self.fixed_ms)
        assert all(np.isfinite(choices_ms).all() for choices_ms in self.layer_ms)
        assert self.confidence is None or self.spread is not None

    def of(self, genes: Genes) -> NDArray[np.float64]:
        """Milliseconds (N,) of genes (N, layers)."""
        total_ms = np.full(len(genes), self.fixed_ms)
        for choices_ms, gene in zip(self.layer_ms, genes.T, strict=True):
            total_ms += choices_ms[gene]
        return total_ms

    def at_most(self, genes: Genes) -> NDArray[np.float64]:
        """Milliseconds (N,) that are held against an upper bound: the latency, or what it stays below with
        probability `confidence`."""
        latency_ms = self.of(genes)
        if self.confidence is None or self.spread is None:
            return latency_ms
        return latency_ms + self.spread.widths(self.confidence) * self.spread.deviations(genes)[1]

    def within(self, bounds: LatencyBounds, genes: Genes) -> NDArray[np.bool_]:
        """Which architectures (N,) are within bounds: the lower as predicted, the upper with the confidence."""
        return (bounds.min_ms <= self.of(genes)) & (self.at_most(genes) <= bounds.max_ms)

    def intervals(self, genes: Genes) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Milliseconds (N,) between which latencies lie with probability CONFIDENCE; None where nobody knows."""
        if self.spread is None:
            return None
        latency_ms, (below_ms, above_ms) = self.of(genes), self.spread.deviations(genes)
        widths = self.spread.widths((1 + CONFIDENCE) / 2)
        return latency_ms - widths * below_ms, latency_ms + widths * above_ms

    def attainable(self) -> tuple[float, float]:
        """Milliseconds of the fastest and of the slowest architecture, as predicted."""
        low_ms, high_ms = self.of(self._extremes())
        return float(low_ms), float(high_ms)

    def within_reach(self) -> tuple[float, float]:
        """What bounds have to overlap: the least that is held against the upper one, and the slowest.

        With a confidence, the least need not be of the fastest: a little slower, and much better known, is less. It is
        looked for from the fastest on, one choice after the other, until none makes it less.
        """
        genes = self._extremes()[0]
        while True:
            before = genes.copy()
            for layer, choices_ms in enumerate(self.layer_ms):
                tried = np.tile(genes, (len(choices_ms), 1))
                tried[:, layer] = np.arange(len(choices_ms))
                genes = tried[self.at_most(tried).argmin()]
            if (genes == before).all():
                return float(self.at_most(genes[None])[0]), self.attainable()[1]

    def margin_ms(self) -> float:
        """How far below an upper bound the prediction stays, of the fastest or the slowest; 0 without a confidence."""
        genes = self._extremes()
        return float((self.at_most(genes) - self.of(genes)).min())

    def _extremes(self) -> Genes:
        """The fastest and the slowest architecture."""
        return np.array([[int(ms.argmin()) for ms in self.layer_ms], [int(ms.argmax()) for ms in self.layer_ms]])


@dataclass(frozen=True)
class SearchBudget:
    """How much a search may evaluate; the paper's numbers."""

    population: int = 64
    iterations: int = 40  # generations after the initial population
    max_tries: int = 100  # draws until a population or a generation of offspring may stay incomplete

    def __post_init__(self) -> None:
        if self.population < 2 or self.iterations < 0 or self.max_tries < 1:
            raise ValueError(
                "A search needs a population of at least 2, 0 or more iterations and at least 1 try, got"
                f" {self.population}, {self.iterations} and {self.max_tries}."
            )


@dataclass(frozen=True)
class Evaluated:
    architecture: Architecture
    latency_ms: float
    accuracy: float  # in [0, 1]
    generation: int  # 0 for the initial population
    low_ms: float | None = None  # interval of the prediction; None where nobody knows
    high_ms: float | None = None
    at_most_ms: float | None = None  # with the search's latency confidence; None without one

    @property
    def bound_ms(self) -> float:
        """What is held against an upper bound or a target."""
        return self.latency_ms if self.at_most_ms is None else self.at_most_ms


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """What is to be searched, and how much of it."""

    space: SearchSpace
    latency: AdditiveLatency
    oracle: AccuracyOracle
    bounds: LatencyBounds
    budget: SearchBudget

    def feasible(self, genes: Genes) -> NDArray[np.bool_]:
        """Which architectures (N,) are within the bounds."""
        return self.latency.within(self.bounds, genes)


class SearchAlgorithm(Protocol):
    """A way to search. What it does is a function of its arguments, so that it takes the same course again."""

    def __call__(
        self,
        problem: SearchProblem,
        *,
        seed: int,
        known: Mapping[Architecture, float] = NOTHING_KNOWN,
        on_generation: Callable[[int, Sequence[Evaluated]], None],
    ) -> list[Evaluated]:
        """Every architecture that the search evaluated, in order; none twice, all within the bounds.

        Args:
            known: accuracies from an earlier, interrupted run, used instead of asking the oracle.
            on_generation: hears of every generation, also of those that were known.

        Raises:
            NoFeasibleArchitecture: nothing within the bounds was found.
        """
        ...


def evaluate_generation(
    problem: SearchProblem, genes: Genes, *, generation: int, known: Mapping[Architecture, float]
) -> list[Evaluated]:
    """Genes (N, layers) with their latency and accuracy; the oracle is asked at once for all that is not known."""
    architectures = [_architecture(problem.space, row) for row in genes]
    unknown = [architecture for architecture in architectures if architecture not in known]
    answers = dict(zip(unknown, problem.oracle.evaluate(unknown), strict=True)) if unknown else {}
    accuracies = [answers[item] if item in answers else known[item] for item in architectures]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    latency, nobody_knows = problem.latency, [None] * len(genes)
    intervals = latency.intervals(genes)
    low_ms, high_ms = (nobody_knows, nobody_knows) if intervals is None else (ends.tolist() for ends in intervals)
    at_most_ms = nobody_knows if latency.confidence is None else latency.at_most(genes).tolist()
    columns = (architectures, latency.of(genes).tolist(), accuracies, low_ms, high_ms, at_most_ms)
    return [
        Evaluated(architecture, latency_ms, accuracy, generation, low, high, at_most)
        for architecture, latency_ms, accuracy, low, high, at_most in zip(*columns, strict=True)
    ]


def _architecture(space: SearchSpace, genes: Genes) -> Architecture:
    return tuple(layer.choices[gene] for layer, gene in zip(space.layers, genes, strict=True))


def initial_genes(problem: SearchProblem, *, rng: np.random.Generator) -> Genes:
    """Distinct genes (N, layers) within the bounds, 1 <= N <= population.

    Uniform draws that fall outside the bounds are rejected. Where the bounds are so narrow or so far from the middle
    that this leaves the population incomplete, draws that are steered into the bounds complete it.
    """
    problem.bounds.must_overlap(problem.latency.within_reach())
    found = random_genes(problem, rng=rng, seen=frozenset())
    if len(found) == 0:
        raise problem.bounds.infeasible(problem.latency.within_reach(), margin_ms=problem.latency.margin_ms())
    return found


class _Unasked:
    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        raise AssertionError(f"asked for {architectures}")


def must_begin(
    space: SearchSpace, latency: AdditiveLatency, bounds: LatencyBounds, budget: SearchBudget, *, seed: int
) -> None:
    """Raises NoFeasibleArchitecture where a search with this seed would find nothing to begin with."""
    initial_genes(SearchProblem(space, latency, _Unasked(), bounds, budget), rng=np.random.default_rng(seed))


def random_genes(problem: SearchProblem, *, rng: np.random.Generator, seen: Collection[Row]) -> Genes:
    """As `initial_genes`, and none of what was seen; without any where none is left, or is too rare."""
    budget = problem.budget
    draws = budget.population * budget.max_tries
    choices = [len(layer.choices) for layer in problem.space.layers]
    found = new_genes(problem, rng.integers(choices, size=(draws, len(choices))), seen=seen)
    if len(found) < budget.population:
        steered = _steered_genes(latency=problem.latency, bounds=problem.bounds, draws=draws, rng=rng)
        found = new_genes(problem, np.concatenate([found, steered]), seen=seen)
    return found[: budget.population]


def new_genes(problem: SearchProblem, genes: Genes, *, seen: Collection[Row]) -> Genes:
    """The rows within the bounds that were not seen, each once, in order of first appearance."""
    feasible = genes[problem.feasible(genes)]
    new = dict.fromkeys(row for row in map(tuple, feasible.tolist()) if row not in seen)
    return np.array(list(new), dtype=np.int64).reshape(len(new), genes.shape[1])


def _steered_genes(*, latency: AdditiveLatency, bounds: LatencyBounds, draws: int, rng: np.random.Generator) -> Genes:
    """Genes (draws, layers), chosen layer by layer among what keeps the bounds within reach of the layers to come.

    Layers with the widest span of latencies come first, so that the last ones are the fine adjustment. A draw may
    still miss the bounds.
    """
    spans_ms = np.array([np.ptp(choices_ms) for choices_ms in latency.layer_ms])
    order = np.argsort(-spans_ms, kind="stable")
    rest_low_ms = sum(choices_ms.min() for choices_ms in latency.layer_ms)
    rest_high_ms = sum(choices_ms.max() for choices_ms in latency.layer_ms)
    rounding_ms = 1e-9 * bounds.max_ms  # sums in another order may differ by so much
    genes = np.zeros((draws, len(order)), dtype=np.int64)
    total_ms = np.full(draws, latency.fixed_ms)
    for layer in order:
        choices_ms = latency.layer_ms[layer]
        rest_low_ms -= choices_ms.min()
        rest_high_ms -= choices_ms.max()
        reached_ms = total_ms[:, None] + choices_ms  # (draws, choices)
        open_choices = (reached_ms + rest_low_ms <= bounds.max_ms + rounding_ms) & (
            reached_ms + rest_high_ms >= bounds.min_ms - rounding_ms
        )
        genes[:, layer] = np.where(open_choices, rng.random(open_choices.shape), -1).argmax(axis=1)
        total_ms += choices_ms[genes[:, layer]]
    return genes
