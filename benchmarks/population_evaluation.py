"""What a generation saves by sharing: evaluated at once, against one architecture after the other.

A supernet of `basic` is trained on CIFAR-10 and searched as the paper does, with multiply-accumulates for latency. What
is timed is what a search asks its oracle for, so the populations are the offspring of one generation:

    random       the initial population
    half         offspring of the generation half way
    converged    offspring of the last generation
    pruned       the initial population of a search in the space that this one was pruned to

Figures, one by one over shared, for each of them:

    macs_ratio_NAME    multiply-accumulates
    blocks_ratio_NAME  operators that are computed
    wall_ratio_NAME    wall time, both taken in turn

Both ways must find the same accuracies; otherwise there are no figures.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.additive_macs import additive_macs
from benchmarks.results_file import Figure, Target, record
from benchmarks.shared_data import shared_file
from search_client.accuracy_sources import ORACLE_BATCH_SIZE
from search_client.ces import constrained_evolutionary_search
from search_client.data import ImageData, load_data
from search_client.oracle import SupernetOracle
from search_client.pad_nas import latency_bounds
from search_client.prefix_tree import PrefixTree
from search_client.pruning import operator_distribution, prune
from search_client.search_problem import Evaluated, SearchBudget, SearchProblem
from search_client.spaces import Architecture, SearchSpace, load_space
from search_client.supernet import Supernet
from search_client.training import TrainingRecipe, train_supernet

INPUT_SIZE = 32  # pixels, as CIFAR-10 is
REPETITIONS = 3
MEMORY_MB = 2048  # the default of a search
HELD_BYTES = MEMORY_MB * 10**6


@dataclass(frozen=True)
class _Scale:
    train_per_class: int = 200
    validation_per_class: int = 20
    calibration_images: int = 128
    epochs: int = 8
    population: int = 64
    iterations: int = 40
    repetitions: int = REPETITIONS


QUICK = _Scale(
    train_per_class=20,
    validation_per_class=5,
    calibration_images=64,
    epochs=1,
    population=16,
    iterations=4,
    repetitions=1,
)


def run(*, quick: bool) -> None:
    scale = QUICK if quick else _Scale()
    data = load_data(
        f"cifar10:{shared_file('cifar10_full_jpegbytes.npz')}",
        input_size=INPUT_SIZE,
        validation_per_class=scale.validation_per_class,
        seed=0,
        train_per_class=scale.train_per_class,
    )
    space = load_space("basic", input_size=INPUT_SIZE, classes=data.classes)
    torch.manual_seed(0)
    supernet = Supernet(space)
    _train(supernet, data, epochs=scale.epochs)
    oracle = SupernetOracle(
        supernet,
        data,
        calibration_images=scale.calibration_images,
        batch_size=ORACLE_BATCH_SIZE,
        memory_mb=MEMORY_MB,
    )
    populations = _populations(space, oracle, scale=scale)
    figures: dict[str, Figure] = {}
    for name, architectures in populations.items():
        tree = PrefixTree(supernet, architectures, batch_size=ORACLE_BATCH_SIZE, held_bytes=HELD_BYTES)
        alone = [space.network(architecture) for architecture in architectures]
        macs_ratio = sum(network.macs for network in alone) / tree.macs
        blocks_ratio = sum(len(network.operators) for network in alone) / tree.operators
        wall_ratios = [
            _wall_ratio(oracle, architectures, shared_first=repetition % 2 == 0)
            for repetition in range(scale.repetitions)
        ]
        figures[f"macs_ratio_{name}"] = Figure.over([macs_ratio], "ratio")
        figures[f"blocks_ratio_{name}"] = Figure.over([blocks_ratio], "ratio")
        figures[f"wall_ratio_{name}"] = Figure.over(wall_ratios, "ratio")
    record(
        "population_evaluation",
        settings={"space": "basic", "data": "cifar10", "input_size": INPUT_SIZE, "memory_mb": MEMORY_MB}
        | {"threads": torch.get_num_threads(), "batch_size": ORACLE_BATCH_SIZE}
        | vars(scale),
        figures=figures,
        targets={
            "macs_ratio_converged": Target(">=", 1.5),
            "wall_ratio_random": Target(">=", 1),
            "wall_ratio_converged": Target(">=", 1),
        },
        save=not quick,
    )


def _train(supernet: Supernet, data: ImageData, *, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train_supernet(
            supernet,
            data,
            recipe=TrainingRecipe(epochs=epochs, learning_rate=0.1, batch_size=64),
            seed=0,
            checkpoint=Path(folder) / "checkpoint",
            on_epoch=lambda _: None,
        )


def _populations(space: SearchSpace, oracle: SupernetOracle, *, scale: _Scale) -> dict[str, list[Architecture]]:
    budget = SearchBudget(population=scale.population, iterations=scale.iterations)
    evaluated = _search(space, oracle, budget=budget)
    pruned = prune(space, operator_distribution(space, evaluated))
    asked = {
        name: [item.architecture for item in evaluated if item.generation == generation]
        for name, generation in (("random", 0), ("half", scale.iterations // 2), ("converged", scale.iterations))
    }
    first = _search(pruned, oracle, budget=SearchBudget(population=scale.population, iterations=0))
    return asked | {"pruned": [item.architecture for item in first]}


def _search(space: SearchSpace, oracle: SupernetOracle, *, budget: SearchBudget) -> list[Evaluated]:
    """Within the middle third of what the space attains."""
    latency = additive_macs(space)
    bounds = latency_bounds(None, None, attainable_ms=latency.attainable())
    return constrained_evolutionary_search(
        SearchProblem(space, latency, oracle, bounds, budget),
        seed=0,
        on_generation=lambda _generation, _newest: None,
    )


def _wall_ratio(oracle: SupernetOracle, architectures: Sequence[Architecture], *, shared_first: bool) -> float:
    """Seconds of one by one over seconds of all at once. Ends the program where the accuracies differ."""

    def one_by_one() -> list[float]:
        return [oracle.evaluate([architecture])[0] for architecture in architectures]

    def at_once() -> list[float]:
        return oracle.evaluate(architectures)

    ways: list[Callable[[], list[float]]] = [at_once, one_by_one] if shared_first else [one_by_one, at_once]
    (first, first_s), (second, second_s) = (_timed(way) for way in ways)
    if first != second:
        sys.exit("Shared and separate evaluation differ; a speed-up of wrong results is none.")
    return second_s / first_s if shared_first else first_s / second_s


def _timed(way: Callable[[], list[float]]) -> tuple[list[float], float]:
    started = time.perf_counter()
    return way(), time.perf_counter() - started
