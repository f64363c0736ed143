"""How far latencies may lie from what a table predicts, for whole populations at once.

The same as latency_contract/predictions.py says of one network, as arrays: a search asks it of thousands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from latency_contract.calibrations import BEYOND_THE_SUM, Calibration, Terms
from latency_contract.predictions import OperatorLatency, activations_m, deviation
from latency_contract.student_t import quantile
from search_client.spaces import SearchSpace

Genes = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LatencySpread:
    """Standard deviations of predictions, and how many of them a probability asks for."""

    fixed: NDArray[np.int64]  # index of each operator that every architecture has
    layers: tuple[NDArray[np.int64], ...]  # per layer, of each choice; the last index stands for no operator
    below_ms: Floats  # (operators + 1,) standard deviations to either side, 0 for no operator
    above_ms: Floats
    terms: Floats  # (operators + 1, 3): what each adds to the Terms of a network; 0 for no operator
    calibration: Calibration | None

    def deviations(self, genes: Genes) -> tuple[Floats, Floats]:
        """Milliseconds (N,) below and above the prediction, of genes (N, layers)."""
        counts = self._counts(genes)
        squares = counts**2  # an operator that occurs twice is wrong twice in the same direction
        below_ms, above_ms = np.sqrt(squares @ self.below_ms**2), np.sqrt(squares @ self.above_ms**2)
        if self.calibration is None:
            return below_ms, above_ms
        fit, terms = self.calibration.fit, counts @ self.terms  # (N, 3)
        columns = [np.ones(len(genes)), terms[:, 0]]
        columns += [terms[:, Terms._fields.index(name)] for name in BEYOND_THE_SUM[fit.form]]
        values = np.stack(columns, axis=1)  # (N, coefficients)
        of_coefficients = np.einsum("ni,ij,nj->n", values, np.array(fit.inverse), values)
        beyond_ms2 = np.maximum(0.0, above_ms**2 - self.calibration.sum_variance * terms[:, 0] ** 2)
        variance = fit.spread**2 * (terms[:, 0] ** 2 + of_coefficients) + fit.coefficients[1] ** 2 * beyond_ms2
        variance += self.calibration.common_variance * terms[:, 0] ** 2
        return np.sqrt(variance), np.sqrt(variance)

    def widths(self, probability: float) -> float:
        """Standard deviations below which the latency stays with a probability above one half."""
        if self.calibration is None:
            return NormalDist().inv_cdf(probability)
        return quantile(probability, degrees=self.calibration.degrees)

    def _counts(self, genes: Genes) -> Floats:
        """(N, operators + 1): how often each architecture has each operator."""
        counts = np.zeros((len(genes), len(self.below_ms)))
        counts[:] = np.bincount(self.fixed, minlength=len(self.below_ms))
        rows = np.arange(len(genes))
        for choices, gene in zip(self.layers, genes.T, strict=True):
            counts[rows, choices[gene]] += 1
        return counts


def spread_in(
    space: SearchSpace, known: Mapping[str, OperatorLatency], calibration: Calibration | None
) -> LatencySpread | None:
    """Of the architectures of a space; None where somebody did not say how well an operator is known."""
    operators = space.operators()
    deviations = [deviation(known[operator.id]) for operator in operators]
    certain = [one for one in deviations if one is not None]
    if len(certain) < len(operators):
        return None
    index = {operator.id: place for place, operator in enumerate(operators)}
    absent = len(operators)
    layers = []
    for number, layer in enumerate(space.layers):
        chosen = [space.operator(number, choice) for choice in layer.choices]
        layers.append(np.array([absent if operator is None else index[operator.id] for operator in chosen]))
    terms = [Terms(known[operator.id].latency_ms, 1, activations_m(operator)) for operator in operators]
    return LatencySpread(
        fixed=np.array([index[space.stem.id], index[space.head.id]]),
        layers=tuple(layers),
        below_ms=np.array([*(one.below_ms for one in certain), 0.0]),
        above_ms=np.array([*(one.above_ms for one in certain), 0.0]),
        terms=np.array([*terms, Terms(0.0, 0, 0.0)]),
        calibration=calibration,
    )
