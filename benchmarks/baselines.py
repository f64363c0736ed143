"""Searches that the product does not offer, to compare it with; called like any `SearchAlgorithm`."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem

from search_client.search_problem import (
    NOTHING_KNOWN,
    Evaluated,
    Row,
    SearchProblem,
    evaluate_generation,
    initial_genes,
)
from search_client.spaces import Architecture

SAMPLE_SHARE = 4  # a tournament is a quarter of the population: 25 of 100 in Real et al. 2019
PATIENCE = 3  # times its share of generations that plain NSGA-II may take to find new architectures


def regularised_evolution(
    problem: SearchProblem,
    *,
    seed: int,
    known: Mapping[Architecture, float] = NOTHING_KNOWN,
    on_generation: Callable[[int, Sequence[Evaluated]], None],
) -> list[Evaluated]:
    """Real et al. 2019: the best of a random sample has a child with one choice changed; the oldest dies.

    A child that is out of bounds is drawn again. One that was evaluated before joins the population at no cost.
    """
    rng = np.random.default_rng(seed)
    space, budget = problem.space, problem.budget
    wanted = budget.population * (budget.iterations + 1)
    genes = initial_genes(problem, rng=rng)
    evaluated = evaluate_generation(problem, genes, generation=0, known=known)
    accuracy: dict[Row, float] = {
        tuple(row): item.accuracy for row, item in zip(genes.tolist(), evaluated, strict=True)
    }
    on_generation(0, evaluated)
    living = deque(accuracy)
    for _ in range(wanted * budget.max_tries):
        if len(evaluated) >= wanted:
            break
        sample = rng.choice(len(living), size=max(2, len(living) // SAMPLE_SHARE), replace=False)
        parent: Row = max((living[place] for place in sample), key=accuracy.__getitem__)
        child = list(parent)
        layer = int(rng.integers(len(child)))
        others = [gene for gene in range(len(space.layers[layer].choices)) if gene != child[layer]]
        child[layer] = int(rng.choice(others or [child[layer]]))
        gene = np.array([child])
        if not problem.feasible(gene)[0]:
            continue
        row = tuple(child)
        if row not in accuracy:
            generation = len(evaluated) // budget.population
            newest = evaluate_generation(problem, gene, generation=generation, known=known)
            accuracy[row] = newest[0].accuracy
            evaluated += newest
            on_generation(generation, newest)
        living.append(row)
        living.popleft()
    return evaluated


def nsga2(
    problem: SearchProblem,
    *,
    seed: int,
    known: Mapping[Architecture, float] = NOTHING_KNOWN,
    on_generation: Callable[[int, Sequence[Evaluated]], None],
) -> list[Evaluated]:
    """NSGA-II as pymoo has it: simulated binary crossover and polynomial mutation, rounded; bounds as constraints.

    What is out of bounds costs it nothing: pymoo ranks that by its violation, so its accuracy is never asked for.
    """
    bounds, budget = problem.bounds, problem.budget
    highest = np.array([len(layer.choices) - 1 for layer in problem.space.layers])
    minimised = Problem(n_var=len(highest), n_obj=2, n_ieq_constr=2, xl=np.zeros_like(highest), xu=highest, vtype=int)
    algorithm = NSGA2(
        pop_size=budget.population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(eta=15, prob=0.9, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=20, vtype=float, repair=RoundingRepair()),
        output=None,
    )
    algorithm.setup(minimised, seed=seed, termination=NoTermination())
    wanted = budget.population * (budget.iterations + 1)
    evaluated: list[Evaluated] = []
    accuracy: dict[Row, float] = {}
    for generation in range(PATIENCE * (budget.iterations + 1)):
        offspring = algorithm.ask()
        if offspring is None or len(evaluated) >= wanted:
            break
        genes = offspring.get("X").astype(int)
        latency_ms = problem.latency.of(genes)
        rows = [tuple(row) for row in genes.tolist()]
        within = problem.feasible(genes)
        new = [index for index, row in enumerate(rows) if within[index] and row not in accuracy]
        if new:
            newest = evaluate_generation(problem, genes[new], generation=generation, known=known)
            accuracy |= {rows[index]: item.accuracy for index, item in zip(new, newest, strict=True)}
            evaluated += newest
            on_generation(generation, newest)
        errors = np.array([1 - accuracy.get(row, 0.0) for row in rows])
        violations = np.stack([bounds.min_ms - latency_ms, latency_ms - bounds.max_ms], axis=1)
        values = StaticProblem(minimised, F=np.stack([latency_ms, errors], axis=1), G=violations)
        algorithm.evaluator.eval(values, offspring)
        algorithm.tell(infills=offspring)
    return evaluated[:wanted]
