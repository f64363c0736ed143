"""Random search, the baseline that every search has to beat."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search_client.oracle import AccuracyOracle
from search_client.search_problem import (
    AdditiveLatency,
    Evaluated,
    LatencyBounds,
    Row,
    SearchBudget,
    evaluate_generation,
    initial_genes,
    random_genes,
)
from search_client.spaces import Architecture, SearchSpace


def random_search(
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
    """Distinct architectures within the bounds, as many as another search evaluates on this budget, in order.

    They are uniform draws wherever the bounds leave enough of those (see `initial_genes`). A generation here is
    only what is evaluated at once, so that a search can be resumed like any other.
    """
    rng = np.random.default_rng(seed)
    evaluated: list[Evaluated] = []
    seen: set[Row] = set()
    genes = initial_genes(space, latency=latency, bounds=bounds, budget=budget, rng=rng)
    for generation in range(budget.iterations + 1):
        newest = evaluate_generation(
            space, genes, generation=generation, latency=latency, oracle=oracle, known=known or {}
        )
        seen.update(map(tuple, genes.tolist()))
        evaluated += newest
        on_generation(generation, newest)
        genes = random_genes(space, latency=latency, bounds=bounds, budget=budget, rng=rng, seen=seen)
        if len(genes) == 0:  # everything within the bounds was evaluated
            break
    return evaluated
