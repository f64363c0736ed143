"""Fences: how far from its own history a number may lie before something has changed."""

import math
from collections.abc import Sequence
from statistics import median, quantiles
from typing import NamedTuple

# Quartile ranges beyond the quartiles: Tukey's outer fence ("Exploratory Data Analysis", 1977, chapter 2). Of normally
# distributed numbers two in a million lie outside, and up to a quarter of the history may be anything on either side.
REACH = 3.0


class Fences(NamedTuple):
    """What is usual, and how far from it is still usual."""

    low: float
    middle: float
    high: float

    def outside(self, value: float) -> int:
        """-1 below, 1 above, 0 inside."""
        return (value > self.high) - (value < self.low)


def fences(history: Sequence[float], *, tolerance: float) -> Fences:
    """Fences around at least two positive numbers, by their logarithms, since what slows a device down multiplies.

    They follow from the history's own spread, but never come closer to its median than `tolerance` (0.02: two percent),
    below which a difference does not matter however quiet the history was.
    """
    logs = [math.log(value) for value in history]
    first, middle, third = quantiles(logs, n=4, method="inclusive")
    reach, least = REACH * (third - first), math.log1p(tolerance)
    return Fences(
        math.exp(min(first - reach, middle - least)),
        median(history),
        math.exp(max(third + reach, middle + least)),
    )


def tolerance_of(target: float) -> float:
    """Two faithful numbers of one latency, each within `target` of it, may lie twice as far apart."""
    return 2 * target
