"""Does a replica grow with what it has answered? PostgreSQL; questions for latencies, then for work.

ratio             resident memory of the service's process after 100,000 requests over that after 1,000
after_1000_mb     the one
after_100000_mb   the other
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks import filled_farm, lookup
from benchmarks.processes import running_service, wait_until_warm
from benchmarks.results_file import Figure, Target, record

FEW, MANY = 1000, 100_000
QUICK_MANY = 3000
CLIENTS = 8
OPERATORS = 2  # in a question


def run(*, quick: bool) -> None:
    many = QUICK_MANY if quick else MANY
    with tempfile.TemporaryDirectory() as name, filled_farm.durable_postgresql() as url:
        folder = Path(name)
        lookup.fill(url)
        questions = {
            "/v1/latencies/query": lookup.question(OPERATORS),
            "/v1/leases": json.dumps({"serial": filled_farm.serial(0)}),
        }
        with running_service(folder, database_url=url) as (service, address):
            wait_until_warm(address)
            process = psutil.Process(service.process.pid)

            def answered(requests: int) -> float:
                """Megabytes afterwards."""
                for number, (path, body) in enumerate(questions.items()):
                    (file := folder / f"{number}.question").write_text(body)
                    each = str(requests // CLIENTS // len(questions))
                    words = [address + path, str(file), "--clients", str(CLIENTS), "--requests", each]
                    command = [sys.executable, "-m", "benchmarks.simulated_clients", *words]
                    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
                    assert json.loads(said)["errors"] == 0, "everything is answered"
                return float(process.memory_info().rss / 1e6)

            few_mb = answered(FEW)
            many_mb = answered(many - FEW)
    ratio = many_mb / few_mb
    record(
        "replica_memory",
        settings={"clients": CLIENTS, "requests": many, "operators": OPERATORS},
        figures={
            "ratio": Figure(ratio, ratio, ratio, "ratio"),
            "after_1000_mb": Figure(few_mb, few_mb, few_mb, "MB"),
            "after_100000_mb": Figure(many_mb, many_mb, many_mb, "MB"),
        },
        targets={"ratio": Target("<=", 1.1)},
        save=not quick,
    )
