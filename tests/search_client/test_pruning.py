from collections.abc import Sequence
from pathlib import Path

import pytest

from search_client.pruning import operator_distribution, prune
from search_client.search_problem import Evaluated
from search_client.spaces import IDENTITY, Architecture, SearchSpace, load_space

K3, K5 = "IBConv_K3_E1", "IBConv_K5_E1"
K3_E2, K5_E2 = "IBConv_K3_E2", "IBConv_K5_E2"


@pytest.fixture
def space() -> SearchSpace:
    return load_space(str(Path(__file__).with_name("tiny.toml")))


def ranked(architectures: Sequence[Architecture]) -> list[Evaluated]:
    """Architectures of nondomination rank 1, 2, 3 …: each slower and less accurate than the one before."""
    return [Evaluated(item, 10.0 + index, 0.9 - 0.05 * index, 0) for index, item in enumerate(architectures)]


def test_distribution_is_the_frequency_per_layer(space: SearchSpace) -> None:
    evaluated = ranked([(K3, K3_E2, IDENTITY, K3), (K3, K3_E2, K5_E2, K3), (K5, K3_E2, K5_E2, K3), (K3, K3, K3, K3)])
    distribution = operator_distribution(space, evaluated)
    assert distribution == (
        {K3: 0.75, K5: 0.25},
        {K3: 0.25, K3_E2: 0.75, K5_E2: 0.0},
        {K3: 0.25, K3_E2: 0.0, K5_E2: 0.5, IDENTITY: 0.25},
        {K3: 1.0, K3_E2: 0.0, K5_E2: 0.0, IDENTITY: 0.0},
    )


def test_only_ranks_below_ten_count(space: SearchSpace) -> None:
    nine = [(K3, K3, K3, K3)] * 9
    tenth = [(K5, K3, K3, K3)]
    assert operator_distribution(space, ranked(nine + tenth))[0] == {K3: 1.0, K5: 0.0}
    assert operator_distribution(space, ranked(nine + tenth), max_rank=11)[0] == {K3: 0.9, K5: 0.1}


def test_every_generation_counts(space: SearchSpace) -> None:
    early = Evaluated((K5, K3, K3, K3), 10.0, 0.5, 0)
    late = Evaluated((K3, K3, K3, K3), 20.0, 0.9, 40)
    assert operator_distribution(space, [early, late])[0] == {K3: 0.5, K5: 0.5}


def test_operators_at_or_below_the_threshold_are_removed(space: SearchSpace) -> None:
    distribution = (
        {K3: 0.99, K5: 0.01},
        {K3: 0.5, K3_E2: 0.489, K5_E2: 0.011},
        {K3: 0.0, K3_E2: 0.0, K5_E2: 0.0, IDENTITY: 1.0},
        {K3: 0.25, K3_E2: 0.25, K5_E2: 0.25, IDENTITY: 0.25},
    )
    pruned = prune(space, distribution)
    assert [layer.choices for layer in pruned.layers] == [
        (K3,),
        (K3, K3_E2, K5_E2),
        (IDENTITY,),
        (K3, K3_E2, K5_E2, IDENTITY),
    ]


def test_the_last_operator_of_a_layer_stays(space: SearchSpace) -> None:
    even = {K3: 0.25, K3_E2: 0.25, K5_E2: 0.25, IDENTITY: 0.25}
    distribution = ({K3: 0.4, K5: 0.6}, {K3: 0.2, K3_E2: 0.4, K5_E2: 0.4}, even, even)
    pruned = prune(space, distribution, threshold=0.7)
    assert [layer.choices for layer in pruned.layers] == [(K5,), (K3_E2,), (K3,), (K3,)]
