"""Constrained Evolutionary Search: NSGA-II on latency and error, inside latency bounds (section 3.2 of the paper).

The only module that imports pymoo. An architecture is a row of genes: per layer, the index of its choice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.mating import Mating
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.mutation.pm import PolynomialMutation
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.problems.static import StaticProblem
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from search_client.errors import NoFeasibleArchitecture
from search_client.oracle import AccuracyOracle
from search_client.spaces import Architecture, SearchSpace

# Distribution index of polynomial mutation. At 3, seven of ten mutated genes of a layer with seven choices still
# differ from their parent after rounding; at pymoo's 20, one or two of ten.
MUTATION_ETA = 3.0

Genes = NDArray[np.int64]


@dataclass(frozen=True)
class LatencyBounds:
    """Lat_min and Lat_max of equation 2; both may be attained."""

    min_ms: float
    max_ms: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_ms <= self.max_ms < math.inf:
            raise ValueError(
                f"Latency bounds must be finite with 0 <= min <= max, got {self.min_ms:g} to {self.max_ms:g} ms."
            )

    def contain(self, latency_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
        return (self.min_ms <= latency_ms) & (latency_ms <= self.max_ms)

    def must_overlap(self, attainable_ms: tuple[float, float]) -> None:
        """Raises NoFeasibleArchitecture where a space that attains this range has nothing within the bounds."""
        low_ms, high_ms = attainable_ms
        if high_ms < self.min_ms or self.max_ms < low_ms:
            raise self.infeasible(attainable_ms)

    def infeasible(self, attainable_ms: tuple[float, float]) -> NoFeasibleArchitecture:
        low_ms, high_ms = attainable_ms
        return NoFeasibleArchitecture(min_ms=self.min_ms, max_ms=self.max_ms, low_ms=low_ms, high_ms=high_ms)


@dataclass(frozen=True, eq=False)
class AdditiveLatency:
    """Latency of an architecture as the sum of its operators, which is the paper's latency predictor."""

    fixed_ms: float  # stem, head and whatever else every architecture pays
    layer_ms: tuple[NDArray[np.float64], ...]  # per layer, in the order of its choices

    def __post_init__(self) -> None:
        assert math.isfinite(self.fixed_ms)
        assert all(np.isfinite(choices_ms).all() for choices_ms in self.layer_ms)

    def of(self, genes: Genes) -> NDArray[np.float64]:
        """Milliseconds (N,) of genes (N, layers)."""
        total_ms = np.full(len(genes), self.fixed_ms)
        for choices_ms, gene in zip(self.layer_ms, genes.T, strict=True):
            total_ms += choices_ms[gene]
        return total_ms

    def attainable(self) -> tuple[float, float]:
        """Milliseconds of the fastest and of the slowest architecture."""
        extremes = [[int(ms.argmin()) for ms in self.layer_ms], [int(ms.argmax()) for ms in self.layer_ms]]
        low_ms, high_ms = self.of(np.array(extremes))
        return float(low_ms), float(high_ms)


@dataclass(frozen=True)
class CesSettings:
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


def constrained_evolutionary_search(
    space: SearchSpace,
    *,
    latency: AdditiveLatency,
    oracle: AccuracyOracle,
    bounds: LatencyBounds,
    settings: CesSettings,
    seed: int,
    known: Mapping[Architecture, float] | None = None,
    on_generation: Callable[[int, Sequence[Evaluated]], None],
) -> list[Evaluated]:
    """Every architecture that the search evaluated, in order (line 3 of Algorithm 1).

    Offspring outside the bounds are discarded at crossover and mutation and drawn again; nothing within them is
    discarded for its accuracy. No architecture is evaluated twice. A generation may be smaller than the population
    where the space is nearly exhausted, and the search ends early where no new offspring is found.

    Args:
        known: accuracies from an earlier, interrupted run, used instead of asking the oracle. The search is a
            function of the other arguments, so it takes the same course again and goes on where that run stopped.
        on_generation: hears of every generation, also of those that were known.

    Raises:
        NoFeasibleArchitecture: nothing within the bounds was found.
    """
    rng = np.random.default_rng(seed)
    evaluated: list[Evaluated] = []
    seen: set[tuple[int, ...]] = set()
    problem = Problem(
        n_var=len(space.layers),
        n_obj=2,
        xl=np.zeros(len(space.layers)),
        xu=np.array([len(layer.choices) - 1 for layer in space.layers]),
    )
    algorithm = NSGA2(
        pop_size=settings.population,
        sampling=_initial_genes(space, latency=latency, bounds=bounds, settings=settings, rng=rng),
        mating=_BoundedMating(latency=latency, bounds=bounds, seen=seen, max_tries=settings.max_tries),
        output=None,
    )
    algorithm.setup(problem, seed=rng, termination=NoTermination())  # pymoo draws from this very generator
    for generation in range(settings.iterations + 1):
        offspring = algorithm.ask()
        if offspring is None:  # no new architecture is left within reach of the population
            break
        genes = offspring.get("X").astype(int)
        architectures = [_architecture(space, row) for row in genes]
        accuracies = _accuracies(architectures, oracle=oracle, known=known or {})
        latencies_ms = latency.of(genes)
        newest = [
            Evaluated(architecture, float(latency_ms), accuracy, generation)
            for architecture, latency_ms, accuracy in zip(architectures, latencies_ms, accuracies, strict=True)
        ]
        seen.update(map(tuple, genes.tolist()))
        evaluated += newest
        on_generation(generation, newest)
        algorithm.evaluator.eval(StaticProblem(problem, F=_objectives(newest)), offspring)
        algorithm.tell(infills=offspring)
    return evaluated


def nondomination_ranks(evaluated: Sequence[Evaluated]) -> NDArray[np.int64]:
    """Rank (N,) of each architecture: 1 on the Pareto front of latency and accuracy, 2 on what is the front without
    that, and so on. Equals share a rank."""
    _, ranks = NonDominatedSorting().do(_objectives(evaluated), return_rank=True)
    return np.asarray(ranks, dtype=np.int64) + 1


def _objectives(evaluated: Sequence[Evaluated]) -> NDArray[np.float64]:
    """(N, 2), both to be minimised: latency in ms, error in [0, 1]."""
    return np.array([(item.latency_ms, 1 - item.accuracy) for item in evaluated])


def _architecture(space: SearchSpace, genes: Genes) -> Architecture:
    return tuple(layer.choices[gene] for layer, gene in zip(space.layers, genes, strict=True))


def _accuracies(
    architectures: Sequence[Architecture], *, oracle: AccuracyOracle, known: Mapping[Architecture, float]
) -> list[float]:
    unknown = [architecture for architecture in architectures if architecture not in known]
    answers = dict(zip(unknown, oracle.evaluate(unknown), strict=True)) if unknown else {}
    accuracies = [answers[item] if item in answers else known[item] for item in architectures]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    return accuracies


def _initial_genes(
    space: SearchSpace,
    *,
    latency: AdditiveLatency,
    bounds: LatencyBounds,
    settings: CesSettings,
    rng: np.random.Generator,
) -> Genes:
    """Distinct genes (N, layers) within the bounds, 1 <= N <= population.

    Uniform draws that fall outside the bounds are rejected. Where the bounds are so narrow or so far from the middle
    that this leaves the population incomplete, draws that are steered into the bounds complete it.
    """
    bounds.must_overlap(latency.attainable())
    draws = settings.population * settings.max_tries
    choices = [len(layer.choices) for layer in space.layers]
    uniform = rng.integers(choices, size=(draws, len(choices)))
    found = _distinct(uniform[bounds.contain(latency.of(uniform))])
    if len(found) < settings.population:
        steered = _steered_genes(latency=latency, bounds=bounds, draws=draws, rng=rng)
        found = _distinct(np.concatenate([found, steered[bounds.contain(latency.of(steered))]]))
    if len(found) == 0:
        raise bounds.infeasible(latency.attainable())
    return found[: settings.population]


def _distinct(genes: Genes) -> Genes:
    """Without repeated rows, in order of first appearance."""
    _, first = np.unique(genes, axis=0, return_index=True)
    return genes[np.sort(first)]


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


class _BoundedMating(Mating):  # type: ignore[misc]  # pymoo is untyped
    """Two-point crossover and polynomial mutation, without offspring that is out of bounds or was seen before.

    pymoo asks again for what is lacking, up to `max_tries` times.
    """

    def __init__(
        self, *, latency: AdditiveLatency, bounds: LatencyBounds, seen: set[tuple[int, ...]], max_tries: int
    ) -> None:
        super().__init__(
            selection=TournamentSelection(func_comp=binary_tournament),
            crossover=TwoPointCrossover(),
            mutation=PolynomialMutation(eta=MUTATION_ETA),
            eliminate_duplicates=DefaultDuplicateElimination(),
            n_max_iterations=max_tries,
        )
        self.latency = latency
        self.bounds = bounds
        self.seen = seen

    def _do(self, *args: Any, **kwargs: Any) -> Population:
        offspring = super()._do(*args, **kwargs)
        genes = np.around(offspring.get("X")).astype(int)
        offspring.set("X", genes)
        new = np.array([tuple(row) not in self.seen for row in genes.tolist()])
        return offspring[new & self.bounds.contain(self.latency.of(genes))]
