"""Asking for measured latencies on PostgreSQL, beside an endpoint that returns the same bytes without a database.

Questions of 22 and of 300 operators, by 1, 16 and 64 clients at once, in turns with their counterpart. Figures:

    p50_ms_Q_C, p99_ms_Q_C   of the service: Q operators, C clients
    p50_ratio_Q              median over the numbers of clients: p50 of the service over p50 of an endpoint that checks
                             the same question and returns the same bytes
    p50_ratio_bare_Q         the same beside one that does not read the question
    p99_ms_64_clients        the larger p99 of the two questions
    errors                   answers with another status than 200
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median, quantiles

import httpx

from benchmarks import filled_farm
from benchmarks.processes import Program, running_service, wait_until_warm
from benchmarks.results_file import Figure, Target, record
from benchmarks.simulated_agents import JSON, SimulatedAgent
from latency_contract.jobs import MAX_LEASED_JOBS
from latency_contract.tables import LatencyQuery
from latency_service.database import Database

QUESTIONS = (22, 300)  # operators: a network of the basic space; all of a large table
CLIENTS = (1, 16, 64)
REQUESTS = {22: 480, 300: 96}  # of all clients together
REPETITIONS = 3


def run(*, quick: bool) -> None:
    p50_s: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    p99_s: dict[tuple[int, int], list[float]] = defaultdict(list)
    errors = 0
    with tempfile.TemporaryDirectory() as name, filled_farm.durable_postgresql() as url:
        folder = Path(name)
        fill(url)
        with running_service(folder, database_url=url) as (_, address):
            wait_until_warm(address)
            SimulatedAgent(address, filled_farm.serial(0), batch=MAX_LEASED_JOBS).work(time.perf_counter() + 60)
            (answers := folder / "answers").mkdir()
            for number in QUESTIONS:
                (folder / f"{number}.question").write_text(question(number))
                answer = httpx.post(f"{address}/v1/latencies/query", content=question(number), headers=JSON)
                assert answer.text.count('"measured"') == number, "everything is measured"
                (answers / f"{number}.json").write_bytes(answer.content)
            with Program("benchmarks.answers_without_database", str(answers), log=folder / "answers.log") as program:
                other = program.wait_for_line(r"running on (http://\S+) ")
                for _ in range(1 if quick else REPETITIONS):
                    for number in QUESTIONS:
                        for clients in CLIENTS:
                            urls = {
                                "service": f"{address}/v1/latencies/query",
                                "query": f"{other}/query",
                                "bare": f"{other}/bare/{number}",
                            }
                            for who, where in urls.items():
                                times_s, wrong = _ask(where, folder / f"{number}.question", number, clients)
                                p50_s[who, number, clients].append(median(times_s))
                                if who == "service":
                                    p99_s[number, clients].append(quantiles(times_s, n=100)[98])
                                    errors += wrong
    figures = {}
    for number in QUESTIONS:
        for who, figure in (("query", f"p50_ratio_{number}"), ("bare", f"p50_ratio_bare_{number}")):
            ratios = [
                median(p50_s["service", number, c][turn] / p50_s[who, number, c][turn] for c in CLIENTS)
                for turn in range(len(p50_s[who, number, 1]))
            ]
            figures[figure] = Figure.over(ratios, "ratio")
        for clients in CLIENTS:
            of_service = [1000 * value for value in p50_s["service", number, clients]]
            figures[f"p50_ms_{number}_{clients}"] = Figure.over(of_service, "ms")
            figures[f"p99_ms_{number}_{clients}"] = Figure.over([1000 * v for v in p99_s[number, clients]], "ms")
    figures["p99_ms_64_clients"] = max((figures[f"p99_ms_{n}_64"] for n in QUESTIONS), key=lambda f: f.value)
    figures["errors"] = Figure(errors, errors, errors, "answers")
    record(
        "lookup",
        settings={"questions": QUESTIONS, "clients": CLIENTS, "requests": {str(n): r for n, r in REQUESTS.items()}},
        figures=figures,
        targets={f"p50_ratio_{number}": Target("<=", 2) for number in QUESTIONS} | {"errors": Target("<=", 0)},
        save=not quick,
    )


def fill(url: str) -> None:
    """A farm with one unit, and a job for every operator of the largest question."""
    database = Database(url)
    subjects = filled_farm.operators(max(QUESTIONS))
    with database.writing() as session:
        filled_farm.enrol(session, [filled_farm.serial(0)])
        filled_farm.store_converted(session, subjects)
        filled_farm.fill_queue(session, subjects)
    filled_farm.refresh_statistics(database)
    database.dispose()


def question(number: int) -> str:
    query = LatencyQuery(device=filled_farm.DEVICE_MODEL, subjects=tuple(filled_farm.operators(number)))
    return query.model_dump_json()


def _ask(url: str, question: Path, number: int, clients: int) -> tuple[list[float], int]:
    words = ["--clients", str(clients), "--requests", str(max(REQUESTS[number] // clients, 3))]
    command = [sys.executable, "-m", "benchmarks.simulated_clients", url, str(question), *words]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return said["times_s"], said["errors"]
