from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_client.ces import constrained_evolutionary_search, nondomination_ranks
from search_client.errors import NoFeasibleArchitecture
from search_client.search_problem import AdditiveLatency, Evaluated, LatencyBounds, SearchBudget
from search_client.spaces import IDENTITY, Architecture, SearchSpace, load_space

TINY = load_space(str(Path(__file__).with_name("tiny.toml")))  # 2 x 3 x 4 x 4 architectures
BASIC = load_space("basic")
SMALL = SearchBudget(population=8, iterations=6, max_tries=20)


def random_latency(space: SearchSpace, *, seed: int) -> AdditiveLatency:
    rng = np.random.default_rng(seed)
    return AdditiveLatency(
        fixed_ms=2.0,
        layer_ms=tuple(
            np.array([0.0 if choice == IDENTITY else rng.uniform(1, 4) for choice in layer.choices])
            for layer in space.layers
        ),
    )


class AnalyticOracle:
    """Accuracy as a fixed, saturating function of the choices; remembers what it was asked."""

    def __init__(self, space: SearchSpace, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.gain = [{choice: rng.uniform() for choice in layer.choices} for layer in space.layers]
        self.asked: list[Architecture] = []

    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        self.asked += architectures
        gains = (sum(gain[c] for gain, c in zip(self.gain, item, strict=True)) for item in architectures)
        return [float(1 - np.exp(-gain)) for gain in gains]


class SilentOracle:
    def evaluate(self, architectures: Sequence[Architecture]) -> list[float]:
        raise AssertionError(f"asked for {architectures}")


def search(
    space: SearchSpace,
    latency: AdditiveLatency,
    bounds: LatencyBounds,
    *,
    oracle: AnalyticOracle | SilentOracle | None = None,
    ces: SearchBudget = SMALL,
    seed: int = 0,
    known: Mapping[Architecture, float] | None = None,
) -> list[Evaluated]:
    return constrained_evolutionary_search(
        space,
        latency=latency,
        oracle=oracle or AnalyticOracle(space),
        bounds=bounds,
        budget=ces,
        seed=seed,
        known=known,
        on_generation=lambda _generation, _evaluated: None,
    )


def middle(latency: AdditiveLatency, *, low: float = 0.4, high: float = 0.6) -> LatencyBounds:
    low_ms, high_ms = latency.attainable()
    return LatencyBounds(low_ms + low * (high_ms - low_ms), low_ms + high * (high_ms - low_ms))


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


def test_latency_is_the_sum_of_the_operators() -> None:
    latency = AdditiveLatency(1.0, (np.array([1.0, 2.0]), np.array([0.0, 10.0, 20.0])))
    assert latency.of(np.array([[0, 0], [1, 2], [0, 1]])).tolist() == [2.0, 23.0, 12.0]
    assert latency.attainable() == (2.0, 23.0)


def test_a_latency_that_is_not_a_number_cannot_enter() -> None:
    with pytest.raises(AssertionError):
        AdditiveLatency(1.0, (np.array([1.0, np.nan]),))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0, 0.9), width=st.floats(0.02, 0.5))
def test_nothing_outside_the_bounds_is_ever_evaluated(seed: int, low: float, width: float) -> None:
    latency = random_latency(BASIC, seed=seed)
    bounds = middle(latency, low=low, high=min(low + width, 1.0))
    oracle = AnalyticOracle(BASIC)
    evaluated = search(BASIC, latency, bounds, oracle=oracle, seed=seed)
    assert evaluated
    assert [item.architecture for item in evaluated] == oracle.asked
    for item in evaluated:
        genes = [layer.choices.index(choice) for layer, choice in zip(BASIC.layers, item.architecture, strict=True)]
        assert item.latency_ms == latency.of(np.array([genes]))[0]
        assert bounds.min_ms <= item.latency_ms <= bounds.max_ms


@pytest.mark.parametrize("space", [TINY, BASIC], ids=["tiny", "basic"])
def test_no_architecture_is_evaluated_twice(space: SearchSpace) -> None:
    latency = random_latency(space, seed=1)
    oracle = AnalyticOracle(space)
    search(space, latency, middle(latency, low=0.2, high=0.9), oracle=oracle)
    assert len(oracle.asked) == len(set(oracle.asked)) > 0


def test_every_generation_is_full_while_there_is_enough_to_find() -> None:
    latency = random_latency(BASIC, seed=1)
    generations: list[tuple[int, int]] = []
    evaluated = constrained_evolutionary_search(
        BASIC,
        latency=latency,
        oracle=AnalyticOracle(BASIC),
        bounds=middle(latency),
        budget=SMALL,
        seed=0,
        on_generation=lambda generation, newest: generations.append((generation, len(newest))),
    )
    assert generations == [(generation, 8) for generation in range(7)]
    assert [item.generation for item in evaluated] == [generation for generation in range(7) for _ in range(8)]


def test_search_is_a_function_of_the_seed() -> None:
    latency = random_latency(BASIC, seed=1)
    np.random.seed(1)
    first = search(BASIC, latency, middle(latency), seed=3)
    np.random.seed(2)
    assert search(BASIC, latency, middle(latency), seed=3) == first
    assert search(BASIC, latency, middle(latency), seed=4) != first


def test_replay_with_known_accuracies_is_identical_and_asks_nothing() -> None:
    latency = random_latency(BASIC, seed=1)
    first = search(BASIC, latency, middle(latency))
    known = {item.architecture: item.accuracy for item in first}
    assert search(BASIC, latency, middle(latency), oracle=SilentOracle(), known=known) == first


def test_interrupted_search_goes_on_where_it_stopped() -> None:
    latency = random_latency(BASIC, seed=1)
    whole = search(BASIC, latency, middle(latency))
    stopped = whole[:20]  # in the middle of the third generation
    oracle = AnalyticOracle(BASIC)
    known = {item.architecture: item.accuracy for item in stopped}
    assert search(BASIC, latency, middle(latency), oracle=oracle, known=known) == whole
    assert oracle.asked == [item.architecture for item in whole[20:]]


def test_bounds_out_of_reach_are_refused_with_the_attainable_range() -> None:
    latency = AdditiveLatency(2.0, tuple(np.arange(1.0, len(layer.choices) + 1) for layer in TINY.layers))
    for bounds in (LatencyBounds(0.5, 5.9), LatencyBounds(15.1, 20.0)):
        with pytest.raises(NoFeasibleArchitecture, match="reaches from 6 to 15 ms") as refusal:
            search(TINY, latency, bounds, oracle=SilentOracle())
        assert (refusal.value.low_ms, refusal.value.high_ms) == (6.0, 15.0)
        assert (refusal.value.min_ms, refusal.value.max_ms) == (bounds.min_ms, bounds.max_ms)


def test_bounds_between_two_latencies_are_refused() -> None:
    latency = AdditiveLatency(2.0, tuple(np.arange(1.0, len(layer.choices) + 1) for layer in TINY.layers))
    with pytest.raises(NoFeasibleArchitecture, match=r"between 7\.2 and 7\.8 ms"):
        search(TINY, latency, LatencyBounds(7.2, 7.8), oracle=SilentOracle())


@pytest.mark.parametrize("where", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_a_narrow_band_is_found_wherever_it_lies(where: float) -> None:
    latency = random_latency(BASIC, seed=2)
    low_ms, high_ms = latency.attainable()
    center_ms = low_ms + where * (high_ms - low_ms)
    bounds = LatencyBounds(max(center_ms - 0.01, low_ms), min(center_ms + 0.01, high_ms))
    evaluated = search(BASIC, latency, bounds)
    assert evaluated
    assert all(bounds.min_ms <= item.latency_ms <= bounds.max_ms for item in evaluated)


def test_one_feasible_architecture_is_a_whole_search() -> None:
    latency = random_latency(TINY, seed=3)
    low_ms, _ = latency.attainable()
    evaluated = search(TINY, latency, LatencyBounds(low_ms, low_ms))
    assert [item.latency_ms for item in evaluated] == [low_ms]


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
        TINY, latency, bounds, oracle=oracle, ces=SearchBudget(population=10, iterations=20, max_tries=50), seed=seed
    )
    ranks = nondomination_ranks(evaluated)
    assert {item.architecture for item, rank in zip(evaluated, ranks, strict=True) if rank == 1} == front


def test_evolution_beats_random_search_at_equal_cost() -> None:
    latency = random_latency(BASIC, seed=1)
    bounds = middle(latency)
    evolved = search(BASIC, latency, bounds, ces=SearchBudget(population=20, iterations=20), seed=0)
    random = search(BASIC, latency, bounds, ces=SearchBudget(population=len(evolved), iterations=0), seed=0)
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


@pytest.mark.parametrize(("low_ms", "high_ms"), [(5.0, 4.0), (-1.0, 4.0), (float("nan"), 4.0), (1.0, float("inf"))])
def test_bounds_that_make_no_sense_are_refused(low_ms: float, high_ms: float) -> None:
    with pytest.raises(ValueError, match="0 <= min <= max"):
        LatencyBounds(low_ms, high_ms)


@pytest.mark.parametrize("field", [{"population": 1}, {"iterations": -1}, {"max_tries": 0}])
def test_settings_that_make_no_sense_are_refused(field: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="A search needs"):
        SearchBudget(**field)
