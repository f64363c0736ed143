"""From the rounds of a measurement to a latency with a confidence interval.

Noise on a shared machine is one-sided: neighbours, interrupts and frequency changes make a block slower, never
faster. The latency of an operator is therefore the floor under its blocks, estimated by their minimum; what stands for
a block, its median or a lower quantile, is in the protocol. Its
interval says where a repetition of the whole measurement may lie, from how two halves of its rounds differ
(docs/decisions/0020).
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import Annotated, NamedTuple

from pydantic import Field

from latency_contract.canonical import Contract

MIN_ROUNDS = 4  # fewer leave no two spacings to estimate the scale from
MIN_POOLED = 4  # subjects; from fewer it cannot be told how much they differ in spread
MAX_DEGREES = 1000.0  # of freedom; more change no quantile
CLOCK = 1e-6  # relative: a spread below that of the clock is none


class Estimate(NamedTuple):
    latency_ms: float
    low_ms: float
    high_ms: float

    @property
    def relative_half_width(self) -> float:
        return (self.high_ms - self.latency_ms) / self.latency_ms


class Spread(Contract):
    """How far two repetitions lie apart in the mean, relative to the latency, and how well that is known."""

    relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    degrees: Annotated[float, Field(ge=0, le=MAX_DEGREES)]  # of freedom; 0: nothing is known


UNKNOWN = Spread(relative=0, degrees=0)


def repetition_estimate(blocks_ms: Sequence[float], *, pooled: Spread, confidence: float) -> Estimate:
    """Minimum over rounds of what stands for a block; the interval holds that of a repetition with given confidence.

    Two floors under exponential lower tails differ by an exponential amount of mean s, and so do, nearly, two under
    softer tails. Where s is estimated with d degrees of freedom, the difference over s follows F(2, d), whose quantile
    has the closed form used here. The lower end stays above half the minimum.

    The subject's own spread is moderated by that of the others in its lease: with degrees d of its own and d0 of the
    pool, s = (d0 s0 + d s1) / (d0 + d), of d0 + d degrees (Smyth, "Linear models and empirical Bayes methods for
    assessing differential expression in microarray experiments", 2004, section 3).

    Raises:
        ValueError: fewer than four rounds, or a reading that is not a positive finite number.
    """
    own, smallest = half_spread(blocks_ms), min(blocks_ms)
    degrees = own.degrees + pooled.degrees
    spread = (own.degrees * own.relative + pooled.degrees * pooled.relative) / degrees
    quantile = degrees / 2 * ((1 - confidence) ** (-2 / degrees) - 1)  # F(2, degrees) at `confidence`
    half_width = quantile * spread * smallest
    return Estimate(smallest, max(smallest - half_width, smallest / 2), smallest + half_width)


def half_spread(blocks_ms: Sequence[float]) -> Spread:
    """Mean difference of the minima of two halves of the rounds, over all ways to halve them, over the minimum.

    It assumes no shape of the tail. Of n ordered rounds and halves of m, the spacing after the i-th counts where just
    one half reaches below it, which has the probability

        w_i = 2 (C(n - i, m) / C(n, m) - C(n - i, 2m) / C(n, 2m)).

    Degrees of freedom are those of the chi-squared distribution with the same mean and variance (Satterthwaite), the
    spacings taken to be those of an exponential tail, of means 1 / (n - i). The slowest rounds hardly matter, so that a
    burst of load in some of them does no harm.

    Raises:
        ValueError: as repetition_estimate.
    """
    ordered = _ordered(blocks_ms)
    n = len(ordered)
    m = n // 2
    one, both = math.comb(n, m), math.comb(n, 2 * m)
    weights = [2 * (math.comb(n - i, m) / one - math.comb(n - i, 2 * m) / both) for i in range(1, n)]
    difference_ms = sum(w * (ordered[i] - ordered[i - 1]) for i, w in enumerate(weights, start=1))
    means = [w / (n - i) for i, w in enumerate(weights, start=1)]
    degrees = 2 * sum(means) ** 2 / sum(mean**2 for mean in means)
    return Spread(relative=difference_ms / ordered[0], degrees=min(degrees, MAX_DEGREES))


def pooled_spread(spreads: Sequence[Spread]) -> Spread:
    """What the spreads of a lease's subjects say of any of them: the typical one, and how alike they are.

    Smyth 2004, section 6.2: s0 and d0 from mean and variance of the logarithms, whose own scatter is known from their
    degrees of freedom. Where the logarithms scatter no more than that, the subjects share one spread.
    """
    if len(spreads) < MIN_POOLED:
        return UNKNOWN
    halves = [spread.degrees / 2 for spread in spreads]
    logs = [
        math.log(max(spread.relative, CLOCK)) - _digamma(half) + math.log(half)
        for spread, half in zip(spreads, halves, strict=True)
    ]
    half = _inverse_trigamma(variance(logs) - fmean(map(_trigamma, halves)))
    relative = math.exp(fmean(logs) + _digamma(half) - math.log(half))
    return Spread(relative=relative, degrees=2 * half)


def floor_estimate(blocks_ms: Sequence[float], *, confidence: float) -> Estimate:
    """The interval of measurements taken before decision 20, kept so that theirs can be checked; it is too narrow.

    Minimum over n rounds; from the k = ceil(n/2) smallest, S = (sum_{i<=k} (x_i - x_1) + (n - k)(x_k - x_1)) / (k - 1),
    and n (x_1 - floor) / S follows F(2, 2k - 2) if the lower tail is exponential (Epstein and Sobel, 1954).

    Raises:
        ValueError: as repetition_estimate.
    """
    ordered = _ordered(blocks_ms)
    n = len(ordered)
    k = -(-n // 2)
    smallest = ordered[0]
    excess = sum(value - smallest for value in ordered[:k]) + (n - k) * (ordered[k - 1] - smallest)
    scale = excess / (k - 1)
    quantile = (k - 1) * ((1 - confidence) ** (-1 / (k - 1)) - 1)
    half_width = quantile * scale / n
    return Estimate(smallest, max(smallest - half_width, smallest / 2), smallest + half_width)


def _ordered(blocks_ms: Sequence[float]) -> list[float]:
    """Raises ValueError where they make no interval."""
    ordered = sorted(blocks_ms)
    if len(ordered) < MIN_ROUNDS:
        raise ValueError(f"an interval needs at least {MIN_ROUNDS} rounds, got {len(ordered)}")
    if not 0 < ordered[0] <= ordered[-1] < math.inf:
        raise ValueError(f"readings must be positive and finite, got {ordered[0]} to {ordered[-1]} ms")
    return ordered


def _inverse_trigamma(value: float) -> float:
    """Between a tiny number and MAX_DEGREES / 2, which also stands for all values that are reached later or never."""
    low, high = 1e-3, MAX_DEGREES / 2
    if value <= _trigamma(high):
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _trigamma(middle) > value else (low, middle)
    return low


def _digamma(x: float) -> float:
    """Recurrence up to 10, then the asymptotic series (Abramowitz and Stegun 6.3.5 and 6.3.18)."""
    result = 0.0
    while x < 10:
        result -= 1 / x
        x += 1
    return result + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


def _trigamma(x: float) -> float:
    """Likewise (6.4.6 and 6.4.12)."""
    result = 0.0
    while x < 10:
        result += 1 / x**2
        x += 1
    return result + 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3) - 1 / (30 * x**5) + 1 / (42 * x**7)
