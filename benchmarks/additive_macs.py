"""Multiply-accumulates in the place of latencies: for benchmarks of a search that should need no device."""

import numpy as np

from search_client.search_problem import AdditiveLatency
from search_client.spaces import SearchSpace


def additive_macs(space: SearchSpace) -> AdditiveLatency:
    """Millions of multiply-accumulates, where a search has milliseconds."""
    layers = [[space.operator(index, choice) for choice in layer.choices] for index, layer in enumerate(space.layers)]
    return AdditiveLatency(
        (space.stem.macs + space.head.macs) / 1e6,
        tuple(np.array([0.0 if one is None else one.macs / 1e6 for one in operators]) for operators in layers),
    )
