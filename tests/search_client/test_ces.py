from dataclasses import replace
from itertools import product

import pytest

from search_client.ces import constrained_evolutionary_search, nondomination_ranks
from search_client.search_problem import AdditiveLatency, Evaluated, LatencyBounds, SearchBudget
from search_client.spaces import Architecture, SearchSpace
from tests.search_client.problems import BASIC, TINY, AnalyticOracle, middle, random_latency, search


def exact_latencies(space: SearchSpace, latency: AdditiveLatency) -> dict[Architecture, float]:
    """Of every architecture, summed one by one."""
    tables = [
        dict(zip(layer.choices, choices_ms.tolist(), strict=True))
        for layer, choices_ms in zip(space.layers, latency.layer_ms, strict=True)
    ]
    return {
        architecture: latency.fixed_ms + sum(table[c] for table, c in zip(tables, architecture, strict=True))
        for architecture in product(*(layer.choices for layer in space.layers))
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_true_pareto_front_of_a_small_space_is_found(seed: int) -> None:
    latency = random_latency(TINY, seed=seed)
    bounds = middle(latency, low=0.1, high=0.8)
    oracle = AnalyticOracle(TINY, seed=seed)
    feasible = {
        architecture: latency_ms
        for architecture, latency_ms in exact_latencies(TINY, latency).items()
        if bounds.min_ms <= latency_ms <= bounds.max_ms
    }
    accuracy = dict(zip(feasible, AnalyticOracle(TINY, seed=seed).evaluate(list(feasible)), strict=True))
    front = {
        one
        for one in feasible
        if not any(feasible[two] <= feasible[one] and accuracy[two] > accuracy[one] for two in feasible)
    }
    evaluated = search(
        constrained_evolutionary_search,
        TINY,
        latency,
        bounds,
        oracle=oracle,
        budget=SearchBudget(population=10, iterations=20, max_tries=50),
        seed=seed,
    )
    ranks = nondomination_ranks(evaluated)
    assert {item.architecture for item, rank in zip(evaluated, ranks, strict=True) if rank == 1} == front


def test_latency_targets_are_searched_for_as_well_as_the_upper_bound() -> None:
    """Most accurate under a low target in a wide band: with the target, better in sum over seeds than without."""
    latency = random_latency(BASIC, seed=1)
    bounds = middle(latency, low=0.2, high=0.8)
    target_ms = bounds.min_ms + 0.2 * (bounds.max_ms - bounds.min_ms)
    budget = SearchBudget(population=20, iterations=20)

    def best(bounds: LatencyBounds, *, under_ms: float) -> float:
        runs = [
            search(constrained_evolutionary_search, BASIC, latency, bounds, budget=budget, seed=seed)
            for seed in range(5)
        ]
        return sum(max((item.accuracy for item in run if item.latency_ms <= under_ms), default=0.0) for run in runs)

    with_targets = replace(bounds, targets_ms=(target_ms, bounds.max_ms))
    assert best(with_targets, under_ms=target_ms) > best(bounds, under_ms=target_ms)


def test_evolution_beats_random_search_at_equal_cost() -> None:
    latency = random_latency(BASIC, seed=1)
    bounds = middle(latency)
    evolved = search(
        constrained_evolutionary_search,
        BASIC,
        latency,
        bounds,
        budget=SearchBudget(population=20, iterations=20),
        seed=0,
    )
    random = search(
        constrained_evolutionary_search,
        BASIC,
        latency,
        bounds,
        budget=SearchBudget(population=len(evolved), iterations=0),
        seed=0,
    )
    assert len(random) == len(evolved)
    assert max(item.accuracy for item in evolved) > max(item.accuracy for item in random)


def test_ranks_peel_front_after_front() -> None:
    points = [
        (10.0, 0.90, 1),  # fastest of its accuracy
        (20.0, 0.95, 1),
        (20.0, 0.94, 2),  # as slow as the one above, less accurate
        (21.0, 0.95, 2),  # as accurate, slower
        (22.0, 0.93, 3),  # behind the one above, which is behind the front
        (10.0, 0.90, 1),  # equals share a rank
        (9.0, 0.10, 1),  # poor but fastest
    ]
    evaluated = [Evaluated((str(i),), ms, accuracy, 0) for i, (ms, accuracy, _) in enumerate(points)]
    assert nondomination_ranks(evaluated).tolist() == [rank for *_, rank in points]
