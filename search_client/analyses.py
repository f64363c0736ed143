"""What the files of a finished search say in numbers (sections 4.3 and 4.4 of the paper).

Every number comes from the run's directory alone; where a part was not done there is None, never a zero.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from latency_contract.errors import validation_sentence
from search_client.pruning import OperatorDistribution
from search_client.run_directory import GenerationRecord, RunFiles, epochs
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace
from search_client.training import EpochRecord

LEAST_FOR_TAU = 5  # pairs; of all rankings of 4, three quarters have |tau| above 0.3
RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


class Spread(NamedTuple):
    """Mean and standard deviation over runs; None where there is one run only."""

    mean: float
    deviation: float | None
    runs: int


class Costs(NamedTuple):
    """Seconds by part (Table 9); None where a part was not done."""

    training_s: float | None
    search_s: float | None
    oracle_s: float | None  # of the search, spent on accuracies
    stand_alone_s: float | None


@dataclass(frozen=True)
class StandAlone:
    """An architecture that was trained alone, from scratch: `standalone/NAME/result.json`."""

    name: str
    choices: dict[str, str]  # by layer
    one_shot_accuracy: float | None  # of the last stage's supernet, on validation images
    validation_accuracy: float
    test_accuracy: float
    predicted_latency_ms: float | None
    macs: int
    parameters: int


@dataclass(frozen=True)
class StageRecord:
    space: SearchSpace
    epochs: list[EpochRecord]  # empty where no supernet was trained
    evaluated: list[Evaluated]
    generations: list[GenerationRecord]
    distribution: OperatorDistribution


@dataclass(frozen=True)
class RunRecord:
    """A finished search, as its files tell it."""

    path: Path
    final: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    stand_alone: tuple[StandAlone, ...]
    stand_alone_s: float | None

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.final["config"])

    @property
    def published(self) -> bool:
        """Whether accuracies come from a table instead of a supernet."""
        return self.config["oracle"] is not None

    @property
    def accuracy_name(self) -> str:
        return "published accuracy" if self.published else "one-shot accuracy"

    @property
    def source(self) -> str:
        """What accuracies come from: a data set, or a table."""
        return str(self.config["oracle"] or self.config["data"])

    @property
    def space(self) -> SearchSpace:
        """The space before anything was pruned."""
        return self.stages[0].space

    @property
    def accuracy_by_epoch(self) -> list[float]:
        """Validation accuracy of the supernet, over the epochs of all stages (Fig. 5)."""
        return [record.validation_accuracy for stage in self.stages for record in stage.epochs]

    @property
    def pruned_after(self) -> list[int]:
        """Epochs, counted through all stages, after which the space was pruned."""
        return list(accumulate(len(stage.epochs) for stage in self.stages))[:-1]

    @property
    def best_accuracy(self) -> float:
        return max(item.accuracy for item in self.stages[-1].evaluated)

    @property
    def best_stand_alone(self) -> float | None:
        """On test images."""
        return max((one.test_accuracy for one in self.stand_alone), default=None)

    @property
    def supernet_accuracy(self) -> float | None:
        """After the last epoch (Table 6)."""
        return self.accuracy_by_epoch[-1] if self.accuracy_by_epoch else None

    @property
    def costs(self) -> Costs:
        trained = [record.seconds for stage in self.stages for record in stage.epochs]
        searched = [record for stage in self.stages for record in stage.generations]
        return Costs(
            training_s=sum(trained) if trained else None,
            search_s=sum(record.seconds for record in searched) if searched else None,
            oracle_s=sum(record.oracle_seconds for record in searched) if searched else None,
            stand_alone_s=self.stand_alone_s,
        )

    @property
    def accuracy_pairs(self) -> list[tuple[float, float]]:
        """(one-shot, stand-alone) of every architecture that has both (Fig. 6).

        The stand-alone one is that on test images: images that both were scored on would make them agree by chance.
        """
        return [
            (one.one_shot_accuracy, one.test_accuracy) for one in self.stand_alone if one.one_shot_accuracy is not None
        ]

    @cached_property
    def tau(self) -> Estimate | None:
        """How well one-shot accuracy ranks architectures (Table 8)."""
        return kendall_tau(self.accuracy_pairs)


def latency_of_final(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a final architecture: as it was measured, or as it was predicted where no device was there."""
    latency: Mapping[str, Any] = architecture["measured_latency"] or architecture["predicted_latency"]
    return latency


def accuracy_of(architecture: Mapping[str, Any]) -> float:
    """Of an architecture in `final.json`: one-shot accuracy, or the one that a table has published, in [0, 1]."""
    return float(architecture["accuracy"] if "accuracy" in architecture else architecture["one_shot_accuracy"])


def read_run(files: RunFiles, final: Mapping[str, Any] | None = None) -> RunRecord:
    """Everything that a run's directory holds; `final` where `final.json` is yet to be written.

    Raises:
        ValueError: there is no finished search, or a file of it cannot be read.
    """
    if final is None:
        final = files.finished()
    stages = [
        StageRecord(stage.space(), stage.epochs(), stage.history(), stage.generations(), stage.distribution())
        for stage in files.stages()
    ]
    folders = sorted(path.parent for path in files.standalone.glob("*/result.json"))
    seconds = [record.seconds for folder in folders for record in epochs(folder)]
    return RunRecord(
        path=files.path,
        final=final,
        stages=tuple(stages),
        stand_alone=tuple(_stand_alone(folder / "result.json") for folder in folders),
        stand_alone_s=sum(seconds) if seconds else None,
    )


def _stand_alone(path: Path) -> StandAlone:
    try:
        return TypeAdapter(StandAlone).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{path} is not the result of a stand-alone training: {validation_sentence(error.errors())}."
        ) from error


def kendall_tau(pairs: Sequence[tuple[float, float]], *, seed: int = 0) -> Estimate | None:
    """Kendall's tau-b of pairs, with a percentile bootstrap interval over pairs.

    None with fewer than LEAST_FOR_TAU pairs, and where one side is constant: there is no ranking then. Resamples that
    have no ranking, such as one pair drawn over and over, do not count.
    """
    if len(pairs) < LEAST_FOR_TAU:
        return None
    first, second = np.array(pairs).T
    drawn = np.random.default_rng(seed).multinomial(len(pairs), [1 / len(pairs)] * len(pairs), size=RESAMPLES)
    (tau,) = _weighted_taus(first, second, np.ones((1, len(pairs))))
    if np.isnan(tau):
        return None
    taus = _weighted_taus(first, second, drawn.astype(float))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(taus[~np.isnan(taus)], [tail, 1 - tail])
    return Estimate(float(tau), float(low), float(high))


def _weighted_taus(first: Floats, second: Floats, weights: Floats) -> Floats:
    """tau-b (R,) of N pairs that occur so many times: weights (R, N); NaN where one side is constant."""
    one, other = (np.sign(values[:, None] - values) for values in (first, second))  # (N, N): -1, 0 or 1

    def total(signs: Floats) -> Floats:
        summed: Floats = ((weights @ signs) * weights).sum(axis=1)
        return summed

    untied = total(one**2) * total(other**2)
    taus: Floats = total(one * other) / np.sqrt(np.where(untied > 0, untied, np.nan))
    return taus


def spread(values: Iterable[float | None]) -> Spread | None:
    """Over the runs that have a value; None where none has."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    deviation = statistics.stdev(present) if len(present) > 1 else None
    return Spread(statistics.fmean(present), deviation, len(present))


def last_layer(runs: Sequence[RunRecord]) -> dict[str, Spread]:
    """Probability of each operator that the last layer once offered, over runs (Fig. 7); a pruned one has 0."""
    found = {}
    for choice in runs[0].space.layers[-1].choices:
        over_runs = spread(run.stages[-1].distribution[-1].get(choice, 0.0) for run in runs)
        assert over_runs is not None
        found[choice] = over_runs
    return found


def numbers(run: RunRecord) -> dict[str, Any]:
    """The analyses of one run, for scripts."""
    return {
        "run": str(run.path),
        "seed": run.config["seed"],
        "sizes": [stage.space.size for stage in run.stages],
        "supernet_accuracy": run.supernet_accuracy,
        "best_accuracy": run.best_accuracy,
        "best_stand_alone_accuracy": run.best_stand_alone,
        "trained_alone": len(run.stand_alone),
        "kendall_tau": None if run.tau is None else run.tau._asdict(),
        "costs": run.costs._asdict(),
    }
