"""Do intervals hold? The demo table is measured again and again, each time by a new agent and service.

For every operator and every ordered pair of repetitions: does one estimate lie in the other's 95 % interval? Figures:

    repeat_within_interval_share   share of those pairs, over all operators (range: over repetitions)
    intervals_meet_share           share of pairs whose intervals have a point in common
    repeat_difference_pct          median absolute difference of two estimates of one operator
    half_width_pct                 median half-width of an interval
    steady_share                   share of measurements with verdict steady
"""

import tempfile
from itertools import combinations, permutations
from pathlib import Path
from statistics import median

from benchmarks.processes import running_service
from benchmarks.results_file import Figure, Target, record
from latency_contract.connection import ServiceConnection
from latency_contract.measurements import Verdict
from latency_contract.tables import Latency, Purpose
from search_client.latencies import LatencyService
from search_client.spaces import load_space

REPETITIONS = 5
QUICK_OPERATORS = 8


def run(*, quick: bool) -> None:
    operators = load_space("demo").operators()[: QUICK_OPERATORS if quick else None]
    repetitions = 2 if quick else REPETITIONS
    tables: list[list[Latency]] = []
    for _ in range(repetitions):
        with (
            tempfile.TemporaryDirectory() as folder,
            running_service(Path(folder), "--with-local-agent") as (_, url),
            ServiceConnection(url) as connection,
        ):
            service = LatencyService(connection, device=None, client="benchmark")
            tables.append(service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None))
    within = [
        sum(a.low_ms <= b.latency_ms <= a.high_ms for a, b in zip(one, other, strict=True)) / len(operators)
        for one, other in permutations(tables, 2)
    ]
    meet = [
        sum(a.low_ms <= b.high_ms and b.low_ms <= a.high_ms for a, b in zip(one, other, strict=True)) / len(operators)
        for one, other in combinations(tables, 2)
    ]
    differences = [
        100 * median(abs(b.latency_ms / a.latency_ms - 1) for a, b in zip(one, other, strict=True))
        for one, other in combinations(tables, 2)
    ]
    half_widths = [100 * median((a.high_ms - a.latency_ms) / a.latency_ms for a in one) for one in tables]
    steady = [sum(a.verdict == Verdict.STEADY for a in one) / len(operators) for one in tables]
    record(
        "repeatability",
        settings={"space": "demo", "operators": len(operators), "repetitions": repetitions},
        figures={
            "repeat_within_interval_share": Figure.over(within, "share"),
            "intervals_meet_share": Figure.over(meet, "share"),
            "repeat_difference_pct": Figure.over(differences, "%"),
            "half_width_pct": Figure.over(half_widths, "%"),
            "steady_share": Figure.over(steady, "share"),
        },
        targets={"repeat_within_interval_share": Target(">=", 0.95)},
        save=not quick,
    )
