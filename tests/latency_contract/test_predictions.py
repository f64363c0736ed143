"""Predictions of one network; the same for populations is in test_latency_spread.py."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from latency_contract.calibrations import Terms
from latency_contract.operators import IBConv
from latency_contract.predictions import Prediction, activations_m, add_up, predicted
from tests.latency_contract.made_calibrations import calibration_of

Make = Callable[..., IBConv]


class Known(NamedTuple):
    latency_ms: float
    low_ms: float | None
    high_ms: float | None
    confidence: float | None


def test_activations_are_what_operators_hand_on(operator: Make) -> None:
    assert activations_m(operator(height=9, width=8, stride=2, out_channels=16)) == 5 * 4 * 16 / 1e6


def test_an_interval_without_a_calibration_is_that_of_the_sum_at_the_confidence_asked_for(operator: Make) -> None:
    one = operator()
    added = add_up([one, one], {one.id: Known(2.0, 1.9, 2.2, 0.95)})
    assert added.terms == Terms(4.0, 2, 2 * 8 * 8 * 8 / 1e6)
    same = predicted(added, None)
    assert (same.latency_ms, same.calibrated) == (4.0, False)
    assert same.low_ms == pytest.approx(3.8)
    assert same.high_ms == pytest.approx(4.4)
    wider = predicted(added, None, confidence=0.99)
    assert wider.high_ms == pytest.approx(4.0 + 0.4 * stats.norm.ppf(0.995) / stats.norm.ppf(0.975))


def test_a_sum_of_which_a_part_is_not_known_has_no_interval(operator: Make) -> None:
    one, other = operator(), operator(kernel=5)
    known = {one.id: Known(2.0, 1.9, 2.2, 0.95), other.id: Known(1.0, None, None, None)}
    assert predicted(add_up([one, other], known), None) == Prediction(
        latency_ms=3.0, low_ms=None, high_ms=None, confidence=None, calibrated=False
    )


def test_a_calibrated_interval_holds_other_networks_as_often_as_it_says(operator: Make) -> None:
    """12 networks calibrate, one more is predicted; 600 times."""
    rng = np.random.default_rng(0)
    one = operator()
    inside = 0
    for _ in range(600):
        sums = rng.uniform(15, 30, size=13)
        latencies = (0.5 + 0.96 * sums) * (1 + 0.01 * rng.standard_normal(13))
        terms = [Terms(float(ms), 15, 3.0) for ms in sums]
        made = calibration_of(terms[:12], latencies[:12].tolist(), measurements={"0" * 64: 1}, known_within=0.0)
        added = add_up([one], {one.id: Known(float(sums[12]), float(sums[12]), float(sums[12]), 0.95)})
        prediction = predicted(added, made, confidence=0.9)
        assert prediction.low_ms is not None
        assert prediction.high_ms is not None
        inside += prediction.low_ms <= latencies[12] <= prediction.high_ms
    assert stats.binomtest(inside, 600, 0.9).pvalue > 0.01
