"""How long a latency table takes: conversion, measurement, and how much of the wall time is inference.

The table of `basic` is built on this machine by a service whose converter has TensorFlow already imported, as in a
service that has been running for a while. Figures:

    convert_s_per_operator   from claim to stored model, per operator
    measure_s_per_operator   from the first measured block to the last, over the number of operators
    wall_over_inference      wall time from question to last answer, over the time inside timed runs of the operators
"""

import tempfile
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select

from benchmarks.processes import running_service, wait_until_warm
from benchmarks.results_file import Figure, Target, record
from latency_contract.connection import ServiceConnection
from latency_contract.measurements import Measurement
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import ModelRow
from search_client.latencies import LatencyService
from search_client.spaces import load_space

SPACE = "basic"
REPETITIONS = 3
QUICK_OPERATORS = 8


def run(*, quick: bool) -> None:
    operators = load_space(SPACE).operators()[: QUICK_OPERATORS if quick else None]
    repetitions = 1 if quick else REPETITIONS
    convert_s: list[float] = []
    measure_s: list[float] = []
    ratio: list[float] = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as folder, running_service(Path(folder), "--with-local-agent") as (_, url):
            with ServiceConnection(url) as connection:
                service = LatencyService(connection, device=None, client="benchmark")
                wait_until_warm(url)
                started = time.perf_counter()
                answers = service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
                wall_s = time.perf_counter() - started
                measured = [
                    connection.ask("GET", f"/v1/measurements/{answer.measurement_id}", Measurement)
                    for answer in answers
                ]
            database = Database(f"sqlite:///{Path(folder) / 'service.db'}")
            with database.reading() as session:
                ids = [operator.id for operator in operators]
                rows = session.scalars(select(ModelRow.conversion_s).where(ModelRow.subject_id.in_(ids)))
                conversions = [seconds for seconds in rows if seconds is not None]
            database.dispose()
        inference_s = sum(sum(r.samples_ms) for m in measured for r in m.rounds) / 1000
        span = max(m.provenance.finished_at for m in measured) - min(m.provenance.started_at for m in measured)
        convert_s.append(sum(conversions) / len(conversions))
        measure_s.append(span / timedelta(seconds=1) / len(measured))
        ratio.append(wall_s / inference_s)
    record(
        "table_time",
        settings={"space": SPACE, "operators": len(operators), "repetitions": repetitions},
        figures={
            "convert_s_per_operator": Figure.over(convert_s, "s"),
            "measure_s_per_operator": Figure.over(measure_s, "s"),
            "wall_over_inference": Figure.over(ratio, "ratio"),
        },
        targets={"wall_over_inference": Target("<=", 1.25)},
        save=not quick,
    )
