"""Constrained Evolutionary Search: NSGA-II on latency and error, inside latency bounds (section 3.2 of the paper).

The only module that imports pymoo.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
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

from search_client.search_problem import (
    NOTHING_KNOWN,
    Evaluated,
    Row,
    SearchProblem,
    evaluate_generation,
    initial_genes,
    random_genes,
)
from search_client.spaces import Architecture

# Distribution index of polynomial mutation. At 3, seven of ten mutated genes of a layer with seven choices still
# differ from their parent after rounding; at pymoo's 20, one or two of ten.
MUTATION_ETA = 3.0

# Architectures that compete to be one parent. The best of 9 stands on average at the best tenth of the population, as
# does a draw from its best fifth, which is how SPOS selects; the best of 2, as in NSGA-II, only at the best third.
TOURNAMENT = 9


def constrained_evolutionary_search(
    problem: SearchProblem,
    *,
    seed: int,
    known: Mapping[Architecture, float] = NOTHING_KNOWN,
    on_generation: Callable[[int, Sequence[Evaluated]], None],
) -> list[Evaluated]:
    """Every architecture that the search evaluated, in order (line 3 of Algorithm 1).

    Parents win tournaments by nondomination rank, and of equal rank by accuracy, under the upper bound or one of the
    latency targets (docs/decisions/0010); who survives is decided by rank and crowding distance. Offspring outside the
    bounds are discarded at crossover and mutation and drawn again; nothing within them is discarded for its accuracy.
    No architecture is evaluated twice. A generation that mating cannot complete is completed by random architectures;
    the search ends early when these run out too.
    """
    rng = np.random.default_rng(seed)
    evaluated: list[Evaluated] = []
    seen: set[Row] = set()
    highest = np.array([len(layer.choices) - 1 for layer in problem.space.layers])
    minimised = Problem(n_var=len(highest), n_obj=2, xl=np.zeros(len(highest)), xu=highest)
    algorithm = NSGA2(
        pop_size=problem.budget.population,
        sampling=initial_genes(problem, rng=rng),
        mating=_BoundedMating(problem, seen=seen),
        output=None,
    )
    algorithm.setup(minimised, seed=rng, termination=NoTermination())  # pymoo draws from this very generator
    for generation in range(problem.budget.iterations + 1):
        offspring = algorithm.ask()
        if offspring is None:  # everything within the bounds was evaluated
            break
        genes = offspring.get("X").astype(int)
        newest = evaluate_generation(problem, genes, generation=generation, known=known)
        seen.update(map(tuple, genes.tolist()))
        evaluated += newest
        on_generation(generation, newest)
        algorithm.evaluator.eval(StaticProblem(minimised, F=_objectives(newest)), offspring)
        algorithm.tell(infills=offspring)
    return evaluated


def nondomination_ranks(evaluated: Sequence[Evaluated]) -> NDArray[np.int64]:
    """Rank (N,) of each architecture: 1 on the Pareto front of latency and accuracy, 2 on what is the front without
    that, and so on. Equals share a rank."""
    _, ranks = NonDominatedSorting().do(_objectives(evaluated), return_rank=True)
    return np.asarray(ranks, dtype=np.int64) + 1


def pareto_front(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """The architectures of rank 1, the fastest first."""
    ranks = nondomination_ranks(evaluated)
    front = [item for item, rank in zip(evaluated, ranks, strict=True) if rank == 1]
    return sorted(front, key=lambda item: (item.latency_ms, -item.accuracy))


def _objectives(evaluated: Sequence[Evaluated]) -> NDArray[np.float64]:
    """(N, 2), both to be minimised: latency in ms as it is held against a bound, error in [0, 1]."""
    return np.array([(item.bound_ms, 1 - item.accuracy) for item in evaluated])


class _BoundedMating(Mating):  # type: ignore[misc]  # pymoo is untyped
    """Two-point crossover and polynomial mutation, without offspring that is out of bounds or was seen before.

    pymoo asks again for what is lacking, up to `max_tries` times; then random architectures take its place.
    """

    def __init__(self, problem: SearchProblem, *, seen: set[Row]) -> None:
        bounds = problem.bounds
        super().__init__(
            selection=TournamentSelection(
                func_comp=_BestUnderATarget(bounds.targets_ms or (bounds.max_ms,)), pressure=TOURNAMENT
            ),
            crossover=TwoPointCrossover(),
            mutation=PolynomialMutation(eta=MUTATION_ETA),
            eliminate_duplicates=DefaultDuplicateElimination(),
            n_max_iterations=problem.budget.max_tries,
        )
        self.problem = problem
        self.seen = seen

    def do(self, minimised: Problem, pop: Population, n_offsprings: int, **kwargs: Any) -> Population:
        offspring = super().do(minimised, pop, n_offsprings, **kwargs)
        if len(offspring) < n_offsprings:
            filling = random_genes(
                self.problem,
                rng=kwargs["random_state"],
                seen=self.seen.union(tuple(individual.X.tolist()) for individual in offspring),
            )
            missing = n_offsprings - len(offspring)
            offspring = Population.merge(offspring, Population.new("X", filling[:missing]))
        return offspring

    def _do(self, *args: Any, **kwargs: Any) -> Population:
        offspring = super()._do(*args, **kwargs)
        genes = np.around(offspring.get("X")).astype(int)
        offspring.set("X", genes)
        new = np.array([tuple(row) not in self.seen for row in genes.tolist()])
        return offspring[new & self.problem.feasible(genes)]


@dataclass(frozen=True)
class _BestUnderATarget:
    """Who wins a tournament: the best by nondomination rank, of equal rank by accuracy, of those fast enough.

    Each tournament is for one of the latency targets, drawn at random. Where nobody is fast enough, the fastest wins.
    """

    targets_ms: tuple[float, ...]

    def __call__(
        self, population: Population, tournaments: NDArray[np.int64], *, random_state: np.random.Generator, **_: Any
    ) -> NDArray[np.int64]:
        """Index (N, 1) of the winner of each tournament (N, TOURNAMENT) of indices into the population."""
        latencies_ms, errors = population.get("F")[tournaments].transpose(2, 0, 1)  # (N, TOURNAMENT) each
        target_ms = np.full((len(tournaments), 1), self.targets_ms[0])
        if len(self.targets_ms) > 1:
            target_ms = random_state.choice(self.targets_ms, size=(len(tournaments), 1))
        too_slow_ms = np.where(latencies_ms > target_ms, latencies_ms, 0.0)
        order = np.lexsort((errors, population.get("rank")[tournaments], too_slow_ms), axis=1)
        return np.take_along_axis(tournaments, order[:, :1], axis=1)
