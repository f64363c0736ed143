"""The usual latency table, to compare with: each operator alone, 50 runs after 5 warm-ups, their mean.

It is loaded once, on the core that the agent measures on. Where there is more time, everything is done over again and
the mean is taken over all runs.
"""

import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from device_agents.litert_runner import load, pin
from device_agents.local_device import fastest_core

WARM_UPS = 5
RUNS = 50


def mean_latencies_ms(models: Mapping[str, Path], *, seconds: float) -> dict[str, float]:
    """Of each model, in a process of its own; the first pass is finished however long it takes."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_measure, args=(theirs, {name: str(p) for name, p in models.items()}, seconds))
    process.start()
    theirs.close()
    try:
        found: dict[str, float] = ours.recv()
    finally:
        process.join()
    return found


def _measure(pipe: Connection, models: Mapping[str, str], seconds: float) -> None:
    pin(fastest_core())
    deadline = time.monotonic() + seconds
    samples_ns: dict[str, list[int]] = {name: [] for name in models}
    passes = 0
    while passes == 0 or time.monotonic() < deadline:
        for name, path in models.items():
            if passes == 0 or time.monotonic() < deadline:
                samples_ns[name] += _runs_ns(path)
        passes += 1
    pipe.send({name: sum(runs) / len(runs) / 1e6 for name, runs in samples_ns.items()})


def _runs_ns(path: str) -> list[int]:
    invoke = load(path, xnnpack=True)  # which has run it once
    for _ in range(WARM_UPS - 1):
        invoke()
    samples = []
    for _ in range(RUNS):
        started = time.perf_counter_ns()
        invoke()
        samples.append(time.perf_counter_ns() - started)
    return samples
