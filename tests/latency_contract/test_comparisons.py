"""The ratio of two latencies and its significance, against simulation and against SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, norm

from latency_contract.comparisons import CONFIDENCE, KnownLatency, adjusted_p_values, compare_latencies, ratio

Z = float(norm.ppf(0.975))


def known(latency_ms: float, half_width_ms: float, confidence: float = 0.95) -> KnownLatency:
    return KnownLatency(latency_ms, latency_ms - half_width_ms, latency_ms + half_width_ms, confidence)


def test_an_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    """Two estimates with normal errors of 1 % and 2 %, and their intervals at different confidences."""
    rng = np.random.default_rng(0)
    first_error, second_error, quantile_90 = 0.01, 0.02, float(norm.ppf(0.95))
    held, certain, draws = 0, 0, 4000
    for _ in range(draws):
        first = 3.0 * (1 + first_error * rng.standard_normal())
        second = 2.0 * (1 + second_error * rng.standard_normal())
        found = ratio(
            known(first, Z * first_error * 3.0), known(second, quantile_90 * second_error * 2.0, confidence=0.90)
        )
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 2 / 3 <= found.high
        same = ratio(known(first, Z * first_error * 3.0), known(1.5 * second, Z * second_error * 3.0))
        assert same.p_value is not None
        certain += same.p_value <= 0.05
    assert held / draws == pytest.approx(CONFIDENCE, abs=0.012)
    assert certain / draws == pytest.approx(0.05, abs=0.012)


def test_an_interval_that_holds_a_repetition_is_that_of_a_difference() -> None:
    """Two measurements whose difference is 3 %, of which either interval holds the other in 95 of 100 cases."""
    first, second = known(1.0, 0.03)._replace(holds_repetition=True), known(1.03, 0.03)._replace(holds_repetition=True)
    found = ratio(first, second)
    assert found.p_value == pytest.approx(0.05, abs=0.005)
    assert found.low == pytest.approx(1.0, abs=0.001)


def test_the_ends_of_an_interval_come_from_the_sides_that_move_the_ratio_there() -> None:
    """A is known exactly downwards, B exactly upwards: the ratio cannot be larger."""
    found = ratio(KnownLatency(1.0, 1.0, 1.1, 0.95), KnownLatency(2.0, 1.8, 2.0, 0.95))
    assert found.high == pytest.approx(2.0)
    assert found.low == pytest.approx(2 * math.exp(-math.hypot(math.log(1.1), math.log(2 / 1.8))))


def test_exact_latencies_differ_or_do_not() -> None:
    assert ratio(known(1.0, 0.0), known(2.0, 0.0)).p_value == 0.0
    assert ratio(known(1.0, 0.0), known(1.0, 0.0)).p_value == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_p_values_are_adjusted_as_scipy_does(p_values: list[float]) -> None:
    expected = false_discovery_control(p_values, method="bh").tolist()
    assert adjusted_p_values(p_values) == pytest.approx(expected)


def test_what_has_no_p_value_gets_none_and_does_not_count() -> None:
    assert adjusted_p_values([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert adjusted_p_values([]) == []


@given(st.floats(0.5, 2.0), st.floats(0.001, 0.3))
def test_the_p_value_is_the_normal_distributions(value: float, half_width: float) -> None:
    found = ratio(known(1.0, 0.0), KnownLatency(value, value / (1 + half_width), value * (1 + half_width), 0.95))
    expected = 2 * norm.sf(abs(math.log(value)) / (math.log1p(half_width) / Z))
    assert found.p_value == pytest.approx(float(expected), rel=1e-9, abs=1e-300)


def test_only_what_both_know_is_compared_and_what_differs_most_comes_first() -> None:
    first = {"a": known(1.0, 0.01), "b": known(1.0, 0.01), "c": known(1.0, 0.01)}
    found = compare_latencies(first, {"b": known(1.001, 0.01), "c": known(0.5, 0.01), "d": known(1.0, 0.01)})
    assert [(one.key, one.significant) for one in found] == [("c", True), ("b", False)]
