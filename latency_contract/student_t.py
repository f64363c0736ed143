"""Student's t distribution, in plain arithmetic: intervals are the same wherever they are computed."""

import math


def probability_within(t: float, *, degrees: int) -> float:
    """P(|T| <= t) with a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs a degree of freedom at least, got {degrees}")
    theta = math.atan2(abs(t), math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= math.cos(theta) ** 2 * power / (power + 1)
    share = math.sin(theta) * total
    return (2 / math.pi) * (theta + share) if odd else share


def quantile(probability: float, *, degrees: int) -> float:
    """The t with P(T <= t) = probability, for a probability above one half.

    Raises:
        ValueError: a probability that is not above one half and below one, or too few degrees of freedom.
    """
    if not 0.5 < probability < 1:
        raise ValueError(f"a probability above 0.5 and below 1 is needed, got {probability}")
    low, high = 0.0, 1.0
    while probability_within(high, degrees=degrees) < 2 * probability - 1:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        if probability_within(middle, degrees=degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high
