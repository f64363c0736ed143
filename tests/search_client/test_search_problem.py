import numpy as np
import pytest

from search_client.latency_spread import LatencySpread
from search_client.search_problem import AdditiveLatency, LatencyBounds, SearchBudget


def test_latency_is_the_sum_of_the_operators() -> None:
    latency = AdditiveLatency(1.0, (np.array([1.0, 2.0]), np.array([0.0, 10.0, 20.0])))
    assert latency.of(np.array([[0, 0], [1, 2], [0, 1]])).tolist() == [2.0, 23.0, 12.0]
    assert latency.attainable() == (2.0, 23.0)


def test_the_least_that_is_held_against_a_bound_may_be_of_another_architecture_than_the_fastest() -> None:
    """One choice is faster and hardly known, the other a little slower and known well."""
    spread = LatencySpread(
        fixed=np.array([], dtype=np.int64),
        layers=(np.array([0, 1]),),
        below_ms=np.array([0.26, 0.005, 0.0]),
        above_ms=np.array([0.26, 0.005, 0.0]),
        terms=np.zeros((3, 3)),
        calibration=None,
    )
    latency = AdditiveLatency(0.0, (np.array([1.0, 1.05]),), spread, confidence=0.95)
    low_ms, high_ms = latency.within_reach()
    assert (low_ms, high_ms) == pytest.approx((1.05 + 1.645 * 0.005, 1.05), abs=1e-4)
    assert latency.attainable() == (1.0, 1.05)
    LatencyBounds(0.5, 1.3).must_overlap((low_ms, high_ms))
    assert latency.within(LatencyBounds(0.5, 1.3), np.array([[0], [1]])).tolist() == [False, True]


def test_a_latency_that_is_not_a_number_cannot_enter() -> None:
    with pytest.raises(AssertionError):
        AdditiveLatency(1.0, (np.array([1.0, np.nan]),))


@pytest.mark.parametrize(("low_ms", "high_ms"), [(5.0, 4.0), (-1.0, 4.0), (float("nan"), 4.0), (1.0, float("inf"))])
def test_bounds_that_make_no_sense_are_refused(low_ms: float, high_ms: float) -> None:
    with pytest.raises(ValueError, match="0 <= min <= max"):
        LatencyBounds(low_ms, high_ms)


@pytest.mark.parametrize("field", [{"population": 1}, {"iterations": -1}, {"max_tries": 0}])
def test_settings_that_make_no_sense_are_refused(field: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="A search needs"):
        SearchBudget(**field)
