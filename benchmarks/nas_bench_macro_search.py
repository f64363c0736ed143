"""How soon does a search find the best network? Where every network was trained, regret says it exactly.

NAS-Bench-Macro (6,561 networks on CIFAR-10) is searched under three bounds on MACs, in millions, which stand in for an
additive latency. The bounds were fixed before anything was run: the upper ones are the quartiles of the MACs of all
architectures, each lower one is the quartile before. Every algorithm evaluates the same number of distinct
architectures within the bounds, in populations of the same size. One choice was made after a first result here: how
CES picks parents (docs/decisions/0010, which also has results on other seeds and other problems). Figures:

    regret_N_ALGORITHM        accuracy of the best network within the bounds minus that of the best of the first N
                              evaluated: mean over bounds and seeds, with the 95 % bootstrap interval of the mean
    regret_N_best_other       the lowest mean among the algorithms other than CES
    hypervolume_N_ALGORITHM   of what was found, as a share of the true front's (see search_client/known_optimum.py)
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from benchmarks.additive_macs import additive_macs
from benchmarks.baselines import nsga2, regularised_evolution
from benchmarks.results_file import Figure, Target, record
from benchmarks.shared_data import shared_file
from search_client.algorithms import ALGORITHMS
from search_client.known_optimum import KnownOptimum
from search_client.search_problem import LatencyBounds, SearchAlgorithm, SearchBudget, SearchProblem
from search_client.spaces import load_space
from search_client.tabular_oracle import TabularOracle

POPULATION = 20
EVALUATIONS = 200
CHECKPOINTS = (50, 100, 200)
SEEDS = 20
QUICK_SEEDS = 2
RESAMPLES = 10_000  # of the bootstrap
PICTURE = Path("docs/images/nas-bench-macro-regret.png")
LABELS = {
    "ces": ("CES (this project)", "#d94801"),
    "spos": ("SPOS evolution", "#08519c"),
    "regularised": ("regularised evolution", "#238b45"),
    "nsga2": ("NSGA-II as pymoo has it", "#6a51a3"),
    "random": ("random", "#737373"),
}
COMPARED: dict[str, SearchAlgorithm] = ALGORITHMS | {"regularised": regularised_evolution, "nsga2": nsga2}


def run(*, quick: bool) -> None:
    space = load_space("nas-bench-macro")
    oracle = TabularOracle(shared_file("nas-bench-macro_cifar10.json"), space)
    latency = additive_macs(space)
    everything = KnownOptimum.of(
        space, latency=latency, oracle=oracle, bounds=LatencyBounds(0, latency.attainable()[1])
    )
    quartiles = [float(value) for value in np.percentile(everything.latency_ms, [25, 50, 75])]
    all_bounds = [LatencyBounds(low, high) for low, high in zip([0.0, *quartiles], quartiles, strict=False)]
    budget = SearchBudget(population=POPULATION, iterations=EVALUATIONS // POPULATION - 1)
    seeds = QUICK_SEEDS if quick else SEEDS
    regrets: dict[str, list[NDArray[np.float64]]] = {name: [] for name in COMPARED}  # percentage points (EVALUATIONS,)
    hypervolumes: dict[str, list[float]] = {name: [] for name in COMPARED}  # %
    for bounds in all_bounds:
        optimum = KnownOptimum.of(space, latency=latency, oracle=oracle, bounds=bounds)
        problem = SearchProblem(space, latency, oracle, bounds, budget)
        for name, algorithm in COMPARED.items():
            for seed in range(seeds):
                found = algorithm(problem, seed=seed, on_generation=lambda _generation, _newest: None)
                best = np.maximum.accumulate([item.accuracy for item in found])
                best = np.append(best, np.full(EVALUATIONS - len(best), best[-1]))  # whoever stopped early
                regrets[name].append(100 * (optimum.accuracy.max() - best))
                hypervolumes[name].append(100 * optimum.hypervolume_ratio(found))
    curves = {name: np.array(rows) for name, rows in regrets.items()}  # (bounds * seeds, EVALUATIONS)
    figures = {
        f"regret_{count}_{name}": _mean(curve[:, count - 1], "percentage points")
        for count in CHECKPOINTS
        for name, curve in curves.items()
    }
    targets = {}
    for count in CHECKPOINTS:
        others = [figures[f"regret_{count}_{name}"] for name in COMPARED if name != "ces"]
        figures[f"regret_{count}_best_other"] = min(others, key=lambda figure: figure.value)
        targets[f"regret_{count}_ces"] = Target("<=", figures[f"regret_{count}_best_other"].value)
    figures |= {
        f"hypervolume_{EVALUATIONS}_{name}": _mean(np.array(values), "%") for name, values in hypervolumes.items()
    }
    record(
        "nas_bench_macro_search",
        settings={
            "bounds_million_macs": [[bounds.min_ms, bounds.max_ms] for bounds in all_bounds],
            "seeds": seeds,
            "population": POPULATION,
            "evaluations": EVALUATIONS,
            "table_sha256": oracle.fingerprint,
        },
        figures=figures,
        targets=targets,
        save=not quick,
    )
    if not quick:
        draw(PICTURE, curves)


def _mean(values: NDArray[np.float64], unit: str) -> Figure:
    """Mean of values (N,) with its 95 % bootstrap interval."""
    low, high = _interval(values[:, None])
    return Figure(float(values.mean()), float(low[0]), float(high[0]), unit)


def _interval(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % bootstrap interval (M,), (M,) of the mean over rows of values (N, M)."""
    counts = np.random.default_rng(0).multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    low, high = np.percentile(counts @ values / len(values), [2.5, 97.5], axis=0)
    return low, high


def draw(path: Path, curves: Mapping[str, NDArray[np.float64]]) -> None:
    """Mean regret against evaluations, with its interval; curves are (runs, evaluations) in percentage points."""
    picture = Picture(figsize=(8, 4.8), layout="constrained")
    axes = picture.add_subplot()
    floor = 0.002  # percentage points: below it, all runs but one or two are at the optimum
    for name, (label, colour) in LABELS.items():
        curve = curves[name][:, POPULATION - 1 :]  # before, all are random
        evaluations = np.arange(POPULATION, EVALUATIONS + 1)
        low, high = _interval(curve)
        front = 3 if name == "ces" else 2
        axes.fill_between(
            evaluations, np.maximum(low, floor), np.maximum(high, floor), color=colour, alpha=0.14, linewidth=0
        )
        axes.plot(
            evaluations,
            np.maximum(curve.mean(axis=0), floor),
            color=colour,
            linewidth=2.4 if name == "ces" else 1.5,
            label=label,
            zorder=front,
        )
    axes.set_yscale("log")
    axes.set_xlim(POPULATION, EVALUATIONS)
    axes.set_ylim(floor, 1.2)
    axes.set_yticks([0.002, 0.01, 0.05, 0.2, 1.0], ["≤ 0.002", "0.01", "0.05", "0.2", "1"])
    axes.minorticks_off()
    axes.set_xlabel("architectures evaluated")
    axes.set_ylabel("regret (percentage points of accuracy)")
    axes.set_title("NAS-Bench-Macro under three bounds on MACs: mean of 60 runs, 95 % interval", fontsize=10)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=9, frameon=False, loc="upper right")
    picture.savefig(path, dpi=150)
