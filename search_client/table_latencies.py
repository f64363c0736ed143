"""What a table says of a space and of an architecture in it, whatever kind of table it is."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from latency_contract.operators import Conv, Head, IBConv, Network
from latency_contract.tables import Table
from search_client.errors import IncompleteTable
from search_client.imported_tables import AnyTable, LinearModel, OperatorTable, describe, known_latency
from search_client.search_problem import AdditiveLatency
from search_client.spaces import Architecture, SearchSpace


class Prediction(NamedTuple):
    """A network's latency by a table, with the interval that the operators' own intervals leave it.

    It says how well the sum is known, not how well a sum predicts a network: for that, measure the network. There is
    none where the table does not say how well it knows an operator.
    """

    latency_ms: float
    low_ms: float | None
    high_ms: float | None


def additive_latency(space: SearchSpace, table: AnyTable) -> AdditiveLatency:
    """The table's numbers in the shape of the space. Identity takes no time, unless a linear model says otherwise.

    Raises:
        IncompleteTable: an operator of the space is not in the table, or a linear model is of another space.
    """
    if isinstance(table, LinearModel):
        _must_be_of(table, space)
        offsets = [
            np.array([known.coefficients_ms[choice] for choice in layer.choices])
            for known, layer in zip(table.layers, space.layers, strict=True)
        ]
        return AdditiveLatency(table.bias_ms, tuple(offsets))
    must_hold(table, space.operators())
    layers = []
    for index, layer in enumerate(space.layers):
        operators = [space.operator(index, choice) for choice in layer.choices]
        layers.append(np.array([0.0 if o is None else table.by_subject[o.id].latency_ms for o in operators]))
    fixed_ms = table.by_subject[space.stem.id].latency_ms + table.by_subject[space.head.id].latency_ms
    return AdditiveLatency(fixed_ms, tuple(layers))


def predict(network: Network, choices: Architecture, table: AnyTable) -> Prediction:
    """Latency of the network that these choices, one a layer, make in its space.

    From a table of operators it is their sum. The errors of different operators are independent, so their half-widths
    add up as squares; an operator that occurs twice is wrong in the same direction twice. A linear model goes by the
    choices.

    Raises:
        IncompleteTable: an operator of the network is not in the table, or a linear model is of another space.
    """
    if isinstance(table, LinearModel):
        return Prediction(_by_choices(network, choices, table), None, None)
    must_hold(table, network.operators)
    total_ms = sum(table.by_subject[operator.id].latency_ms for operator in network.operators)
    below, above = 0.0, 0.0
    for subject_id, times in Counter(operator.id for operator in network.operators).items():
        known = known_latency(table.by_subject[subject_id])
        if known.low_ms is None or known.high_ms is None:
            return Prediction(total_ms, None, None)
        below += (times * (known.latency_ms - known.low_ms)) ** 2
        above += (times * (known.high_ms - known.latency_ms)) ** 2
    return Prediction(total_ms, total_ms - math.sqrt(below), total_ms + math.sqrt(above))


def _by_choices(network: Network, choices: Architecture, table: LinearModel) -> float:
    offered = len(choices) == len(table.layers) and all(
        choice in layer.coefficients_ms for layer, choice in zip(table.layers, choices, strict=True)
    )
    if not offered or table.space.network(choices) != network:
        raise _another_space(table)
    return table.latency_ms(choices)


def _must_be_of(table: LinearModel, space: SearchSpace) -> None:
    own = table.space
    same = (space.stem, space.head, space.activation) == (own.stem, own.head, own.activation)
    same = same and [_shape(layer) for layer in space.layers] == [_shape(layer) for layer in own.layers]
    offered = same and all(
        set(layer.choices) <= set(known.choices) for layer, known in zip(space.layers, own.layers, strict=True)
    )
    if not offered:
        raise _another_space(table)


def _shape(layer: object) -> dict[str, object]:
    return {name: value for name, value in vars(layer).items() if name not in ("name", "choices")}


def _another_space(table: LinearModel) -> IncompleteTable:
    stem, head = table.stem, table.head
    return IncompleteTable(
        f"The {describe(table)} is a linear model: it knows architectures of the space '{table.space_name}' with an"
        f" input of {stem.height}x{stem.width} and {head.out_channels} classes, and nothing else."
        " Search or predict in that space, with images of so many classes, or use a table of operators."
    )


def must_hold(table: OperatorTable, operators: Sequence[Conv | IBConv | Head]) -> None:
    """Raises IncompleteTable with what is missing and what to do about it."""
    distinct = list(dict.fromkeys(operators))
    missing = [operator.key for operator in distinct if operator.id not in table.by_subject]
    if not missing:
        return
    named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    if isinstance(table, Table):
        advice = "Build it for this space with: padnas-client table build"
    else:
        advice = "Import a table that covers this space, or choose a space, input size and width that this one covers."
    raise IncompleteTable(
        f"The {describe(table)} does not hold {named} ({len(missing)} of {len(distinct)} operators). {advice}"
    )
