import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_contract.estimators import floor_estimate


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
