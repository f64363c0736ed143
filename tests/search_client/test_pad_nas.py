"""Rules of the outer loop that need no processes; the loop itself is in tests/end_to_end/test_search.py."""

import pytest

from search_client.pad_nas import best_under_targets, latency_bounds, most_accurate
from search_client.search_problem import Evaluated, LatencyBounds

ATTAINABLE = (1.0, 4.0)


@pytest.mark.parametrize(
    ("min_ms", "max_ms", "expected"),
    [
        (None, None, (2.0, 3.0)),  # the middle third
        (None, 2.5, (1.0, 2.5)),  # a bound that is not given is no restriction
        (2.5, None, (2.5, 4.0)),
        (1.5, 2.5, (1.5, 2.5)),
        (None, 0.5, (0.5, 0.5)),  # out of reach, which is for the search to say
        (9.0, None, (9.0, 9.0)),
    ],
)
def test_bounds_that_are_not_given(min_ms: float | None, max_ms: float | None, expected: tuple[float, float]) -> None:
    assert latency_bounds(min_ms, max_ms, attainable_ms=ATTAINABLE) == LatencyBounds(*expected)


@pytest.mark.parametrize(
    ("min_ms", "max_ms", "targets_ms", "expected"),
    [
        (None, None, (1.5, 2.0), (1.0, 2.0)),  # nothing slower than every target is wanted
        (1.2, None, (1.5, 3.5), (1.2, 3.5)),
        (None, 3.0, (1.5,), (1.0, 3.0)),
        (None, None, (0.5,), (0.5, 0.5)),  # out of reach, which is for the search to say
    ],
)
def test_targets_are_bounds_where_there_are_no_others(
    min_ms: float | None, max_ms: float | None, targets_ms: tuple[float, ...], expected: tuple[float, float]
) -> None:
    bounds = latency_bounds(min_ms, max_ms, targets_ms=targets_ms, attainable_ms=ATTAINABLE)
    assert bounds == LatencyBounds(*expected, targets_ms)


def evaluated(name: str, latency_ms: float, accuracy: float) -> Evaluated:
    return Evaluated((name,), latency_ms, accuracy, 0)


def test_the_first_final_is_the_most_accurate_and_of_equals_the_fastest() -> None:
    found = [evaluated("slow", 2.0, 0.9), evaluated("fast", 1.0, 0.9), evaluated("poor", 0.5, 0.5)]
    assert [item.architecture[0] for item in most_accurate(found, count=1)] == ["fast"]


def test_finals_come_front_by_front() -> None:
    front = [evaluated("a", 3.0, 0.9), evaluated("b", 1.0, 0.7)]
    behind = [evaluated("c", 3.5, 0.89), evaluated("d", 1.5, 0.6)]
    assert [item.architecture[0] for item in most_accurate(behind + front, count=3)] == ["a", "b", "c"]


def test_each_latency_target_gets_the_most_accurate_that_meets_it() -> None:
    found = [evaluated("a", 1.0, 0.7), evaluated("b", 2.0, 0.9), evaluated("c", 2.5, 0.8), evaluated("d", 1.5, 0.9)]
    best = best_under_targets(found, [3.0, 1.2, 0.5])
    assert {target_ms: item.architecture[0] for target_ms, item in best.items()} == {1.2: "a", 3.0: "d"}


def test_with_a_confidence_a_target_is_met_by_what_stays_below_it_with_that_probability() -> None:
    found = [Evaluated(("a",), 1.0, 0.9, 0, at_most_ms=1.3), Evaluated(("b",), 0.9, 0.8, 0, at_most_ms=1.1)]
    assert best_under_targets(found, [1.2])[1.2].architecture == ("b",)
