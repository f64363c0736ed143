"""PAD-NAS, Algorithm 1 of the paper: train, search, prune, again and again, within latency bounds.

A search is a function of its settings, the table version and the data. What is done is on disk; whoever is stopped
anywhere and started again with the same directory ends with the same `final.json`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from latency_contract.operators import Conv, Head, IBConv, Network
from latency_contract.tables import Latency, Table
from search_client import report
from search_client.accuracy_sources import PublishedTable, TrainedSupernets, stage_seed
from search_client.algorithms import ALGORITHMS
from search_client.analyses import read_run
from search_client.ces import nondomination_ranks
from search_client.config import CHANGE_NO_RESULT, SearchConfig
from search_client.imported_tables import AnyTable, describe, identity
from search_client.oracle import AccuracyOracle, TimedOracle
from search_client.progress import ConsoleProgress
from search_client.pruning import OperatorDistribution, operator_distribution, prune
from search_client.refinement import most_uncertain
from search_client.run_directory import GenerationRecord, RunDirectory, write_json
from search_client.search_problem import AdditiveLatency, Evaluated, LatencyBounds, SearchProblem, must_begin
from search_client.spaces import SearchSpace
from search_client.table_latencies import additive_latency, calibrated_for, calibration_for, predict


class AccuracySource(Protocol):
    """Where accuracies come from; asked for one stage after the other."""

    space: SearchSpace  # with as many classes as there are
    fingerprint: str
    description: str

    def oracle(self, number: int, space: SearchSpace) -> AccuracyOracle: ...

    def of_finals(self, finals: Sequence[Evaluated]) -> list[dict[str, float]]: ...

    def in_hindsight(
        self, found: Sequence[Evaluated], *, latency: AdditiveLatency, bounds: LatencyBounds
    ) -> dict[str, float]: ...


class LatencySource(Protocol):
    """Where latencies come from: a service that measures, or a table in a file."""

    device_model: str

    def request(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> None: ...

    def table_if_complete(self, operators: Sequence[Conv | IBConv | Head]) -> AnyTable | None: ...

    def complete_table(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> AnyTable: ...

    def must_agree_with(self, table: AnyTable) -> None: ...

    def release(self, operators: Sequence[Conv | IBConv | Head]) -> None: ...

    def refine(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> None: ...

    def newest_table(self, last: AnyTable, operators: Sequence[Conv | IBConv | Head]) -> AnyTable: ...

    def of_finals(self, networks: Sequence[Network]) -> Sequence[Latency | None]: ...


@dataclass(frozen=True)
class Stage:
    """A space, the search in it, and what the good architectures used."""

    number: int  # from 1
    space: SearchSpace
    table: AnyTable
    evaluated: list[Evaluated]
    distribution: OperatorDistribution


@dataclass
class Search:
    """One search in its directory."""

    config: SearchConfig
    latencies: LatencySource
    directory: RunDirectory
    progress: ConsoleProgress
    on_stage: Callable[[int, Evaluated | None], None] = lambda _, __: None  # a stage begins, or this is its best now
    source: AccuracySource = field(init=False)
    space: SearchSpace = field(init=False)
    table: AnyTable | None = field(init=False)

    def __post_init__(self) -> None:
        if self.config.oracle is not None:
            self.source = PublishedTable(self.config, self.directory)
        else:
            self.source = TrainedSupernets(
                self.config, self.directory, self.progress, between_epochs=self._take_table_if_complete
            )
        self.space = self.source.space
        self.table = self.directory.table

    def run(self) -> Path:
        """Algorithm 1. Returns the path of `final.json`; pictures and a report lie beside it."""
        self._say_what_is_searched()
        if self.table is not None:
            self.latencies.must_agree_with(self.table)
        else:
            # Measured while the supernet trains.
            self.latencies.request(self.space.operators(), self.space.layers_of_operators())
            self._take_table_if_complete()
        stages = [self._stage(1, self.space)]  # line 1
        for number in range(2, self.config.stages):  # line 2
            last = stages[-1]
            pruned = prune(last.space, last.distribution, threshold=self.config.pruning_threshold)  # line 7
            self.progress.say(f"pruned from {last.space.size:,} to {pruned.size:,} architectures")
            kept = set(pruned.operators())
            self.latencies.release([operator for operator in last.space.operators() if operator not in kept])
            self._refine(last, pruned)
            stages.append(self._stage(number, pruned, last_table=last.table))
        return self._finish(stages)  # line 11

    def _stage(self, number: int, space: SearchSpace, *, last_table: AnyTable | None = None) -> Stage:
        """Train a supernet (lines 1 and 8), search on it (lines 3 and 10), estimate the distribution (lines 4-6)."""
        self.on_stage(number, None)
        directory = self.directory.stage(number)
        directory.record_space(space)
        oracle = TimedOracle(self.source.oracle(number, space))
        table = self._complete_table() if last_table is None else self._newest_table(number, last_table)
        latency = self._latency(space, table)
        known = {item.architecture: item.accuracy for item in directory.history()}
        with self.progress.task(f"stage {number}: searching", self.config.iterations + 1) as advance:
            best: Evaluated | None = None
            heard_at, heard_oracle_s = time.perf_counter(), 0.0

            def on_generation(generation: int, newest: Sequence[Evaluated]) -> None:
                nonlocal best, heard_at, heard_oracle_s
                if new := [item for item in newest if item.architecture not in known]:
                    directory.append_history(new)
                    now = time.perf_counter()
                    directory.append_generation(
                        GenerationRecord(generation, len(new), now - heard_at, oracle.seconds - heard_oracle_s)
                    )
                heard_at, heard_oracle_s = time.perf_counter(), oracle.seconds
                heard = newest if best is None else [best, *newest]
                best = max(heard, key=lambda item: item.accuracy, default=None)
                advance(generation + 1, "" if best is None else f"best accuracy {best.accuracy:.1%}")
                self.on_stage(number, best)

            last = number == self.config.stages - 1
            evaluated = ALGORITHMS[self.config.final_search if last else "ces"](
                SearchProblem(space, latency, oracle, self._bounds(), self.config.budget),
                seed=stage_seed(self.config, "search", number),
                known=known,
                on_generation=on_generation,
            )
        distribution = operator_distribution(space, evaluated, max_rank=self.config.max_rank)
        directory.save_distribution(distribution, space)
        return Stage(number, space, table, evaluated, distribution)

    def _refine(self, last: Stage, pruned: SearchSpace) -> None:
        """Have measured again what is most uncertain, while the next supernet trains; not where its table is taken."""
        taken = self.directory.stage(last.number + 1).table is not None
        if self._refines(last.table) and isinstance(last.table, Table) and not taken:
            operators = most_uncertain(
                last.evaluated,
                last.space,
                last.table,
                bounds=self._bounds(),
                kept=pruned.operators(),
                near=self.config.population,
                count=self.config.refine,
            )
            self.latencies.refine(operators, pruned.layers_of_operators())

    def _refines(self, table: AnyTable) -> bool:
        """A calibration holds for the measurements that it was made with: such a table stays as it is."""
        return self.config.refine > 0 and calibration_for(self.space.operators(), table) is None

    def _newest_table(self, number: int, last: AnyTable) -> AnyTable:
        """What a later stage is searched with: the table as it stood when its search began, kept with the stage."""
        if not self._refines(last):
            return last
        directory = self.directory.stage(number)
        if (kept := directory.table) is not None:
            return kept
        operators = self.space.operators()
        newest = calibrated_for(operators, self.latencies.newest_table(last, operators))
        directory.save_table(newest)
        self.progress.say(f"stage {number}: {describe(newest)}")
        return newest

    def _take_table_if_complete(self) -> None:
        """As soon as everything is measured, see whether the bounds can be met: not after a night of training."""
        if self.table is None and (table := self.latencies.table_if_complete(self.space.operators())) is not None:
            self._take(table)

    def _complete_table(self) -> AnyTable:
        """The table, waiting for what is still missing."""
        if self.table is None:
            self._take(self.latencies.complete_table(self.space.operators(), self.space.layers_of_operators()))
        assert self.table is not None
        return self.table

    def _take(self, table: AnyTable) -> None:
        """Embed a copy of the table: the whole search is made with it, and with one calibration, if any."""
        operators = self.space.operators()
        self.table = table = calibrated_for(operators, offered := table)
        bounds = self._bounds()
        latency = self._latency(self.space, table)
        low_ms, high_ms = latency.attainable()
        within_reach_ms = latency.within_reach()
        must_begin(self.space, latency, bounds, self.config.budget, seed=stage_seed(self.config, "search", 1))
        for target_ms in self.config.latency_targets_ms:
            LatencyBounds(min(bounds.min_ms, target_ms), target_ms).must_overlap(within_reach_ms)
        self.directory.save_table(self.table)
        if (calibration := calibration_for(operators, table)) is not None:
            self.progress.say(f"{describe(table)}, {calibration.sentence}")
            if self.config.refine:
                self.progress.say("--refine measures nothing again: the calibration holds for these measurements alone")
        elif isinstance(offered, Table):
            self.progress.say(self._uncalibrated(offered))
        self.progress.say(
            f"{describe(self.table)}: architectures take {low_ms:.3f} to {high_ms:.3f} ms, searched are"
            f" {bounds.min_ms:.3f} to {bounds.max_ms:.3f} ms"
        )

    def _uncalibrated(self, table: Table) -> str:
        reason = "whole networks were never held against these measurements"
        if table.calibrations:
            newest = table.calibrations[0]
            lacking = [one.key for one in self.space.operators() if one.id not in newest.measurements]
            reason = f"the newest calibration of the table, by '{newest.space}', does not know {', '.join(lacking[:3])}"
        confidence = "" if self.config.latency_confidence is None else ", and so does --latency-confidence"
        return (
            f"not calibrated for this space ({reason}): predictions are plain sums, whose intervals leave out how whole"
            f" networks differ from sums{confidence}. `padnas-client table calibrate`, with the same --space,"
            " --input-size, --width and --classes, mends that for the next search."
        )

    def _latency(self, space: SearchSpace, table: AnyTable) -> AdditiveLatency:
        return additive_latency(space, table, confidence=self.config.latency_confidence)

    def _bounds(self) -> LatencyBounds:
        attainable_ms = self._latency(self.space, self._complete_table()).attainable()
        config = self.config
        return latency_bounds(
            config.latency_min_ms,
            config.latency_max_ms,
            targets_ms=config.latency_targets_ms,
            attainable_ms=attainable_ms,
        )

    def _finish(self, stages: Sequence[Stage]) -> Path:
        """Measure the final architectures whole (line 11), and write everything down."""
        bounds, last = self._bounds(), stages[-1]
        table = last.table
        finals = self._final_architectures(last.evaluated)
        networks = [last.space.network(item.architecture) for item in finals.values()]
        measured = self.latencies.of_finals(networks)
        latency = self._latency(self.space, table)
        calibration = calibration_for(self.space.operators(), table)
        final = {
            "config": self.config.model_dump(mode="json", exclude=CHANGE_NO_RESULT),
            "data_sha256": self.source.fingerprint,
            "device_model": table.device_model,
            "table": identity(table),
            "calibration": None
            if calibration is None
            else {"formula": calibration.formula, "known_within_pct": calibration.known_within_pct}
            | calibration.model_dump(mode="json", exclude={"networks", "measurements"}),
            "protocol": table.protocol.model_dump(mode="json") if isinstance(table, Table) else None,
            "latency_bounds_ms": [bounds.min_ms, bounds.max_ms],
            "stages": [
                {
                    "stage": stage.number,
                    "table": identity(stage.table),
                    "size": stage.space.size,
                    "evaluated": len(stage.evaluated),
                    "best_accuracy": max(item.accuracy for item in stage.evaluated),
                }
                for stage in stages
            ],
            "architectures": [
                {
                    "name": name,
                    "choices": dict(zip((layer.name for layer in last.space.layers), item.architecture, strict=True)),
                    "predicted_latency": predict(network, item.architecture, table).model_dump(mode="json"),
                    "measured_latency": None
                    if whole is None
                    else whole.model_dump(mode="json", exclude={"measured_at"}),
                    **accuracies,
                    "macs": network.macs,
                    "parameters": network.parameters,
                    "network": network.model_dump(mode="json"),
                }
                for (name, item), network, whole, accuracies in zip(
                    finals.items(), networks, measured, self.source.of_finals(list(finals.values())), strict=True
                )
            ],
            **self.source.in_hindsight(last.evaluated, latency=latency, bounds=bounds),
        }
        report.write(read_run(self.directory, final))
        write_json(self.directory.final, final)  # the last file: where it is, the search is finished
        return self.directory.final

    def _final_architectures(self, evaluated: Sequence[Evaluated]) -> dict[str, Evaluated]:
        if not self.config.latency_targets_ms:
            best = most_accurate(evaluated, count=self.config.finals)
            return {str(place): item for place, item in enumerate(best, start=1)}
        best_for = best_under_targets(evaluated, self.config.latency_targets_ms)
        for target_ms in set(self.config.latency_targets_ms) - set(best_for):
            self.progress.say(f"nothing faster than the latency target {target_ms:g} ms was found within the bounds")
        if not best_for:
            within_reach_ms = self._latency(self.space, self._complete_table()).within_reach()
            raise LatencyBounds(self._bounds().min_ms, max(self.config.latency_targets_ms)).infeasible(within_reach_ms)
        return {f"{target_ms:g}ms": item for target_ms, item in best_for.items()}

    def _say_what_is_searched(self) -> None:
        self.progress.say(
            f"searching '{self.space.name}' ({self.space.size:,} architectures) {self.source.description}"
            f" for {self.latencies.device_model}"
        )


def latency_bounds(
    min_ms: float | None,
    max_ms: float | None,
    *,
    targets_ms: tuple[float, ...] = (),
    attainable_ms: tuple[float, float],
) -> LatencyBounds:
    """The bounds asked for. One that is not given is no restriction, but nothing slower than every target is wanted.

    With neither bounds nor targets, the middle third of what the space attains is searched.
    """
    low_ms, high_ms = attainable_ms
    if max_ms is None and targets_ms:
        max_ms = max(targets_ms)
    if min_ms is None and max_ms is None:
        third_ms = (high_ms - low_ms) / 3
        min_ms, max_ms = low_ms + third_ms, high_ms - third_ms
    elif min_ms is None:
        min_ms = min(low_ms, max_ms or low_ms)
    return LatencyBounds(min_ms, max(high_ms, min_ms) if max_ms is None else max_ms, targets_ms)


def most_accurate(evaluated: Sequence[Evaluated], *, count: int) -> list[Evaluated]:
    """The Pareto front first, on it the most accurate first (line 11 of Algorithm 1); then the next front, and so on.

    The first is the architecture of highest accuracy, of equals the fastest.
    """
    ranks = nondomination_ranks(evaluated)
    order = sorted(
        zip(ranks, evaluated, strict=True), key=lambda pair: (pair[0], -pair[1].accuracy, pair[1].latency_ms)
    )
    return [item for _, item in order[:count]]


def best_under_targets(evaluated: Sequence[Evaluated], targets_ms: Sequence[float]) -> dict[float, Evaluated]:
    """For each latency target that anything meets, the most accurate architecture that does; of equals the fastest."""
    best = {}
    for target_ms in sorted(set(targets_ms)):
        fast_enough = [item for item in evaluated if item.bound_ms <= target_ms]
        if fast_enough:
            best[target_ms] = min(fast_enough, key=lambda item: (-item.accuracy, item.latency_ms))
    return best
