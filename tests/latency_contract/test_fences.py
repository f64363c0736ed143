import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency_contract.fences import fences, tolerance_of


def test_fences_lie_three_quartile_ranges_beyond_the_quartiles_of_the_logarithms() -> None:
    history = np.exp(np.array([0.0, 0.1, 0.2, 0.3, 0.4]))
    found = fences(list(history), tolerance=0.01)
    assert np.log(found) == pytest.approx([0.1 - 3 * 0.2, 0.2, 0.3 + 3 * 0.2])


def test_a_quiet_history_tolerates_what_two_faithful_numbers_may_differ_by() -> None:
    found = fences([2.0] * 12, tolerance=tolerance_of(0.02))
    assert found == pytest.approx((2 / 1.04, 2.0, 2 * 1.04))
    assert [found.outside(value) for value in (1.9, 1.95, 2.05, 2.1)] == [-1, 0, 0, 1]


def test_a_quarter_of_a_history_may_be_anything() -> None:
    """Noise on a shared host is one-sided, and the fences do not follow it."""
    quiet = [1 + n / 1000 for n in range(30)]
    assert fences([*quiet, *[9.0] * 9], tolerance=0.04).high < 1.2
    assert fences([*quiet, *[0.1] * 9], tolerance=0.04).low > 0.8


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=50))
def test_the_median_of_a_history_is_inside(history: list[float]) -> None:
    found = fences(history, tolerance=0.04)
    assert found.outside(found.middle) == 0
