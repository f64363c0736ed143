"""The search of `make search`, three times from nothing: how long it takes, what it needs, how true it predicts.

Figures:

    wall_s                  from starting the client to its end, service and agent starting meanwhile
    prediction_error_pct    mean absolute difference between predicted and measured latency of the final networks
    worst_prediction_pct    the largest such difference (range: over repetitions)
    best_accuracy           one-shot accuracy of the first final architecture on the validation images
    service_mb              peak memory: the service and its converter, together
    agent_mb                the agent and its runner, together
    client_mb               the client
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import PeakMemory, Program, running_service
from benchmarks.results_file import Figure, Target, record

REPETITIONS = 3


def run(*, quick: bool) -> None:
    figures: dict[str, list[float]] = {}
    repetitions = 1 if quick else REPETITIONS
    less = ["--epochs", "2,1,1", "--iterations", "2"] if quick else []
    for _ in range(repetitions):
        for name, value in _one_search(less).items():
            figures.setdefault(name, []).append(value)
    units = {"wall_s": "s", "best_accuracy": "share", "service_mb": "MB", "agent_mb": "MB", "client_mb": "MB"}
    record(
        "demo_search",
        settings={"space": "demo", "data": "digits", "seed": 0, "repetitions": repetitions},
        figures={name: Figure.over(values, units.get(name, "%")) for name, values in figures.items()},
        targets={
            "wall_s": Target("<=", 360),
            "service_mb": Target("<=", 1500),
            "agent_mb": Target("<=", 400),
            "client_mb": Target("<=", 1500),
        },
        save=not quick,
    )


def _one_search(options: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = ["search", "--space", "demo", "--data", "digits", "--out", str(folder / "run"), *options]
        with running_service(folder, "--with-local-agent") as (service, url):
            started = time.perf_counter()
            with (
                PeakMemory(service.process.pid) as serving,
                Program("search_client", *command, "--service", url, log=folder / "client.log") as client,
                PeakMemory(client.process.pid) as searching,
            ):
                status = client.process.wait()
            wall_s = time.perf_counter() - started
        if status != 0:
            sys.exit(client.log.read_text())
        final = json.loads((folder / "run" / "final.json").read_text())
    errors = [
        100 * abs(one["predicted_latency"]["latency_ms"] / one["measured_latency"]["latency_ms"] - 1)
        for one in final["architectures"]
    ]
    return {
        "wall_s": wall_s,
        "prediction_error_pct": sum(errors) / len(errors),
        "worst_prediction_pct": max(errors),
        "best_accuracy": final["architectures"][0]["one_shot_accuracy"],
        "service_mb": serving.own_mb,
        "agent_mb": serving.agent_mb,
        "client_mb": searching.own_mb,
    }
