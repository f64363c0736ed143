from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymoo.indicators.hv import HV

from search_client.known_optimum import KnownOptimum, dominated_area
from search_client.search_problem import Evaluated, LatencyBounds
from search_client.table_latencies import additive_latency
from search_client.tabular_oracle import all_architectures
from tests.search_client.problems import TINY, AnalyticOracle, middle, random_latency
from tests.search_client.tables import table_of

LATENCY = random_latency(TINY, seed=1)


def everything(bounds: LatencyBounds) -> list[Evaluated]:
    genes = np.array(
        [[layer.choices.index(c) for layer, c in zip(TINY.layers, one, strict=True)] for one in all_architectures(TINY)]
    )
    accuracies = AnalyticOracle(TINY).evaluate(list(all_architectures(TINY)))
    return [
        Evaluated(architecture, float(latency_ms), accuracy, 0)
        for architecture, latency_ms, accuracy in zip(
            all_architectures(TINY), LATENCY.of(genes), accuracies, strict=True
        )
        if bounds.min_ms <= latency_ms <= bounds.max_ms
    ]


def test_whoever_has_evaluated_everything_is_at_the_optimum() -> None:
    bounds = middle(LATENCY, low=0.2, high=0.8)
    optimum = KnownOptimum.of(TINY, latency=LATENCY, oracle=AnalyticOracle(TINY), bounds=bounds)
    found = everything(bounds)
    assert optimum.latency_ms.tolist() == [item.latency_ms for item in found]
    assert (optimum.regret(found), optimum.hypervolume_ratio(found)) == (0.0, 1.0)


def test_regret_is_what_is_missing_to_the_best_within_the_bounds() -> None:
    bounds = middle(LATENCY, low=0.2, high=0.8)
    optimum = KnownOptimum.of(TINY, latency=LATENCY, oracle=AnalyticOracle(TINY), bounds=bounds)
    best, second, *_ = sorted(everything(bounds), key=lambda item: -item.accuracy)
    assert optimum.regret([second]) == best.accuracy - second.accuracy > 0


def test_with_a_confidence_the_optimum_is_among_what_a_search_may_choose() -> None:
    latency = additive_latency(TINY, table_of(TINY, lambda operator: operator.kernel), confidence=0.95)
    low_ms, high_ms = latency.attainable()
    bounds = LatencyBounds(low_ms, (low_ms + high_ms) / 2)
    optimum = KnownOptimum.of(TINY, latency=latency, oracle=AnalyticOracle(TINY), bounds=bounds)
    by_prediction = replace(latency, confidence=None)
    more = KnownOptimum.of(TINY, latency=by_prediction, oracle=AnalyticOracle(TINY), bounds=bounds)
    assert 0 < len(optimum.latency_ms) < len(more.latency_ms)
    assert optimum.latency_ms.max() < more.latency_ms.max() <= bounds.max_ms


def test_one_architecture_within_the_bounds_is_the_whole_hypervolume() -> None:
    optimum = KnownOptimum(np.array([2.0]), np.array([0.9]))
    assert optimum.hypervolume_ratio([Evaluated((), 2.0, 0.9, 0)]) == 1.0


@given(points=st.lists(st.tuples(st.floats(1, 9), st.floats(0.2, 1)), min_size=1, max_size=12))
def test_dominated_area_is_the_hypervolume_that_pymoo_computes(points: list[tuple[float, float]]) -> None:
    latency_ms, accuracy = np.array(points).T
    expected = HV(ref_point=np.array([9.0, 0.8]))(np.stack([latency_ms, 1 - accuracy], axis=1))
    assert dominated_area(latency_ms, accuracy, worst=(9.0, 0.2)) == pytest.approx(expected, abs=1e-9)
