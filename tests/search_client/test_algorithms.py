"""What holds for every search algorithm."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_client.algorithms import ALGORITHMS
from search_client.errors import NoFeasibleArchitecture
from search_client.search_problem import AdditiveLatency, LatencyBounds, SearchAlgorithm, SearchBudget, SearchProblem
from search_client.spaces import SearchSpace
from tests.search_client.problems import (
    BASIC,
    SMALL,
    TINY,
    AnalyticOracle,
    SilentOracle,
    middle,
    random_latency,
    search,
)

pytestmark = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=list(ALGORITHMS))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0, 0.9), width=st.floats(0.02, 0.5))
def test_nothing_outside_the_bounds_is_ever_evaluated(
    algorithm: SearchAlgorithm, seed: int, low: float, width: float
) -> None:
    latency = random_latency(BASIC, seed=seed)
    bounds = middle(latency, low=low, high=min(low + width, 1.0))
    oracle = AnalyticOracle(BASIC)
    evaluated = search(algorithm, BASIC, latency, bounds, oracle=oracle, seed=seed)
    assert evaluated
    assert [item.architecture for item in evaluated] == oracle.asked
    for item in evaluated:
        genes = [layer.choices.index(choice) for layer, choice in zip(BASIC.layers, item.architecture, strict=True)]
        assert item.latency_ms == latency.of(np.array([genes]))[0]
        assert bounds.min_ms <= item.latency_ms <= bounds.max_ms


@pytest.mark.parametrize("space", [TINY, BASIC], ids=["tiny", "basic"])
def test_no_architecture_is_evaluated_twice(algorithm: SearchAlgorithm, space: SearchSpace) -> None:
    latency = random_latency(space, seed=1)
    oracle = AnalyticOracle(space)
    search(algorithm, space, latency, middle(latency, low=0.2, high=0.9), oracle=oracle)
    assert len(oracle.asked) == len(set(oracle.asked)) > 0


def test_every_generation_is_full_while_there_is_enough_to_find(algorithm: SearchAlgorithm) -> None:
    latency = random_latency(BASIC, seed=1)
    generations: list[tuple[int, int]] = []
    evaluated = algorithm(
        SearchProblem(BASIC, latency, AnalyticOracle(BASIC), middle(latency), SMALL),
        seed=0,
        on_generation=lambda generation, newest: generations.append((generation, len(newest))),
    )
    assert generations == [(generation, 8) for generation in range(7)]
    assert [item.generation for item in evaluated] == [generation for generation in range(7) for _ in range(8)]


def test_search_is_a_function_of_the_seed(algorithm: SearchAlgorithm) -> None:
    latency = random_latency(BASIC, seed=1)
    np.random.seed(1)
    first = search(algorithm, BASIC, latency, middle(latency), seed=3)
    np.random.seed(2)
    assert search(algorithm, BASIC, latency, middle(latency), seed=3) == first
    assert search(algorithm, BASIC, latency, middle(latency), seed=4) != first


def test_replay_with_known_accuracies_is_identical_and_asks_nothing(algorithm: SearchAlgorithm) -> None:
    latency = random_latency(BASIC, seed=1)
    first = search(algorithm, BASIC, latency, middle(latency))
    known = {item.architecture: item.accuracy for item in first}
    assert search(algorithm, BASIC, latency, middle(latency), oracle=SilentOracle(), known=known) == first


def test_interrupted_search_goes_on_where_it_stopped(algorithm: SearchAlgorithm) -> None:
    latency = random_latency(BASIC, seed=1)
    whole = search(algorithm, BASIC, latency, middle(latency))
    stopped = whole[:20]  # in the middle of the third generation
    oracle = AnalyticOracle(BASIC)
    known = {item.architecture: item.accuracy for item in stopped}
    assert search(algorithm, BASIC, latency, middle(latency), oracle=oracle, known=known) == whole
    assert oracle.asked == [item.architecture for item in whole[20:]]


def test_bounds_out_of_reach_are_refused_with_the_attainable_range(algorithm: SearchAlgorithm) -> None:
    latency = AdditiveLatency(2.0, tuple(np.arange(1.0, len(layer.choices) + 1) for layer in TINY.layers))
    for bounds in (LatencyBounds(0.5, 5.9), LatencyBounds(15.1, 20.0)):
        with pytest.raises(NoFeasibleArchitecture, match="reaches from 6 to 15 ms") as refusal:
            search(algorithm, TINY, latency, bounds, oracle=SilentOracle())
        assert (refusal.value.low_ms, refusal.value.high_ms) == (6.0, 15.0)
        assert (refusal.value.min_ms, refusal.value.max_ms) == (bounds.min_ms, bounds.max_ms)


def test_bounds_between_two_latencies_are_refused(algorithm: SearchAlgorithm) -> None:
    latency = AdditiveLatency(2.0, tuple(np.arange(1.0, len(layer.choices) + 1) for layer in TINY.layers))
    with pytest.raises(NoFeasibleArchitecture, match=r"between 7\.2 and 7\.8 ms"):
        search(algorithm, TINY, latency, LatencyBounds(7.2, 7.8), oracle=SilentOracle())


@pytest.mark.parametrize("where", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_a_narrow_band_is_found_wherever_it_lies(algorithm: SearchAlgorithm, where: float) -> None:
    latency = random_latency(BASIC, seed=2)
    low_ms, high_ms = latency.attainable()
    center_ms = low_ms + where * (high_ms - low_ms)
    bounds = LatencyBounds(max(center_ms - 0.01, low_ms), min(center_ms + 0.01, high_ms))
    evaluated = search(algorithm, BASIC, latency, bounds)
    assert evaluated
    assert all(bounds.min_ms <= item.latency_ms <= bounds.max_ms for item in evaluated)


def test_one_feasible_architecture_is_a_whole_search(algorithm: SearchAlgorithm) -> None:
    latency = random_latency(TINY, seed=3)
    low_ms, _ = latency.attainable()
    evaluated = search(algorithm, TINY, latency, LatencyBounds(low_ms, low_ms))
    assert [item.latency_ms for item in evaluated] == [low_ms]


def test_everything_within_the_bounds_is_evaluated_once_when_there_is_little(algorithm: SearchAlgorithm) -> None:
    """Then the search ends, before its iterations do."""
    latency = AdditiveLatency(2.0, tuple(np.arange(1.0, len(layer.choices) + 1) for layer in TINY.layers))
    bounds = LatencyBounds(6.0, 7.0)  # the fastest, and what is one choice away from it
    evaluated = search(algorithm, TINY, latency, bounds, budget=SearchBudget(population=3, iterations=50))
    assert sorted(item.latency_ms for item in evaluated) == [6.0, 7.0, 7.0, 7.0, 7.0]
    assert evaluated[-1].generation < 50
