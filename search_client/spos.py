"""The evolution of SPOS (Guo et al. 2020), a baseline: only accuracy counts, and what is poor is discarded."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search_client.search_problem import (
    NOTHING_KNOWN,
    Evaluated,
    Genes,
    Row,
    SearchProblem,
    evaluate_generation,
    initial_genes,
    new_genes,
    random_genes,
)
from search_client.spaces import Architecture, SearchSpace

MUTATION_PROBABILITY = 0.1  # of each layer of a mutant; a choice that is drawn anew may be the old one
PARENTS_SHARE = 5  # one architecture in five is a parent: 10 of 50 in SPOS


def spos_evolution(
    problem: SearchProblem,
    *,
    seed: int,
    known: Mapping[Architecture, float] = NOTHING_KNOWN,
    on_generation: Callable[[int, Sequence[Evaluated]], None],
) -> list[Evaluated]:
    """Every architecture that the search evaluated, in order.

    The parents are the most accurate of all that was evaluated. Half of a generation are their mutants, half their
    uniform crossovers; where too few of these are new and within the bounds, random architectures fill it up. SPOS
    itself uses a population of 50 and 20 generations.
    """
    rng = np.random.default_rng(seed)
    evaluated: list[Evaluated] = []
    rows: list[Row] = []  # the genes of what was evaluated
    for generation in range(problem.budget.iterations + 1):
        if generation == 0:
            genes = initial_genes(problem, rng=rng)
        else:
            best = sorted(range(len(evaluated)), key=lambda index: -evaluated[index].accuracy)  # of equals the first
            parents = np.array([rows[index] for index in best[: max(2, problem.budget.population // PARENTS_SHARE)]])
            genes = _offspring(problem, parents, seen=set(rows), rng=rng)
        if len(genes) == 0:  # everything within the bounds was evaluated
            break
        newest = evaluate_generation(problem, genes, generation=generation, known=known)
        rows += map(tuple, genes.tolist())
        evaluated += newest
        on_generation(generation, newest)
    return evaluated


def _offspring(problem: SearchProblem, parents: Genes, *, seen: set[Row], rng: np.random.Generator) -> Genes:
    """Genes (N, layers), N <= population: half mutants, half crossovers, and random ones for those that are lacking."""
    budget = problem.budget
    tries, half = budget.population * budget.max_tries, budget.population // 2
    mutants = new_genes(problem, _mutants(problem.space, parents, count=tries, rng=rng), seen=seen)[:half]
    seen = seen.union(map(tuple, mutants.tolist()))
    crossed = new_genes(problem, _crossovers(parents, count=tries, rng=rng), seen=seen)[:half]
    filling = random_genes(problem, rng=rng, seen=seen.union(map(tuple, crossed.tolist())))
    return np.concatenate([mutants, crossed, filling])[: budget.population]


def _mutants(space: SearchSpace, parents: Genes, *, count: int, rng: np.random.Generator) -> Genes:
    """Genes (count, layers) of random parents, in which some layers were drawn anew."""
    choices = [len(layer.choices) for layer in space.layers]
    chosen = parents[rng.integers(len(parents), size=count)]
    drawn = rng.integers(choices, size=chosen.shape)
    return np.where(rng.random(chosen.shape) < MUTATION_PROBABILITY, drawn, chosen)


def _crossovers(parents: Genes, *, count: int, rng: np.random.Generator) -> Genes:
    """Genes (count, layers), each layer from one or the other of two random parents."""
    one, other = parents[rng.integers(len(parents), size=(2, count))]
    crossed: Genes = np.where(rng.random(one.shape) < 0.5, one, other)
    return crossed
