"""Which number stands for an operator, and does its interval hold? Candidates are judged on the same rounds.

Operators of `basic` are measured again and again, each time by a new runner: on an idle machine, beside a load on
another core, and beside one on the same core, in turns. Repetitions are spread over ten minutes, or over the hours that
PADNAS_STUDY_HOURS says. What may stand for a block is kept in the results, to judge other candidates later.

The rule was written after a look at first rounds, and before any whole network was predicted: the estimator is chosen
whose repetition error is the smallest in its worst condition; its interval is the narrowest that holds 95 % of idle
repetitions. Figures, with range over conditions:

    ESTIMATOR_error_pct          95th percentile of the difference from an idle repetition, median over conditions
    interval_covers_ROUNDS       share of ordered pairs of idle repetitions of which the one holds the other's estimate
    interval_half_width_pct      median half-width after the fewest rounds, idle
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean, median, quantiles

from benchmarks.results_file import Figure, Target, record
from benchmarks.under_load import CONDITIONS, load
from device_agents.local_device import LocalDevice
from device_agents.rounds import round_of
from device_agents.turns import Plan, Visit
from latency_contract.estimators import Estimate, half_spread, pooled_spread
from latency_contract.measurements import Round, estimate_of
from latency_contract.protocols import BlockStatistic, StoppingRule
from latency_service.tflite_converter import convert
from search_client.spaces import load_space

OPERATORS = 16  # of the space, evenly chosen: as many as an agent leases at once
ROUNDS = 12
REPETITIONS = 10  # in each condition
SPREAD_HOURS = 1 / 6
STOPPING = StoppingRule()

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
    record(
        "estimator_study",
        settings={
            "operators": [operator.key for operator in operators],
            "rounds": ROUNDS,
            "repetitions": repetitions,
            "hours": hours,
            "blocks_us": {name: [_compact(lease) for lease in taken] for name, taken in leases.items()},
        },
        figures=figures,
        targets={f"interval_covers_{STOPPING.min_rounds}": Target(">=", 0.93)},
        save=not quick,
    )


def _measured(models: Sequence[Path], *, folder: Path, condition: str) -> Lease:
    """The rounds of a new runner."""
    with LocalDevice() as device, load(condition, core=device.core):
        protocol = device.report.protocol
        reference = folder / f"{protocol.reference.id}.tflite"
        if not reference.exists():
            reference.write_bytes(convert(protocol.reference))
        lease: Lease = [[] for _ in models]
        for visit in device.run(Plan(reference, [(path, ROUNDS) for path in models], protocol), lambda: None):
            assert isinstance(visit, Visit), visit
            lease[visit.position].append(round_of(visit, BlockStatistic.P5))
    assert all(len(rounds) == ROUNDS for rounds in lease), "the runner was cut off"
    return lease


def _p5_ms(rounds: Sequence[Round]) -> list[float]:
    return [r.block_ms for r in rounds]


def _medians_ms(rounds: Sequence[Round]) -> list[float]:
    return [BlockStatistic.MEDIAN.of(r.samples_ms) for r in rounds]


def _lower_quartile(blocks_ms: Sequence[float]) -> float:
    return quantiles(blocks_ms, n=4, method="inclusive")[0]


def _trimmed_mean(blocks_ms: Sequence[float]) -> float:
    """Without the slowest and the fastest quarter."""
    out = len(blocks_ms) // 4
    return fmean(sorted(blocks_ms)[out : len(blocks_ms) - out])


def _reference_ratio(rounds: Sequence[Round]) -> float:
    """In units of the reference operator."""
    readings_ms = [fmean((r.reference_before_ms, r.reference_after_ms)) for r in rounds]
    return median(ms / reference_ms for ms, reference_ms in zip(_medians_ms(rounds), readings_ms, strict=True))


ESTIMATORS: dict[str, Callable[[Sequence[Round]], float]] = {
    "minimum_of_p5": lambda rounds: min(_p5_ms(rounds)),
    "minimum_of_median": lambda rounds: min(_medians_ms(rounds)),
    "lower_quartile_of_p5": lambda rounds: _lower_quartile(_p5_ms(rounds)),
    "lower_quartile_of_median": lambda rounds: _lower_quartile(_medians_ms(rounds)),
    "trimmed_mean_of_p5": lambda rounds: _trimmed_mean(_p5_ms(rounds)),
    "trimmed_mean_of_median": lambda rounds: _trimmed_mean(_medians_ms(rounds)),
    "median_of_p5": lambda rounds: median(_p5_ms(rounds)),
    "median_of_median": lambda rounds: median(_medians_ms(rounds)),
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


def _estimates(lease: Lease, rounds: int) -> list[Estimate]:
    taken = [tuple(of_one[:rounds]) for of_one in lease]
    pooled = pooled_spread([half_spread(_p5_ms(of_one)) for of_one in taken])
    return [estimate_of(of_one, pooled=pooled, confidence=STOPPING.confidence) for of_one in taken]


def _intervals(idle: list[Lease]) -> dict[str, Figure]:
    figures = {}
    for rounds in (STOPPING.min_rounds, ROUNDS):
        estimates = [_estimates(lease, rounds) for lease in idle]
        shares = [
            fmean(a.low_ms <= b.latency_ms <= a.high_ms for a, b in zip(one, other, strict=True))
            for one, other in permutations(estimates, 2)
        ]
        figures[f"interval_covers_{rounds}"] = Figure(fmean(shares), min(shares), max(shares), "share")
    widths = [100 * median(e.relative_half_width for e in _estimates(lease, STOPPING.min_rounds)) for lease in idle]
    return figures | {"interval_half_width_pct": Figure.over(widths, "%")}


def _compact(lease: Lease) -> list[str]:
    """An operator a line: fifth percentile and median of its blocks, in microseconds."""
    pairs = [zip(_p5_ms(rounds), _medians_ms(rounds), strict=True) for rounds in lease]
    return [" ".join(f"{1000 * p5_ms:.2f}/{1000 * median_ms:.2f}" for p5_ms, median_ms in of_one) for of_one in pairs]
