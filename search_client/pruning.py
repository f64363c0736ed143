"""Operator pruning: how often the good architectures use each operator, and what they never use (Algorithm 1)."""

from collections.abc import Mapping, Sequence

from search_client.ces import nondomination_ranks
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace

OperatorDistribution = tuple[dict[str, float], ...]  # per layer: choice -> probability


def operator_distribution(
    space: SearchSpace, evaluated: Sequence[Evaluated], *, max_rank: int = 10
) -> OperatorDistribution:
    """Frequency of each operator per layer among the good architectures (lines 4-6 of Algorithm 1).

    Good are those of nondomination rank below `max_rank`, ranked among everything that a search evaluated (section
    3.2, Operation Pruning). An operator that none of them uses has probability 0; each layer sums to 1.
    """
    ranks = nondomination_ranks(evaluated)
    good = [item.architecture for item, rank in zip(evaluated, ranks, strict=True) if rank < max_rank]
    distribution = []
    for index, layer in enumerate(space.layers):
        used = [architecture[index] for architecture in good]
        distribution.append({choice: used.count(choice) / len(used) for choice in layer.choices})
    return tuple(distribution)


def prune(space: SearchSpace, distribution: Sequence[Mapping[str, float]], *, threshold: float = 0.01) -> SearchSpace:
    """The space without operators of probability `threshold` or less (line 7 of Algorithm 1, P_th).

    A layer whose operators are all that rare keeps the most frequent one, of equals the first.
    """
    kept = []
    for layer, probabilities in zip(space.layers, distribution, strict=True):
        frequent = [choice for choice in layer.choices if probabilities[choice] > threshold]
        kept.append(frequent or [max(layer.choices, key=lambda choice: probabilities[choice])])
    return space.restricted(kept)
