"""What ADB costs: the demo table through a real `adbd`, its operators leased sixteen at a time and one by one.

Everything is converted before the agent starts. Time inside blocks, as the runner on the device takes it, is that of
loading a model, warming up and timed runs, of operators and of the reference operator. Figures:

    overhead_s_batch16   wall time minus time inside blocks, per operator, in batches of 16
    overhead_s_single    the same, one operator a lease
    wall_over_blocks     wall time of the table over time inside blocks, in batches of 16
    round_trip_ms        one command on the device and its exit status
"""

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import func, select

from benchmarks.adb_board import running_board, start_adb_agent
from benchmarks.processes import running_service
from benchmarks.results_file import Figure, Target, record
from device_agents.adb import AdbLink, parse_target
from device_agents.opening import open_device
from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device
from latency_contract.operators import Operator
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import ModelRow, ModelState
from search_client.latencies import LatencyService
from search_client.spaces import load_space

REPETITIONS = 5
ROUND_TRIPS = 100
QUICK_OPERATORS = 4
CONVERSION_S = 180.0


class _Spent(NamedTuple):
    wall_s: float
    blocks_s: float


def run(*, quick: bool) -> None:
    operators = load_space("demo").operators()[: QUICK_OPERATORS if quick else None]
    repetitions = 1 if quick else REPETITIONS
    batches, singles, round_trips_ms = [], [], []
    for _ in range(repetitions):
        batches.append(_table(operators, max_jobs=16))
        singles.append(_table(operators, max_jobs=1))
        round_trips_ms.append(_round_trip_ms())
    count = len(operators)
    record(
        "adb_overhead",
        settings={"space": "demo", "operators": count, "repetitions": repetitions},
        figures={
            "overhead_s_batch16": Figure.over([(s.wall_s - s.blocks_s) / count for s in batches], "s"),
            "overhead_s_single": Figure.over([(s.wall_s - s.blocks_s) / count for s in singles], "s"),
            "wall_over_blocks": Figure.over([s.wall_s / s.blocks_s for s in batches], "ratio"),
            "round_trip_ms": Figure.over(round_trips_ms, "ms"),
        },
        targets={"overhead_s_batch16": Target("<=", 0.15), "wall_over_blocks": Target("<=", 1.3)},
        save=not quick,
    )


def _table(operators: Sequence[Operator], *, max_jobs: int) -> _Spent:
    with tempfile.TemporaryDirectory() as name, running_service(Path(name)) as (_, url):
        folder = Path(name)
        with running_board(folder) as adbd, ServiceConnection(url) as connection:
            target = parse_target(f"adb:127.0.0.1:{adbd.port}")
            with open_device(
                target, keys=folder / "adbkey", benchmark_binary=None, folder=str(folder / "padnas")
            ) as device:
                report = device.report
            connection.ask("PUT", f"/v1/devices/{report.serial}", Device, body=report)
            service = LatencyService(connection, device=None, client="benchmark")
            service.request(operators, purpose=Purpose.TABLE)
            _wait_until_converted(folder, len(operators))
            with start_adb_agent(folder, url, port=adbd.port, max_jobs=max_jobs) as agent:
                agent.wait_for_line(r"(measuring on .*)")
                started = time.perf_counter()
                service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
                wall_s = time.perf_counter() - started
            batches = re.findall(r"(\d+) subjects in [\d.]+ s, ([\d.]+) s of it inside blocks", agent.log.read_text())
    assert sum(int(count) for count, _ in batches) == len(operators)
    return _Spent(wall_s, sum(float(seconds) for _, seconds in batches))


def _wait_until_converted(folder: Path, count: int) -> None:
    database = Database(f"sqlite:///{folder / 'service.db'}")
    deadline = time.monotonic() + CONVERSION_S
    ready = select(func.count()).where(ModelRow.state == ModelState.READY)
    while True:
        with database.reading() as session:
            if (session.scalar(ready) or 0) > count:  # and the reference operator
                break
        assert time.monotonic() < deadline, "the operators are not converted"
        time.sleep(0.1)
    database.dispose()


def _round_trip_ms() -> float:
    with tempfile.TemporaryDirectory() as name, running_board(Path(name)) as adbd:
        link = AdbLink(parse_target(f"adb:127.0.0.1:{adbd.port}"), keys=Path(name) / "adbkey")
        link.connect()
        started = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            link.run("true", limit_s=10.0)
        spent_s = time.perf_counter() - started
        link.close()
    return 1000 * spent_s / ROUND_TRIPS
