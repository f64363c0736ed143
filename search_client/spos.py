"""The evolution of SPOS (Guo et al. 2020), a baseline: only accuracy counts, and what is poor is discarded."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search_client.oracle import AccuracyOracle
from search_client.search_problem import (
    AdditiveLatency,
    Evaluated,
    Genes,
    LatencyBounds,
    Row,
    SearchBudget,
    evaluate_generation,
    initial_genes,
    new_genes,
    random_genes,
)
from search_client.spaces import Architecture, SearchSpace

MUTATION_PROBABILITY = 0.1  # of each layer of a mutant; a choice that is drawn anew may be the old one
PARENTS_SHARE = 5  # one architecture in five is a parent: 10 of 50 in SPOS


def spos_evolution(
    space: SearchSpace,
    *,
    latency: AdditiveLatency,
    oracle: AccuracyOracle,
    bounds: LatencyBounds,
    budget: SearchBudget,
    seed: int,
    known: Mapping[Architecture, float] | None = None,
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
    seen: set[Row] = set()
    genes = initial_genes(space, latency=latency, bounds=bounds, budget=budget, rng=rng)
    for generation in range(budget.iterations + 1):
        newest = evaluate_generation(
            space, genes, generation=generation, latency=latency, oracle=oracle, known=known or {}
        )
        rows += map(tuple, genes.tolist())
        seen.update(rows)
        evaluated += newest
        on_generation(generation, newest)
        best = sorted(range(len(evaluated)), key=lambda index: -evaluated[index].accuracy)  # of equals the first found
        parents = np.array([rows[index] for index in best[: max(2, budget.population // PARENTS_SHARE)]])
        mutants = new_genes(
            _mutants(space, parents, count=budget.population * budget.max_tries, rng=rng),
            latency=latency,
            bounds=bounds,
            seen=seen,
        )[: budget.population // 2]
        crossed = new_genes(
            _crossovers(parents, count=budget.population * budget.max_tries, rng=rng),
            latency=latency,
            bounds=bounds,
            seen=seen.union(map(tuple, mutants.tolist())),
        )[: budget.population // 2]
        offspring = np.concatenate([mutants, crossed])
        filling = random_genes(
            space,
            latency=latency,
            bounds=bounds,
            budget=budget,
            rng=rng,
            seen=seen.union(map(tuple, offspring.tolist())),
        )
        genes = np.concatenate([offspring, filling])[: budget.population]
        if len(genes) == 0:  # everything within the bounds was evaluated
            break
    return evaluated


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
