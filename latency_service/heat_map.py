"""A table as people look at it: one line a layer, one column an operator that could be there, the slower the stronger.

A table knows operators, not the space that they come from. Operators of equal input, output, stride and activation can
take each other's place in a network, so they share a line.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from latency_contract.operators import Conv, Head, IBConv
from latency_contract.tables import TableEntry

BANDS = 9  # of equal ratio, from the fastest operator of the table to the slowest


class Cell(NamedTuple):
    entry: TableEntry
    band: int  # 0 fastest, BANDS - 1 slowest
    half_width_pct: float


class Line(NamedTuple):
    """A layer: its operators by column; None where nothing was measured."""

    layer: str
    cells: tuple[Cell | None, ...]


class HeatMap(NamedTuple):
    columns: tuple[str, ...]
    lines: tuple[Line, ...]  # from the input of a network to its output
    ends: tuple[tuple[str, Cell], ...]  # convolutions and heads
    fastest_ms: float
    slowest_ms: float

    def limit_ms(self, band: int) -> float:
        """Where a band begins; that of BANDS is where the last one ends."""
        return self.fastest_ms * math.pow(self.slowest_ms / self.fastest_ms, band / BANDS)


def heat_map(entries: Iterable[TableEntry]) -> HeatMap:
    """Raises ValueError where there are no entries; a published table has one at least."""
    listed = list(entries)
    if not listed:
        raise ValueError("a table without entries has no heat map")
    fastest, slowest = min(e.latency_ms for e in listed), max(e.latency_ms for e in listed)
    layers: dict[tuple[int, ...], dict[tuple[int, ...], Cell]] = {}
    names: dict[tuple[int, ...], str] = {}
    operators = [entry.operator for entry in listed]
    several_activations = len({operator.activation for operator in operators}) > 1
    ends = []
    for entry in listed:
        cell = Cell(
            entry,
            _band(entry.latency_ms, fastest, slowest),
            100 * (entry.high_ms - entry.low_ms) / 2 / entry.latency_ms,
        )
        operator = entry.operator
        if not isinstance(operator, IBConv):
            ends.append((_end(operator, with_activation=several_activations), cell))
            continue
        activation = list(type(operator.activation)).index(operator.activation)
        where = (-operator.height, -operator.width, operator.in_channels, operator.out_channels, operator.stride)
        layer = (*where, activation, operator.residual)
        names[layer] = _layer(operator, with_activation=several_activations)
        layers.setdefault(layer, {})[_choice(operator)] = cell
    columns = sorted({choice for cells in layers.values() for choice in cells})
    return HeatMap(
        tuple(f"K{kernel} E{expansion}{' SE' if squeeze else ''}" for squeeze, kernel, expansion in columns),
        tuple(Line(names[layer], tuple(layers[layer].get(c) for c in columns)) for layer in sorted(layers)),
        tuple(sorted(ends, key=lambda end: -end[1].entry.operator.height)),
        fastest,
        slowest,
    )


def _band(latency_ms: float, fastest_ms: float, slowest_ms: float) -> int:
    if slowest_ms == fastest_ms:
        return 0
    return min(int(BANDS * math.log(latency_ms / fastest_ms) / math.log(slowest_ms / fastest_ms)), BANDS - 1)


def _choice(operator: IBConv) -> tuple[int, int, int]:
    return (int(operator.squeeze_excite), operator.kernel, operator.expansion)


def _layer(operator: IBConv, *, with_activation: bool) -> str:
    shape = f"{operator.height}×{operator.width}, {operator.in_channels}→{operator.out_channels}"
    marks = [f"stride {operator.stride}"] if operator.stride != 1 else []
    marks += ["residual"] if operator.residual else []
    marks += [operator.activation] if with_activation else []
    return ", ".join([shape, *marks])


def _end(operator: Conv | Head, *, with_activation: bool) -> str:
    size, activation = f"{operator.height}×{operator.width}", f", {operator.activation}" if with_activation else ""
    if isinstance(operator, Head):
        channels = f"{operator.in_channels}→{operator.hidden_channels}→{operator.out_channels}"
        return f"Head {size}, {channels}{activation}"
    channels = f"{operator.in_channels}→{operator.out_channels}"
    return f"Conv K{operator.kernel} {size}, {channels}, stride {operator.stride}{activation}"
