"""Latencies of two tables side by side, operator by operator: ratios with intervals, and which of them are significant.

What is compared are latencies with the intervals that are stated for them. Significance is as good as those: an
interval that sees less than a repetition would differ by makes differences look more certain than they are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from latency_contract.tables import Latency

CONFIDENCE = 0.95  # of the interval of a ratio
FALSE_DISCOVERIES = 0.05  # share of what is called significant that may be chance
NORMAL = NormalDist()


class KnownLatency(NamedTuple):
    """What any table of operators knows of one; without an interval where nobody said how well it is known."""

    latency_ms: float
    low_ms: float | None
    high_ms: float | None
    confidence: float | None
    holds_repetition: bool = False  # the interval holds another measurement, and not only the true latency

    @classmethod
    def of_measured(cls, one: Latency) -> "KnownLatency":
        """What a measurement here knows (docs/decisions/0020)."""
        return cls(one.latency_ms, one.low_ms, one.high_ms, one.confidence, holds_repetition=True)


class Ratio(NamedTuple):
    """B over A."""

    value: float
    low: float | None  # None where a table does not say how well it knows the latency
    high: float | None
    p_value: float | None  # of there being no difference, alone


@dataclass(frozen=True)
class Compared:
    """One operator that both tables hold."""

    key: str
    first: KnownLatency
    second: KnownLatency
    ratio: Ratio
    adjusted_p: float | None  # among all operators that have one

    @property
    def significant(self) -> bool:
        return self.adjusted_p is not None and self.adjusted_p <= FALSE_DISCOVERIES


def compare_latencies(first: Mapping[str, KnownLatency], second: Mapping[str, KnownLatency]) -> tuple[Compared, ...]:
    """What both know, by key; what differs most first.

    p-values are corrected for their number by Benjamini and Hochberg's procedure ("Controlling the false discovery
    rate", 1995): of the operators that are called significant, about FALSE_DISCOVERIES are so by chance. It holds where
    tests are independent or depend positively on each other, as those of a device that was slower as a whole.
    """
    keys = [key for key in first if key in second]
    ratios = [ratio(first[key], second[key]) for key in keys]
    adjusted = adjusted_p_values([one.p_value for one in ratios])
    operators = [
        Compared(key, first[key], second[key], one, p) for key, one, p in zip(keys, ratios, adjusted, strict=True)
    ]
    return tuple(sorted(operators, key=lambda one: (-abs(math.log(one.ratio.value)), one.key)))


def ratio(first: KnownLatency, second: KnownLatency) -> Ratio:
    """Second over first, with an interval from their two intervals.

    On logarithms, where a ratio is a difference. The distance from an estimate to either end of its interval, divided
    by the normal quantile of its confidence, is its standard error on that side, or √2 times that where the interval
    holds a repetition (docs/decisions/0020), since two measurements differ by the errors of both. The two that make the
    ratio larger add up as squares, and so do the two that make it smaller (MOVER: Donner and Zou, "Closed-form
    confidence intervals for functions of the normal mean and standard deviation", 2012). The p-value is that of the
    side on which 1 lies.
    """
    value = second.latency_ms / first.latency_ms
    below, above = _log_errors(first), _log_errors(second)
    if below is None or above is None:
        return Ratio(value, None, None, None)
    lower_error, upper_error = math.hypot(above[0], below[1]), math.hypot(above[1], below[0])
    quantile = NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    distance = abs(math.log(value))
    error = lower_error if value > 1 else upper_error
    # Twice the normal distribution's upper tail, as exact far out as near.
    p_value = math.erfc(distance / error / math.sqrt(2)) if error > 0 else float(distance == 0)
    return Ratio(value, value * math.exp(-quantile * lower_error), value * math.exp(quantile * upper_error), p_value)


def adjusted_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """By Benjamini and Hochberg: of n, the k-th smallest times n / k, but none above that of a larger p-value."""
    adjusted: list[float | None] = [None] * len(p_values)
    present = sorted(((p, index) for index, p in enumerate(p_values) if p is not None), reverse=True)
    smallest = 1.0
    for rank, (p, index) in zip(range(len(present), 0, -1), present, strict=True):
        smallest = min(smallest, p * len(present) / rank)
        adjusted[index] = smallest
    return adjusted


def _log_errors(known: KnownLatency) -> tuple[float, float] | None:
    """Standard errors of the logarithm, downwards and upwards; None where there is no interval."""
    if known.low_ms is None or known.high_ms is None or known.confidence is None:
        return None
    quantile = NORMAL.inv_cdf((1 + known.confidence) / 2) * (math.sqrt(2) if known.holds_repetition else 1)
    return math.log(known.latency_ms / known.low_ms) / quantile, math.log(known.high_ms / known.latency_ms) / quantile
