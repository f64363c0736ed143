"""Searching while measuring: which operators are worth a second measurement before the next stage.

Those whose interval leaves most in doubt about the architectures that lie nearest to the latency bound: there a number
that is a little wrong decides whether a network is searched at all (docs/decisions/0024).
"""

from collections import Counter
from collections.abc import Collection, Sequence

from latency_contract.operators import Conv, Head, IBConv
from search_client.imported_tables import OperatorTable, known_latency
from search_client.search_problem import Evaluated, LatencyBounds
from search_client.spaces import SearchSpace


def most_uncertain(
    evaluated: Sequence[Evaluated],
    space: SearchSpace,
    table: OperatorTable,
    *,
    bounds: LatencyBounds,
    kept: Collection[Conv | IBConv | Head],
    near: int,
    count: int,
) -> list[Conv | IBConv | Head]:
    """At most `count` of the operators in `kept`, the one that leaves most in doubt first.

    An operator's doubt is the width of its interval, once for each time that it occurs in the `near` evaluated
    architectures whose latency lies nearest to the upper bound, or to a target where there are any. One without an
    interval, or in none of these, is not named.

    Args:
        space: that the architectures are of.
    """
    edges_ms = bounds.targets_ms or (bounds.max_ms,)
    nearest = sorted(
        evaluated, key=lambda item: (min(abs(item.latency_ms - edge_ms) for edge_ms in edges_ms), item.architecture)
    )
    times = Counter(operator for item in nearest[:near] for operator in space.network(item.architecture).operators)
    doubt_ms = {operator: times[operator] * _width_ms(table, operator) for operator in dict.fromkeys(kept)}
    in_doubt = [operator for operator in doubt_ms if doubt_ms[operator] > 0]
    return sorted(in_doubt, key=lambda operator: (-doubt_ms[operator], operator.key))[:count]


def _width_ms(table: OperatorTable, operator: Conv | IBConv | Head) -> float:
    known = known_latency(table.by_subject[operator.id])
    return 0.0 if known.low_ms is None or known.high_ms is None else known.high_ms - known.low_ms
