"""Which number stands for an operator, and does its interval hold? Candidates are judged on the same rounds.

Operators of `basic` are measured again and again, each time by a new runner: on an idle machine, beside a load on
another core, and beside one on the same core, in turns. Repetitions are spread over ten minutes, or over the hours that
PADNAS_STUDY_HOURS says. The block medians are kept in the results, so that other candidates can be judged later.

The rule was written after a look at first rounds, and before any whole network was predicted: the estimator is chosen
whose repetition error is the smallest in its worst condition; its interval is the narrowest that holds 95 % of idle
repetitions. Figures, with range over conditions:

    ESTIMATOR_error_pct          95th percentile of the difference from an idle repetition, median over conditions
    INTERVAL_covers_ROUNDS       share of ordered pairs of idle repetitions of which the one holds the other's estimate
    INTERVAL_half_width_pct      median half-width after the fewest rounds, idle
    steady_LOAD_share            share of measurements under a load with verdict steady, after the fewest rounds
    steady_outside_LOAD_share    of those, the share whose estimate lies outside the idle interval of the same minute
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from statistics import fmean, median, quantiles

from benchmarks.results_file import Figure, Target, record
from device_agents.local_device import LocalDevice
from device_agents.turns import Plan, Visit
from latency_contract.estimators import Estimate, floor_estimate, half_spread, pooled_spread, repetition_estimate
from latency_contract.protocols import Protocol
from latency_service.tflite_converter import convert
from search_client.spaces import load_space

OPERATORS = 16  # of the space, evenly chosen: as many as an agent leases at once
ROUNDS = 12
REPETITIONS = 10  # in each condition
SPREAD_HOURS = 1 / 6
CONDITIONS = ("idle", "other_core", "same_core")
CONFIDENCE = 0.95

# Copies more than the caches of a core hold, without end, once it has said that it is pinned.
LOAD = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
block = bytearray(8 << 20)
print("busy", flush=True)
while True:
    block = bytearray(block)
"""

Round = tuple[float, float]  # median of the block, and of its reference readings, in ms
Lease = list[list[Round]]  # of each operator, its rounds


def run(*, quick: bool) -> None:
    operators = load_space("basic").operators()
    operators = operators[:: len(operators) // OPERATORS][: 6 if quick else OPERATORS]
    repetitions = 2 if quick else REPETITIONS
    hours = 0.0 if quick else float(os.environ.get("PADNAS_STUDY_HOURS", SPREAD_HOURS))
    leases: dict[str, list[Lease]] = {condition: [] for condition in CONDITIONS}
    with tempfile.TemporaryDirectory() as folder:
        models = [Path(folder) / f"{operator.id}.tflite" for operator in operators]
        for operator, path in zip(operators, models, strict=True):
            path.write_bytes(convert(operator))
        began = time.monotonic()
        for repetition in range(repetitions):
            time.sleep(max(began + repetition * hours * 3600 / repetitions - time.monotonic(), 0))
            for condition in CONDITIONS:
                leases[condition].append(_measured(models, folder=Path(folder), condition=condition))
    figures = {**_errors(leases), **_intervals(leases["idle"])}
    for load in CONDITIONS[1:]:
        figures |= _verdicts(leases["idle"], leases[load], load)
    record(
        "estimator_study",
        settings={
            "operators": [operator.key for operator in operators],
            "rounds": ROUNDS,
            "repetitions": repetitions,
            "hours": hours,
            "block_medians_us": {name: [_compact(lease) for lease in taken] for name, taken in leases.items()},
        },
        figures=figures,
        targets={f"repetition_covers_{Protocol.model_fields['stopping'].default.min_rounds}": Target(">=", 0.93)},
        save=not quick,
    )


def _measured(models: Sequence[Path], *, folder: Path, condition: str) -> Lease:
    """The rounds of a new runner."""
    with LocalDevice() as device, _load(condition, core=device.core):
        protocol = device.report.protocol
        reference = folder / f"{protocol.reference.id}.tflite"
        if not reference.exists():
            reference.write_bytes(convert(protocol.reference))
        lease: Lease = [[] for _ in models]
        for visit in device.run(Plan(reference, [(path, ROUNDS) for path in models], protocol), lambda: None):
            assert isinstance(visit, Visit), visit
            readings = (visit.reference_before_ms, visit.reference_after_ms)
            lease[visit.position].append((median(visit.samples_ms), fmean(readings)))
    assert all(len(rounds) == ROUNDS for rounds in lease), "the runner was cut off"
    return lease


@contextmanager
def _load(condition: str, *, core: int | None) -> Iterator[None]:
    """A process that keeps a core and its memory busy, or none."""
    if condition == "idle" or core is None:
        yield
        return
    others = sorted(os.sched_getaffinity(0) - {core})
    chosen = core if condition == "same_core" or not others else others[0]
    with subprocess.Popen([sys.executable, "-c", LOAD, str(chosen)], stdout=subprocess.PIPE) as load:
        try:
            assert load.stdout is not None
            assert load.stdout.readline() == b"busy\n", "the load does not run"
            yield
        finally:
            load.kill()


def _lower_half(rounds: Sequence[Round]) -> float:
    return fmean(sorted(ms for ms, _ in rounds)[: len(rounds) // 2])


def _lower_quartile(rounds: Sequence[Round]) -> float:
    return quantiles([ms for ms, _ in rounds], n=4, method="inclusive")[0]


def _reference_ratio(rounds: Sequence[Round]) -> float:
    """In units of the reference operator."""
    return median(ms / reference_ms for ms, reference_ms in rounds)


ESTIMATORS: dict[str, Callable[[Sequence[Round]], float]] = {
    "minimum": lambda rounds: min(ms for ms, _ in rounds),
    "median": lambda rounds: median(ms for ms, _ in rounds),
    "lower_half": _lower_half,
    "lower_quartile": _lower_quartile,
    "reference_ratio": _reference_ratio,
}


def _errors(leases: dict[str, list[Lease]]) -> dict[str, Figure]:
    """Of every estimator, against idle repetitions other than the one of the same turn."""
    figures = {}
    for name, estimate in ESTIMATORS.items():
        values = {c: [[estimate(rounds) for rounds in lease] for lease in taken] for c, taken in leases.items()}
        errors = []
        for taken in values.values():
            pairs = permutations(range(len(taken)), 2)
            differences = [abs(a / b - 1) for i, j in pairs for a, b in zip(taken[i], values["idle"][j], strict=True)]
            errors.append(100 * quantiles(differences, n=20)[-1])
        figures[f"{name}_error_pct"] = Figure.over(errors, "%")
    return figures


def by_spacings(lease: Lease, rounds: int) -> list[Estimate]:
    return [floor_estimate([ms for ms, _ in r[:rounds]], confidence=CONFIDENCE) for r in lease]


def by_repetition(lease: Lease, rounds: int) -> list[Estimate]:
    medians_ms = [[ms for ms, _ in r[:rounds]] for r in lease]
    pooled = pooled_spread([half_spread(of_one) for of_one in medians_ms])
    return [repetition_estimate(of_one, pooled=pooled, confidence=CONFIDENCE) for of_one in medians_ms]


INTERVALS = {"spacings": by_spacings, "repetition": by_repetition}


def _intervals(idle: list[Lease]) -> dict[str, Figure]:
    fewest = Protocol.model_fields["stopping"].default.min_rounds
    figures = {}
    for name, interval in INTERVALS.items():
        for rounds in (fewest, ROUNDS):
            estimates = [interval(lease, rounds) for lease in idle]
            shares = [
                fmean(a.low_ms <= b.latency_ms <= a.high_ms for a, b in zip(one, other, strict=True))
                for one, other in permutations(estimates, 2)
            ]
            figures[f"{name}_covers_{rounds}"] = Figure(fmean(shares), min(shares), max(shares), "share")
        widths = [100 * median(e.relative_half_width for e in interval(lease, fewest)) for lease in idle]
        figures[f"{name}_half_width_pct"] = Figure.over(widths, "%")
    return figures


def _verdicts(idle: list[Lease], loaded: list[Lease], load: str) -> dict[str, Figure]:
    stopping = Protocol.model_fields["stopping"].default
    steady, outside = [], []
    for quiet, busy in zip(idle, loaded, strict=True):
        both = zip(by_repetition(quiet, ROUNDS), by_repetition(busy, stopping.min_rounds), strict=True)
        called = [(a, b) for a, b in both if b.relative_half_width <= stopping.target]
        steady.append(len(called) / len(busy))
        outside += [not a.low_ms <= b.latency_ms <= a.high_ms for a, b in called]
    share = fmean(outside) if outside else 0.0
    return {
        f"steady_{load}_share": Figure.over(steady, "share"),
        f"steady_outside_{load}_share": Figure(share, share, share, "share"),
    }


def _compact(lease: Lease) -> list[str]:
    """An operator a line: its block medians in microseconds."""
    return [" ".join(f"{1000 * ms:.2f}" for ms, _ in rounds) for rounds in lease]
