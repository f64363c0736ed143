import numpy as np

from search_client.random_search import random_search
from search_client.search_problem import SearchBudget
from tests.search_client.problems import BASIC, TINY, AnalyticOracle, middle, random_latency, search


def test_what_was_found_does_not_matter() -> None:
    latency = random_latency(BASIC, seed=1)
    courses = []
    for seed in (0, 1):
        oracle = AnalyticOracle(BASIC, seed=seed)
        search(random_search, BASIC, latency, middle(latency), oracle=oracle)
        courses.append(oracle.asked)
    assert courses[0] == courses[1]


def test_every_architecture_is_as_likely_as_any_other() -> None:
    """The first of each search, in a space of 96: the largest of the counts of 2,000 draws is no outlier."""
    latency = random_latency(TINY, seed=1)
    everything = middle(latency, low=0.0, high=1.0)
    budget = SearchBudget(population=2, iterations=0)
    first = [search(random_search, TINY, latency, everything, budget=budget, seed=seed)[0] for seed in range(2000)]
    _, counts = np.unique([item.architecture for item in first], axis=0, return_counts=True)
    assert len(counts) == TINY.size
    chi_square = float(((counts - 2000 / 96) ** 2 / (2000 / 96)).sum())
    assert chi_square < 95 + 4 * np.sqrt(2 * 95)  # mean and deviation of chi-square with 95 degrees of freedom
