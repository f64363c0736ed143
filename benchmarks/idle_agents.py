"""A thousand agents that find no work, on one replica and PostgreSQL, over real HTTP.

Each waits as long as the service's `Retry-After` says and then connects anew, since the service has closed a connection
that was silent for seconds. The agents of a farm have started at different times: the first questions are spread over
SETTLING_S. Figures, of the time after that:

    cpu_share        of one core, that the service's process takes
    requests_per_s   that arrive
"""

import asyncio
import random
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from benchmarks import filled_farm
from benchmarks.processes import running_service, wait_until_warm
from benchmarks.queue_throughput import processor_s
from benchmarks.results_file import Figure, Target, record
from latency_service.database import Database

AGENTS = 1000
SETTLING_S, LASTING_S, REPETITIONS = 45.0, 30.0, 3
QUICK_AGENTS, QUICK_SETTLING_S, QUICK_LASTING_S, QUICK_REPETITIONS = 50, 2.0, 3.0, 1
SEED = 0


def run(*, quick: bool) -> None:
    agents = QUICK_AGENTS if quick else AGENTS
    serials = [filled_farm.serial(number) for number in range(agents)]
    with tempfile.TemporaryDirectory() as name, filled_farm.durable_postgresql() as url:
        database = Database(url)
        with database.writing() as session:
            filled_farm.enrol(session, serials)
            filled_farm.store_converted(session, [])
        filled_farm.refresh_statistics(database)
        database.dispose()
        with running_service(Path(name), database_url=url) as (service, address):
            wait_until_warm(address)
            farm = _Farm(address, psutil.Process(service.process.pid))
            asyncio.run(farm.idle(serials, quick=quick))
    record(
        "idle_agents",
        settings={"agents": agents, "lasting_s": QUICK_LASTING_S if quick else LASTING_S},
        figures={
            "cpu_share": Figure.over(farm.cpu_shares, "cores"),
            "requests_per_s": Figure.over(farm.requests_per_s, "requests/s"),
        },
        targets={"cpu_share": Target("<=", 0.10)},
        save=not quick,
    )


class _Farm:
    def __init__(self, address: str, service: psutil.Process) -> None:
        self._address, self._service = address, service
        self._requests = 0
        self.cpu_shares: list[float] = []
        self.requests_per_s: list[float] = []

    async def idle(self, serials: list[str], *, quick: bool) -> None:
        settling_s, lasting_s = (QUICK_SETTLING_S, QUICK_LASTING_S) if quick else (SETTLING_S, LASTING_S)
        generator = random.Random(SEED)
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self._address, trust_env=False, timeout=60, limits=limits) as http:
            starts_s = [generator.uniform(0, settling_s) for _ in serials]
            agents = [asyncio.create_task(self._agent(http, *agent)) for agent in zip(serials, starts_s, strict=True)]
            await asyncio.sleep(settling_s)
            for _ in range(QUICK_REPETITIONS if quick else REPETITIONS):
                before_s, before, started = processor_s(self._service), self._requests, time.perf_counter()
                await asyncio.sleep(lasting_s)
                wall_s = time.perf_counter() - started
                self.cpu_shares.append((processor_s(self._service) - before_s) / wall_s)
                self.requests_per_s.append((self._requests - before) / wall_s)
            for agent in agents:
                assert not agent.done(), "an agent has given up"
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)

    async def _agent(self, http: httpx.AsyncClient, serial: str, start_s: float) -> None:
        await asyncio.sleep(start_s)
        while True:
            answer = await http.post("/v1/leases", json={"serial": serial})
            assert answer.status_code == 204, "there is no work"
            self._requests += 1
            await asyncio.sleep(float(answer.headers["Retry-After"]))
