"""What a load does to a measurement: how far off it is, how long it takes, and what is called steady that is not.

Operators of `demo` are measured on an idle machine, beside a load on another core, and beside one on the same core, in
turns, each time by a new service and a new agent, which have never seen the machine without that load. Figures, for
each LOAD of other_core and same_core:

    off_pct_LOAD             difference from what the idle machine gives, median over operators
    worst_pct_LOAD           the largest of a repetition
    wall_ratio_LOAD          time for all operators over that of the idle machine in the same turn
    steady_share_LOAD        measurements with verdict steady
    steady_off_share_LOAD    of those, how many are further from the idle one than the protocol's target allows;
                             only where there are any (`steady` in the results says how many)
    steady_worst_pct_LOAD    of those, how far the worst is off

and of the idle machine `steady_share_idle` and `off_pct_idle`, of one repetition from the others.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.processes import running_service
from benchmarks.results_file import Figure, Target, record
from device_agents.local_device import fastest_core
from latency_contract.connection import ServiceConnection
from latency_contract.measurements import Verdict
from latency_contract.operators import Subject
from latency_contract.protocols import StoppingRule
from latency_contract.tables import Latency, Purpose
from search_client.latencies import LatencyService
from search_client.spaces import load_space

CONDITIONS = ("idle", "other_core", "same_core")
OPERATORS = 12  # of the space, evenly chosen
REPETITIONS = 3

# Copies more than the caches of a core hold, without end, once it has said that it is pinned.
LOAD = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
block = bytearray(8 << 20)
print("busy", flush=True)
while True:
    block = bytearray(block)
"""


def run(*, quick: bool) -> None:
    operators = load_space("demo").operators()
    operators = operators[:: len(operators) // (4 if quick else OPERATORS)]
    tables: dict[str, list[Sequence[Latency]]] = defaultdict(list)
    wall_s: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 if quick else REPETITIONS):
        for condition in CONDITIONS:
            with load(condition, core=fastest_core()):
                latencies, seconds = _measured(operators)
            tables[condition].append(latencies)
            wall_s[condition].append(seconds)
    figures, targets = judged(tables, wall_s)
    record(
        "under_load",
        settings={
            "operators": [operator.key for operator in operators],
            "repetitions": len(tables["idle"]),
            "steady": {name: sum(map(len, map(_steady, of_one))) for name, of_one in tables.items()},
            "wall_s": {name: [round(seconds, 1) for seconds in of_one] for name, of_one in wall_s.items()},
        },
        figures=figures,
        targets=targets,
        save=not quick,
    )


def judged(
    tables: Mapping[str, Sequence[Sequence[Latency]]], wall_s: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Figure], dict[str, Target]]:
    """By condition: of each repetition, the latencies of the same operators, and how long they took."""
    idle_ms = [median(one.latency_ms for one in of_one) for of_one in zip(*tables["idle"], strict=True)]
    figures = {
        "steady_share_idle": Figure.over([_steady_share(table) for table in tables["idle"]], "share"),
        "off_pct_idle": Figure.over([median(_off_pct(table, idle_ms)) for table in tables["idle"]], "%"),
    }
    targets = {}
    for name in CONDITIONS[1:]:
        loaded = tables[name]
        off_pct = [_off_pct(table, idle_ms) for table in loaded]
        figures |= {
            f"off_pct_{name}": Figure.over([median(one) for one in off_pct], "%"),
            f"worst_pct_{name}": Figure.over([max(one) for one in off_pct], "%"),
            f"wall_ratio_{name}": Figure.over(
                [a / b for a, b in zip(wall_s[name], wall_s["idle"], strict=True)], "ratio"
            ),
            f"steady_share_{name}": Figure.over([_steady_share(table) for table in loaded], "share"),
        }
        called = [[one[place] for place in _steady(table)] for one, table in zip(off_pct, loaded, strict=True)]
        if any(called):
            target_pct = 100 * StoppingRule().target
            shares = [sum(off > target_pct for off in one) / len(one) for one in called if one]
            figures[f"steady_off_share_{name}"] = Figure(
                sum(off > target_pct for one in called for off in one) / sum(map(len, called)),
                min(shares),
                max(shares),
                "share",
            )
            figures[f"steady_worst_pct_{name}"] = Figure.over([max(one) for one in called if one], "%")
            # Of 95 % intervals that are true, one in twenty is left.
            targets[f"steady_off_share_{name}"] = Target("<=", 0.05)
    return figures, targets


def _measured(operators: Sequence[Subject]) -> tuple[Sequence[Latency], float]:
    """By a new service and a new agent, and how long that took from the question to the last answer."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder), "--with-local-agent") as (_, url),
        ServiceConnection(url) as connection,
    ):
        service = LatencyService(connection, device=None, client="benchmark")
        began = time.perf_counter()
        latencies = service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
        return latencies, time.perf_counter() - began


@contextmanager
def load(condition: str, *, core: int | None) -> Iterator[None]:
    """A process that keeps a core and its memory busy, or none."""
    if condition == "idle" or core is None:
        yield
        return
    others = sorted(os.sched_getaffinity(0) - {core})
    chosen = core if condition == "same_core" or not others else others[0]
    with subprocess.Popen([sys.executable, "-c", LOAD, str(chosen)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"busy\n", "the load does not run"
            yield
        finally:
            process.kill()


def _off_pct(table: Sequence[Latency], idle_ms: Sequence[float]) -> list[float]:
    return [100 * abs(one.latency_ms / ms - 1) for one, ms in zip(table, idle_ms, strict=True)]


def _steady(table: Sequence[Latency]) -> list[int]:
    """Places of those that are."""
    return [place for place, one in enumerate(table) if one.verdict == Verdict.STEADY]


def _steady_share(table: Sequence[Latency]) -> float:
    return len(_steady(table)) / len(table)
