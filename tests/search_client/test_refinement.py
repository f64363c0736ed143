from collections.abc import Callable

import pytest

from latency_contract.tables import Table
from search_client.refinement import most_uncertain
from search_client.search_problem import Evaluated, LatencyBounds
from search_client.spaces import IDENTITY
from tests.search_client.problems import TINY
from tests.search_client.tables import table_of

BOUNDS = LatencyBounds(1.0, 10.0)
# Two choices of the last layer that are not the first of any: nothing else in the architectures below is of their kind.
ONE, OTHER = [choice for choice in TINY.layers[-1].choices if choice != IDENTITY][1:3]


def found(latency_ms: float, last: str) -> Evaluated:
    """An architecture that differs from others in its last layer alone."""
    return Evaluated((*(layer.choices[0] for layer in TINY.layers[:-1]), last), latency_ms, 0.5, 0)


def named(table: Table, evaluated: list[Evaluated], **changes: object) -> list[str]:
    options = {"bounds": BOUNDS, "kept": TINY.operators(), "near": 1, "count": 1} | changes
    return [operator.key for operator in most_uncertain(evaluated, TINY, table, **options)]  # type: ignore[arg-type]


def key(choice: str) -> str:
    operator = TINY.operator(len(TINY.layers) - 1, choice)
    assert operator is not None
    return operator.key


@pytest.fixture
def table() -> Table:
    """In which the intervals of the last layer's operators are the widest: a tenth of 100 ms to each side."""
    last = {key(ONE), key(OTHER)}
    return table_of(TINY, lambda operator: 100.0 if operator.key in last else 1.0)


def test_the_widest_interval_in_the_architectures_nearest_to_the_bound_comes_first(table: Table) -> None:
    assert named(table, [found(9.9, ONE), found(5.0, OTHER)]) == [key(ONE)]
    assert named(table, [found(7.0, ONE), found(9.5, OTHER)]) == [key(OTHER)]


def test_targets_take_the_place_of_the_bound(table: Table) -> None:
    bounds = LatencyBounds(1.0, 10.0, targets_ms=(5.0,))
    assert named(table, [found(9.9, ONE), found(5.1, OTHER)], bounds=bounds) == [key(OTHER)]


def test_an_operator_counts_as_often_as_it_occurs(table: Table) -> None:
    evaluated = [found(9.9, ONE), found(9.8, OTHER), found(9.7, OTHER)]
    assert named(table, evaluated, near=3, count=2) == [key(OTHER), key(ONE)]


def test_what_is_pruned_or_in_none_of_them_is_not_measured_again(table: Table) -> None:
    kept = [operator for operator in TINY.operators() if operator.key != key(ONE)]
    again = named(table, [found(9.9, ONE)], kept=kept, count=100)
    assert again
    assert not {key(ONE), key(OTHER)} & set(again)


def test_what_is_known_exactly_is_not_measured_again(make_exact: Callable[[Table], Table], table: Table) -> None:
    assert named(make_exact(table), [found(9.9, ONE)], count=100) == []


@pytest.fixture
def make_exact() -> Callable[[Table], Table]:
    def make(table: Table) -> Table:
        exact = [one.model_copy(update={"low_ms": one.latency_ms, "high_ms": one.latency_ms}) for one in table.entries]
        return table.model_copy(update={"entries": tuple(exact)})

    return make
