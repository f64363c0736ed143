"""Predicting a network's latency from a table, with an interval: the same arithmetic in service and client."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Annotated, NamedTuple, Protocol

from pydantic import Field

from latency_contract.calibrations import Calibration, Terms
from latency_contract.canonical import Contract
from latency_contract.operators import Conv, Head, IBConv, Network
from latency_contract.student_t import quantile

CONFIDENCE = 0.95  # of an interval, where nobody asks for another one

Confidence = Annotated[float, Field(gt=0.5, le=0.999999)]


class OperatorLatency(Protocol):
    """What a table knows of an operator; no interval where nobody said how well it is known."""

    @property
    def latency_ms(self) -> float: ...

    @property
    def low_ms(self) -> float | None: ...

    @property
    def high_ms(self) -> float | None: ...

    @property
    def confidence(self) -> float | None: ...


class Prediction(Contract):
    """A network's latency by a table.

    Calibrated, another network of the space lies in the interval with this confidence, also when it is measured in
    another lease than those that calibrated. Otherwise the latency is the plain sum, and the interval says how well
    that is known, not how well a sum predicts a network; there is none where the table does not say how well it knows
    an operator.
    """

    latency_ms: float
    low_ms: float | None
    high_ms: float | None
    confidence: float | None
    calibrated: bool


class PredictionQuery(Contract):
    networks: Annotated[tuple[Network, ...], Field(min_length=1, max_length=1000)]
    confidence: Confidence = CONFIDENCE
    version: Annotated[int, Field(ge=1, lt=2**31)] | None = None  # of the table; None: the last


class Sum(NamedTuple):
    """Operators added up. The errors of different ones are independent; one that occurs twice is wrong twice."""

    terms: Terms
    below_ms: float | None  # standard deviations to either side
    above_ms: float | None


class Deviation(NamedTuple):
    """Standard deviations of one operator's latency, in ms."""

    below_ms: float
    above_ms: float


def deviation(known: OperatorLatency) -> Deviation | None:
    """As the operator's interval has it, taken for normal."""
    if known.low_ms is None or known.high_ms is None or known.confidence is None:
        return None
    widths = NormalDist().inv_cdf((1 + known.confidence) / 2)
    return Deviation((known.latency_ms - known.low_ms) / widths, (known.high_ms - known.latency_ms) / widths)


def activations_m(operator: Conv | IBConv | Head) -> float:
    """Millions of activations that an operator hands on."""
    return math.prod(operator.output_shape) / 1e6


def add_up(operators: Sequence[Conv | IBConv | Head], known: Mapping[str, OperatorLatency]) -> Sum:
    """`known` has every operator, by its id."""
    total_ms = sum(known[operator.id].latency_ms for operator in operators)
    terms = Terms(total_ms, len(operators), math.fsum(activations_m(operator) for operator in operators))
    below, above = 0.0, 0.0
    for subject_id, times in Counter(operator.id for operator in operators).items():
        one = deviation(known[subject_id])
        if one is None:
            return Sum(terms, None, None)
        below += (times * one.below_ms) ** 2
        above += (times * one.above_ms) ** 2
    return Sum(terms, math.sqrt(below), math.sqrt(above))


def predicted(added: Sum, calibration: Calibration | None, *, confidence: float = CONFIDENCE) -> Prediction:
    """The latency that a sum stands for, and an interval that is as wide to both sides as its confidence asks."""
    terms, below_ms, above_ms = added
    if below_ms is None or above_ms is None:
        return Prediction(latency_ms=terms.sum_ms, low_ms=None, high_ms=None, confidence=None, calibrated=False)
    if calibration is None:
        latency_ms = terms.sum_ms
        widths = NormalDist().inv_cdf((1 + confidence) / 2)
    else:
        latency_ms = calibration.latency_ms(terms)
        below_ms = above_ms = calibration.deviation_ms(terms, sum_deviation_ms=above_ms)
        widths = quantile((1 + confidence) / 2, degrees=calibration.degrees)
    return Prediction(
        latency_ms=latency_ms,
        low_ms=latency_ms - widths * below_ms,
        high_ms=latency_ms + widths * above_ms,
        confidence=confidence,
        calibrated=calibration is not None,
    )
