"""What a search costs besides accuracies: share of its wall time in which no image is looked at.

A search with the paper's population in `basic`, on a supernet that was trained for one epoch on digits of 32x32 pixels.
An accuracy takes 100 images, 128 to calibrate, on one thread: with more images or larger ones the share is smaller.
The history is written as a real search writes it. Figures:

    overhead_share          of the wall time of the search
    seconds                 wall time of the search
    evaluated               architectures
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.additive_macs import additive_macs
from benchmarks.results_file import Figure, Target, record
from search_client.ces import constrained_evolutionary_search
from search_client.data import load_data
from search_client.oracle import SupernetOracle, TimedOracle
from search_client.pad_nas import latency_bounds
from search_client.run_directory import StageDirectory
from search_client.search_problem import Evaluated, SearchBudget, SearchProblem
from search_client.spaces import load_space
from search_client.supernet import Supernet
from search_client.training import TrainingRecipe, train_supernet

REPETITIONS = 3
ITERATIONS = 10
VALIDATION_PER_CLASS = 10  # images
CALIBRATION_IMAGES = 128


def run(*, quick: bool) -> None:
    torch.set_num_threads(1)
    space = load_space("basic", input_size=32, classes=10)
    data = load_data("digits", input_size=32, validation_per_class=VALIDATION_PER_CLASS, seed=0)
    budget = SearchBudget(iterations=2 if quick else ITERATIONS)
    repetitions = 1 if quick else REPETITIONS
    torch.manual_seed(0)
    supernet = Supernet(space).to("cuda" if torch.cuda.is_available() else "cpu")
    shares, seconds, counts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        train_supernet(
            supernet,
            data,
            recipe=TrainingRecipe(1, learning_rate=0.05, batch_size=64),
            seed=0,
            checkpoint=Path(folder) / "checkpoint",
            on_epoch=lambda _: None,
        )
        latency = additive_macs(space)
        bounds = latency_bounds(None, None, attainable_ms=latency.attainable())
        for seed in range(repetitions):
            directory = StageDirectory(Path(folder) / f"stage-{seed}")
            directory.path.mkdir()
            oracle = TimedOracle(SupernetOracle(supernet, data, calibration_images=CALIBRATION_IMAGES))

            def written(_generation: int, newest: Sequence[Evaluated], directory: StageDirectory = directory) -> None:
                directory.append_history(newest)

            started = time.perf_counter()
            evaluated = constrained_evolutionary_search(
                SearchProblem(space, latency, oracle, bounds, budget),
                seed=seed,
                on_generation=written,
            )
            seconds.append(time.perf_counter() - started)
            shares.append(1 - oracle.seconds / seconds[-1])
            counts.append(float(len(evaluated)))
    record(
        "ces_overhead.gpu" if torch.cuda.is_available() else "ces_overhead",
        settings={"space": "basic", "input_size": 32, "population": budget.population, "iterations": budget.iterations},
        figures={
            "overhead_share": Figure.over(shares, "share"),
            "seconds": Figure.over(seconds, "s"),
            "evaluated": Figure.over(counts, "architectures"),
        },
        targets={"overhead_share": Target("<=", 0.03)},
        save=not quick,
    )
