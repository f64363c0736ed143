import math
import random
from collections.abc import Callable
from itertools import combinations
from statistics import variance

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, polygamma
from scipy.stats import f

from latency_contract.estimators import (
    MAX_DEGREES,
    UNKNOWN,
    Spread,
    floor_estimate,
    half_spread,
    pooled_spread,
    repetition_estimate,
)


def test_estimate_is_the_minimum_and_lies_in_its_interval() -> None:
    estimate = floor_estimate([3.0, 1.0, 2.0, 4.0], confidence=0.95)
    assert estimate.latency_ms == 1.0
    assert estimate.low_ms < 1.0 < estimate.high_ms


def test_half_width_by_hand() -> None:
    """n = 4, k = 2: S = 0.1 + 2 * 0.1 = 0.3; the quantile of F(2, 2) at 0.75 is 0.25^-1 - 1 = 3; h = 3 * 0.3 / 4."""
    estimate = floor_estimate([1.0, 1.1, 5.0, 9.0], confidence=0.75)
    assert estimate.high_ms - estimate.latency_ms == pytest.approx(0.225)
    assert estimate.latency_ms - estimate.low_ms == pytest.approx(0.225)


def test_slower_half_of_the_rounds_has_no_influence() -> None:
    assert floor_estimate([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], confidence=0.95) == floor_estimate(
        [1.0, 1.1, 1.2, 50.0, 60.0, 70.0], confidence=0.95
    )


def test_interval_covers_the_floor_as_often_as_it_says() -> None:
    """2,000 repetitions of 8 rounds with exponential excess: 95 % coverage, within three standard errors or above."""
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        estimate = floor_estimate([1.0 + 0.05 * rng.expovariate(1) for _ in range(8)], confidence=0.95)
        covered += estimate.low_ms <= 1.0 <= estimate.high_ms
    assert 0.935 <= covered / 2000 <= 0.965


def test_more_rounds_of_the_same_noise_narrow_the_interval() -> None:
    rng = random.Random(1)
    few, many = (
        [floor_estimate([1 + 0.05 * rng.expovariate(1) for _ in range(n)], confidence=0.95) for _ in range(200)]
        for n in (6, 24)
    )
    assert sum(e.relative_half_width for e in many) < 0.5 * sum(e.relative_half_width for e in few)


@given(st.lists(st.floats(1e-4, 1e5), min_size=4, max_size=50), st.floats(0.51, 0.999))
def test_low_is_positive_and_order_of_rounds_is_irrelevant(medians: list[float], confidence: float) -> None:
    estimate = floor_estimate(medians, confidence=confidence)
    assert 0 < estimate.low_ms <= estimate.latency_ms <= estimate.high_ms
    assert estimate == floor_estimate(medians[::-1], confidence=confidence)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_reading_that_is_no_latency_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        floor_estimate([1.0, 1.0, 1.0, bad], confidence=0.95)


def test_three_rounds_give_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 4 rounds, got 3"):
        floor_estimate([1.0, 1.0, 1.0], confidence=0.95)


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_half_spread_is_the_mean_over_all_halves(n: int) -> None:
    rng = random.Random(n)
    medians = [1 + 0.1 * rng.random() for _ in range(n)]
    m = n // 2
    differences = [
        abs(min(medians[i] for i in one) - min(medians[i] for i in other))
        for one in combinations(range(n), m)
        for other in combinations(sorted(set(range(n)) - set(one)), m)
    ]
    assert half_spread(medians).relative == pytest.approx(sum(differences) / len(differences) / min(medians))


def test_pooled_spread_agrees_with_scipy() -> None:
    """The moment equations of Smyth 2004, section 6.2, hold with SciPy's digamma and trigamma."""
    rng = random.Random(3)
    spreads = [Spread(relative=0.01 * math.exp(rng.gauss(0, 1.2)), degrees=4.5) for _ in range(40)]
    pooled = pooled_spread(spreads)
    logs = [math.log(s.relative) - digamma(2.25) + math.log(2.25) for s in spreads]
    assert polygamma(1, pooled.degrees / 2) == pytest.approx(variance(logs) - polygamma(1, 2.25))
    expected = sum(logs) / 40 + digamma(pooled.degrees / 2) - math.log(pooled.degrees / 2)
    assert math.log(pooled.relative) == pytest.approx(expected)


def test_subjects_that_scatter_alike_share_one_spread() -> None:
    assert pooled_spread([Spread(relative=0.01, degrees=4)] * 8).degrees == MAX_DEGREES


def test_of_few_subjects_nothing_is_pooled() -> None:
    assert pooled_spread([Spread(relative=0.01, degrees=4)] * 3) == UNKNOWN


@pytest.mark.parametrize("tail", [lambda rng: rng.expovariate(1), lambda rng: rng.gauss(4, 1)], ids=["hard", "soft"])
@pytest.mark.parametrize("rounds", [6, 24])
def test_an_interval_holds_a_repetition_whatever_the_tail(tail: Callable[[random.Random], float], rounds: int) -> None:
    """Sixteen subjects a lease; the floor's own interval holds 24 rounds of a soft tail in half of the cases."""
    rng = random.Random(5)
    held = []
    for _ in range(60):
        first, second = ([[1 + 0.005 * tail(rng) for _ in range(rounds)] for _ in range(16)] for _ in range(2))
        pooled = pooled_spread([half_spread(medians) for medians in first])
        for medians, repeated in zip(first, second, strict=True):
            estimate = repetition_estimate(medians, pooled=pooled, confidence=0.95)
            held.append(estimate.low_ms <= min(repeated) <= estimate.high_ms)
    assert sum(held) / len(held) >= 0.93


def test_a_spread_that_is_small_by_chance_is_moderated_by_the_others() -> None:
    lucky = [1.0, 1.0, 1.0, 1.3, 1.3, 1.3]
    pooled = Spread(relative=0.01, degrees=20)
    alone = repetition_estimate(lucky, pooled=UNKNOWN, confidence=0.95)
    among_others = repetition_estimate(lucky, pooled=pooled, confidence=0.95)
    own = half_spread(lucky)
    degrees = own.degrees + 20
    spread = (own.degrees * own.relative + 0.2) / degrees
    assert among_others.relative_half_width == pytest.approx(f.ppf(0.95, 2, degrees) * spread)
    assert among_others.latency_ms == alone.latency_ms == 1.0


@given(st.lists(st.floats(1e-4, 1e5), min_size=4, max_size=50), st.floats(0.51, 0.999))
def test_a_repetitions_interval_is_positive_and_order_is_irrelevant(medians: list[float], confidence: float) -> None:
    estimate = repetition_estimate(medians, pooled=UNKNOWN, confidence=confidence)
    assert 0 < estimate.low_ms <= estimate.latency_ms <= estimate.high_ms
    assert estimate == repetition_estimate(medians[::-1], pooled=UNKNOWN, confidence=confidence)
