import numpy as np

from search_client.random_search import random_search
from search_client.search_problem import SearchBudget
from search_client.spos import MUTATION_PROBABILITY, spos_evolution
from tests.search_client.problems import BASIC, AnalyticOracle, middle, random_latency, search


def test_offspring_are_mutants_and_crossovers_of_the_most_accurate_fifth() -> None:
    """Population, generations and shares of SPOS itself: 10 parents, 25 mutants, 25 crossovers."""
    latency = random_latency(BASIC, seed=1)
    budget = SearchBudget(population=50, iterations=20)
    evaluated = search(spos_evolution, BASIC, latency, middle(latency), budget=budget)
    assert len(evaluated) == 50 * 21
    mutated_shares = []
    for number in range(1, 6):  # later, the parents are so much alike that few of their crossovers are new
        before = [item for item in evaluated if item.generation < number]
        newest = [item.architecture for item in evaluated if item.generation == number]
        parents = [item.architecture for item in sorted(before, key=lambda item: -item.accuracy)[:10]]
        mutants, crossed = newest[:25], newest[25:]
        for child in crossed:
            assert all(choice in {parent[layer] for parent in parents} for layer, choice in enumerate(child))
        mutated_shares += [min(sum(a != b for a, b in zip(p, m, strict=True)) for p in parents) for m in mutants]
    # Some draws are the old choice again, and mutants without any change are no new architectures.
    assert 1 <= np.mean(mutated_shares) <= 2 * MUTATION_PROBABILITY * len(BASIC.layers)


def test_a_generation_that_cannot_be_filled_with_offspring_is_filled_at_random() -> None:
    """Two parents have so few offspring at one try each that random architectures must complete a generation."""
    latency = random_latency(BASIC, seed=1)
    evaluated = search(
        spos_evolution,
        BASIC,
        latency,
        middle(latency, low=0.45, high=0.5),
        budget=SearchBudget(population=8, iterations=3, max_tries=4),
    )
    assert [sum(item.generation == number for item in evaluated) for number in range(4)] == [8] * 4


def test_evolution_beats_random_search_at_equal_cost() -> None:
    latency = random_latency(BASIC, seed=1)
    budget = SearchBudget(population=20, iterations=20)
    evolved, drawn = (
        search(algorithm, BASIC, latency, middle(latency), budget=budget)
        for algorithm in (spos_evolution, random_search)
    )
    assert len(evolved) == len(drawn)
    assert max(item.accuracy for item in evolved) > max(item.accuracy for item in drawn)


def test_accuracy_is_all_that_counts() -> None:
    """With other latencies, of which none is out of bounds, the search takes the same course."""
    courses = []
    for seed in (1, 2):
        latency = random_latency(BASIC, seed=seed)
        oracle = AnalyticOracle(BASIC)
        search(spos_evolution, BASIC, latency, middle(latency, low=0.0, high=1.0), oracle=oracle)
        courses.append(oracle.asked)
    assert courses[0] == courses[1]
