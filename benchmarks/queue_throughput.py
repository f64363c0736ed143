"""Lease-to-result cycles on PostgreSQL, beside `procrastinate` doing an empty task on the same server.

An agent leases a batch of jobs over HTTP and reports a measurement of each, again and again; measuring takes it no
time. Beside it, in turns, one worker of procrastinate with as many tasks at once: the queue for PostgreSQL that Python
programs use otherwise. A task of its is one job; one lease of ours carries BATCH of them. Figures, for 1, 8, 32 agents:

    operators_per_s_N        measured operators a second
    tasks_per_s_N            finished tasks of procrastinate a second
    ratio_N                  the one over the other
    cycles_per_s_32          lease-to-result cycles (a batch each) in a second of the service's processor time
    single_cycles_per_s_32   the same where a lease carries one job
    service_ms_per_cycle_32  processor time of the service for a cycle; agents and PostgreSQL have theirs beside it

All share the machine: service, agents, PostgreSQL, and procrastinate while it is its turn.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import filled_farm
from benchmarks.processes import Program, running_service, wait_until_warm
from benchmarks.results_file import Figure, Target, record
from latency_service.database import Database

AGENTS = (1, 8, 32)
BATCH = 16  # jobs in a lease, as agents ask for by default
OPERATORS = 12_000
LASTING_S = 8.0
REPETITIONS = 3
QUICK_OPERATORS, QUICK_LASTING_S, QUICK_REPETITIONS = 600, 1.0, 1


class Turn(NamedTuple):
    """What agents did in a while, and what it cost the service."""

    cycles: int
    operators: int
    wall_s: float
    service_s: float  # processor time


def run(*, quick: bool) -> None:
    lasting_s = QUICK_LASTING_S if quick else LASTING_S
    subjects = filled_farm.operators(QUICK_OPERATORS if quick else OPERATORS)
    batches: dict[int, list[Turn]] = {agents: [] for agents in AGENTS}
    singles: list[Turn] = []
    tasks_per_s: dict[int, list[float]] = {agents: [] for agents in AGENTS}
    with tempfile.TemporaryDirectory() as name, filled_farm.durable_postgresql() as url:
        database = Database(url)
        with database.writing() as session:
            filled_farm.enrol(session, [filled_farm.serial(number) for number in range(max(AGENTS))])
            filled_farm.store_converted(session, subjects)
        _peer("prepare", url)
        with running_service(Path(name), database_url=url) as (service, address):
            wait_until_warm(address)

            def turn(agents: int, batch: int) -> Turn:
                with database.writing() as session:
                    filled_farm.fill_queue(session, subjects)
                filled_farm.refresh_statistics(database)
                return _turn(service, address, agents=agents, batch=batch, lasting_s=lasting_s)

            for _ in range(QUICK_REPETITIONS if quick else REPETITIONS):
                for agents in AGENTS:
                    batches[agents].append(turn(agents, BATCH))
                    tasks_per_s[agents].append(_peer("work", url, str(agents), str(lasting_s)))
                singles.append(turn(max(AGENTS), 1))
        database.dispose()
    record(
        "queue_throughput",
        settings={"batch": BATCH, "agents": AGENTS, "lasting_s": lasting_s, "rounds": filled_farm.ROUNDS},
        figures=_figures(batches, singles, tasks_per_s),
        targets={f"ratio_{agents}": Target(">=", 1) for agents in AGENTS} | {"cycles_per_s_32": Target(">=", 200)},
        save=not quick,
    )


def _figures(
    batches: dict[int, list[Turn]], singles: list[Turn], tasks_per_s: dict[int, list[float]]
) -> dict[str, Figure]:
    figures = {}
    for agents, turns in batches.items():
        operators_per_s = [turn.operators / turn.wall_s for turn in turns]
        ratios = [ours / theirs for ours, theirs in zip(operators_per_s, tasks_per_s[agents], strict=True)]
        figures[f"ratio_{agents}"] = Figure.over(ratios, "ratio")
        figures[f"operators_per_s_{agents}"] = Figure.over(operators_per_s, "operators/s")
        figures[f"tasks_per_s_{agents}"] = Figure.over(tasks_per_s[agents], "tasks/s")
    most = batches[max(AGENTS)]
    figures["cycles_per_s_32"] = Figure.over([t.cycles / t.service_s for t in most], "cycles per core second")
    figures["single_cycles_per_s_32"] = Figure.over([t.cycles / t.service_s for t in singles], "cycles per core second")
    figures["service_ms_per_cycle_32"] = Figure.over([1000 * t.service_s / t.cycles for t in most], "ms")
    return figures


def _turn(service: Program, address: str, *, agents: int, batch: int, lasting_s: float) -> Turn:
    process = psutil.Process(service.process.pid)
    before_s = processor_s(process)
    words = ["--agents", str(agents), "--batch", str(batch), "--lasting-s", str(lasting_s)]
    command = [sys.executable, "-m", "benchmarks.simulated_agents", address, *words]
    done = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return Turn(done["cycles"], done["operators"], done["wall_s"], processor_s(process) - before_s)


def _peer(*words: str) -> float:
    """`benchmarks.procrastinate_tasks`, in a process of its own; tasks a second, where it says so."""
    command = [sys.executable, "-m", "benchmarks.procrastinate_tasks", *words]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return float(said or 0)


def processor_s(process: psutil.Process) -> float:
    """Processor time of a process, without what it started."""
    times = process.cpu_times()
    return float(times.user + times.system)
