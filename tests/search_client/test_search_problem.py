import numpy as np
import pytest

from search_client.search_problem import AdditiveLatency, LatencyBounds, SearchBudget


def test_latency_is_the_sum_of_the_operators() -> None:
    latency = AdditiveLatency(1.0, (np.array([1.0, 2.0]), np.array([0.0, 10.0, 20.0])))
    assert latency.of(np.array([[0, 0], [1, 2], [0, 1]])).tolist() == [2.0, 23.0, 12.0]
    assert latency.attainable() == (2.0, 23.0)


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
