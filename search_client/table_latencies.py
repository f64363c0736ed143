"""What a table says of a space and of an architecture in it, whatever kind of table it is."""

from collections.abc import Sequence

import numpy as np

from latency_contract.calibrations import Calibration, Terms
from latency_contract.comparisons import KnownLatency
from latency_contract.operators import Conv, Head, IBConv, Network
from latency_contract.predictions import CONFIDENCE, Prediction, activations_m, add_up, predicted
from latency_contract.tables import Table
from search_client.errors import IncompleteTable
from search_client.imported_tables import (
    AnyTable,
    LinearModel,
    OperatorTable,
    describe,
    known_latency,
)
from search_client.latency_spread import spread_in
from search_client.search_problem import AdditiveLatency
from search_client.spaces import Architecture, SearchSpace


def additive_latency(space: SearchSpace, table: AnyTable, *, confidence: float | None = None) -> AdditiveLatency:
    """The table's numbers in the shape of the space, calibrated where the table is calibrated for it.

    Identity takes no time, unless a linear model says otherwise. With `confidence`, an architecture is within an upper
    bound when its latency is with this probability.

    Raises:
        IncompleteTable: an operator of the space is not in the table, or a linear model is of another space; or there
            is a confidence, and the table does not say how well it knows its latencies.
    """
    if isinstance(table, LinearModel):
        _must_be_of(table, space)
        _must_be_known(table, confidence=confidence, known=False)
        offsets = [
            np.array([known.coefficients_ms[choice] for choice in layer.choices])
            for known, layer in zip(table.layers, space.layers, strict=True)
        ]
        return AdditiveLatency(table.bias_ms, tuple(offsets))
    operators = space.operators()
    must_hold(table, operators)
    calibration = calibration_for(operators, table)
    spread = spread_in(space, _known(operators, table), calibration)
    _must_be_known(table, confidence=confidence, known=spread is not None)

    def share_ms(operator: Conv | IBConv | Head | None) -> float:
        """What an operator adds to the latency of a network."""
        if operator is None:
            return 0.0
        latency_ms = table.by_subject[operator.id].latency_ms
        if calibration is None:
            return latency_ms
        return calibration.latency_ms(Terms(latency_ms, 1, activations_m(operator))) - calibration.coefficients[0]

    layers = [
        np.array([share_ms(space.operator(index, choice)) for choice in layer.choices])
        for index, layer in enumerate(space.layers)
    ]
    fixed_ms = share_ms(space.stem) + share_ms(space.head) + (calibration.coefficients[0] if calibration else 0.0)
    return AdditiveLatency(fixed_ms, tuple(layers), spread, confidence)


def predict(network: Network, choices: Architecture, table: AnyTable, *, confidence: float = CONFIDENCE) -> Prediction:
    """Latency of the network that these choices, one a layer, make in its space.

    From a table of operators it is their sum, or what a calibration makes of it. A linear model goes by the choices.

    Raises:
        IncompleteTable: an operator of the network is not in the table, or a linear model is of another space.
    """
    if isinstance(table, LinearModel):
        latency_ms = _by_choices(network, choices, table)
        return Prediction(latency_ms=latency_ms, low_ms=None, high_ms=None, confidence=None, calibrated=False)
    must_hold(table, network.operators)
    added = add_up(network.operators, _known(network.operators, table))
    return predicted(added, calibration_for(network.operators, table), confidence=confidence)


def calibration_for(operators: Sequence[Conv | IBConv | Head], table: AnyTable) -> Calibration | None:
    """What networks of these operators are calibrated by; None where they are not."""
    return table.calibration_for(operators) if isinstance(table, Table) else None


def calibrated_for(operators: Sequence[Conv | IBConv | Head], table: AnyTable) -> AnyTable:
    """The table with nothing but what networks of these operators are calibrated by.

    Another calibration may hold for some of the operators alone: networks of these would be predicted by that one.
    """
    if not isinstance(table, Table):
        return table
    calibration = table.calibration_for(operators)
    return table.with_calibrations(() if calibration is None else (calibration,))


def _known(operators: Sequence[Conv | IBConv | Head], table: OperatorTable) -> dict[str, KnownLatency]:
    return {operator.id: known_latency(table.by_subject[operator.id]) for operator in operators}


def _must_be_known(table: AnyTable, *, confidence: float | None, known: bool) -> None:
    if confidence is not None and not known:
        raise IncompleteTable(
            f"The {describe(table)} does not say how well it knows its latencies, so no bound holds with a probability"
            " by it. Leave out --latency-confidence, or use a table with intervals."
        )


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
        advice = "Build it for this space, input size, width and classes with: padnas-client table build"
    else:
        advice = "Import a table that covers this space, or choose a space, input size and width that this one covers."
    raise IncompleteTable(
        f"The {describe(table)} does not hold {named} ({len(missing)} of {len(distinct)} operators). {advice}"
    )
