"""From the rounds of a measurement to a latency with a confidence interval.

Noise on a shared machine is one-sided: neighbours, interrupts and frequency changes make a block slower, never
faster. The latency of an operator is therefore the floor under its block medians, estimated by their minimum
(docs/decisions/0004).
"""

from collections.abc import Sequence
from typing import NamedTuple

MIN_ROUNDS = 4  # fewer leave no two spacings to estimate the scale from


class Estimate(NamedTuple):
    latency_ms: float
    low_ms: float
    high_ms: float

    @property
    def relative_half_width(self) -> float:
        return (self.high_ms - self.latency_ms) / self.latency_ms


def floor_estimate(round_medians_ms: Sequence[float], *, confidence: float) -> Estimate:
    """Minimum over rounds of the block median, with an interval from the spacing of the smaller half.

    Model: the excess of a round over the floor is exponential in its lower tail. Of n rounds only the k = ceil(n/2)
    smallest are used (type II censoring), so that a burst of load in the other half has no influence. With

        S = (sum_{i<=k} (x_i - x_1) + (n - k)(x_k - x_1)) / (k - 1)

    the pivot n (x_1 - floor) / S follows F(2, 2k - 2) (Epstein and Sobel, "Some theorems relevant to life testing
    from an exponential distribution", 1954), whose quantile has the closed form used here. The half-width
    h = F S / n bounds how far the floor lies below the minimum. It is applied on both sides, so that a repetition,
    whose minimum lies above or below this one by chance, falls into the interval too; the lower end stays above half
    the minimum.

    Raises:
        ValueError: fewer than four rounds, or a reading that is not a positive finite number.
    """
    ordered = sorted(round_medians_ms)
    n = len(ordered)
    if n < MIN_ROUNDS:
        raise ValueError(f"an interval needs at least {MIN_ROUNDS} rounds, got {n}")
    if not 0 < ordered[0] <= ordered[-1] < float("inf"):
        raise ValueError(f"readings must be positive and finite, got {ordered[0]} to {ordered[-1]} ms")
    k = -(-n // 2)
    smallest = ordered[0]
    excess = sum(value - smallest for value in ordered[:k]) + (n - k) * (ordered[k - 1] - smallest)
    scale = excess / (k - 1)
    quantile = (k - 1) * ((1 - confidence) ** (-1 / (k - 1)) - 1)  # F(2, 2k - 2) at `confidence`
    half_width = quantile * scale / n
    return Estimate(smallest, max(smallest - half_width, smallest / 2), smallest + half_width)
