"""The search algorithms by name: what the setting `final_search` may say."""

from search_client.ces import constrained_evolutionary_search
from search_client.random_search import random_search
from search_client.search_problem import SearchAlgorithm
from search_client.spos import spos_evolution

ALGORITHMS: dict[str, SearchAlgorithm] = {
    "ces": constrained_evolutionary_search,
    "spos": spos_evolution,
    "random": random_search,
}
