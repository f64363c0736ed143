"""Random search, the baseline that every search has to beat."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

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


def random_search(
    problem: SearchProblem,
    *,
    seed: int,
    known: Mapping[Architecture, float] = NOTHING_KNOWN,
    on_generation: Callable[[int, Sequence[Evaluated]], None],
) -> list[Evaluated]:
    """Distinct architectures within the bounds, as many as another search evaluates on this budget, in order.

    They are uniform draws wherever the bounds leave enough of those (see `initial_genes`). A generation here is
    only what is evaluated at once, so that a search can be resumed like any other.
    """
    rng = np.random.default_rng(seed)
    evaluated: list[Evaluated] = []
    seen: set[Row] = set()
    for generation in range(problem.budget.iterations + 1):
        genes = initial_genes(problem, rng=rng) if generation == 0 else random_genes(problem, rng=rng, seen=seen)
        if len(genes) == 0:  # everything within the bounds was evaluated
            break
        newest = evaluate_generation(problem, genes, generation=generation, known=known)
        seen.update(map(tuple, genes.tolist()))
        evaluated += newest
        on_generation(generation, newest)
    return evaluated
