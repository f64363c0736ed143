"""Does ADB change what is measured? The demo table through a real `adbd`, and directly on the same machine.

The two are measured in turns, each with a service of its own. Figures:

    intervals_meet_share   share of operators whose two intervals have a point in common
    median_ratio           median over operators of latency through ADB over latency measured directly
    median_ratio_off       how far that is from 1
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.adb_board import running_board, start_adb_agent
from benchmarks.processes import running_service, start_agent
from benchmarks.results_file import Figure, Target, record
from latency_contract.connection import ServiceConnection
from latency_contract.operators import Operator
from latency_contract.tables import Latency, Purpose
from search_client.latencies import LatencyService
from search_client.spaces import load_space

REPETITIONS = 5
QUICK_OPERATORS = 4


def run(*, quick: bool) -> None:
    operators = load_space("demo").operators()[: QUICK_OPERATORS if quick else None]
    repetitions = 1 if quick else REPETITIONS
    meet: list[float] = []
    ratios: list[float] = []
    for _ in range(repetitions):
        direct = _table(operators, over_adb=False)
        through = _table(operators, over_adb=True)
        pairs = list(zip(direct, through, strict=True))
        meet.append(sum(a.low_ms <= b.high_ms and b.low_ms <= a.high_ms for a, b in pairs) / len(pairs))
        ratios.append(median(b.latency_ms / a.latency_ms for a, b in pairs))
    record(
        "adb_table",
        settings={"space": "demo", "operators": len(operators), "repetitions": repetitions},
        figures={
            "intervals_meet_share": Figure.over(meet, "share"),
            "median_ratio": Figure.over(ratios, "ratio"),
            "median_ratio_off": Figure.over([abs(ratio - 1) for ratio in ratios], "ratio"),
        },
        targets={"intervals_meet_share": Target(">=", 0.95), "median_ratio_off": Target("<=", 0.03)},
        save=not quick,
    )


def _table(operators: Sequence[Operator], *, over_adb: bool) -> list[Latency]:
    with tempfile.TemporaryDirectory() as name, running_service(Path(name)) as (_, url):
        folder = Path(name)
        with running_board(folder) as adbd:
            agent = start_adb_agent(folder, url, port=adbd.port) if over_adb else start_agent(folder, url)
            with agent, ServiceConnection(url) as connection:
                service = LatencyService(connection, device=None, client="benchmark")
                return service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
