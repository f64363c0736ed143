"""Agents that take no time to measure, in a process of their own: `python -m benchmarks.simulated_agents URL …`.

Each has a thread and a connection that stays, as a worker of `padnas-agent` has. What they did is said in JSON.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import httpx
import typer

from benchmarks import filled_farm
from latency_contract.canonical import content_hash

JSON = {"Content-Type": "application/json"}
ANY_SUBJECT = "f" * 64


class SimulatedAgent:
    """Leases, and reports all of the lease at once, until its time is over or there is no work."""

    def __init__(self, url: str, serial: str, *, batch: int) -> None:
        self._http = httpx.Client(base_url=url, headers=JSON, timeout=60, trust_env=False)
        self._request = json.dumps({"serial": serial, "max_jobs": batch})
        # As text, once: making measurements is not what is looked at here, and would take the machine's time.
        self._measurement = filled_farm.measurement(ANY_SUBJECT, serial=serial).model_dump_json()
        self.cycles = self.operators = 0

    def work(self, until: float) -> None:
        with self._http:
            while time.perf_counter() < until:
                leased = self._http.post("/v1/leases", content=self._request).raise_for_status()
                if leased.status_code == 204:
                    return
                lease = leased.json()
                report = self._report(lease["jobs"])
                self._http.post(f"/v1/leases/{lease['token']}/report", content=report).raise_for_status()
                self.cycles += 1
                self.operators += len(lease["jobs"])

    def _report(self, jobs: list[dict[str, object]]) -> str:
        measured = (
            f'{{"outcome":"measured","job_id":{job["job_id"]},"measurement":'
            f"{self._measurement.replace(ANY_SUBJECT, content_hash(job['subject']), 1)}}}"
            for job in jobs
        )
        return f'{{"outcomes":[{",".join(measured)}]}}'


def main(
    url: str,
    agents: Annotated[int, typer.Option()] = 1,
    batch: Annotated[int, typer.Option()] = 16,
    lasting_s: Annotated[float, typer.Option()] = 10,
) -> None:
    """Let agents work for a while."""
    farm = [SimulatedAgent(url, filled_farm.serial(number), batch=batch) for number in range(agents)]
    started = time.perf_counter()
    with ThreadPoolExecutor(agents) as threads:
        list(threads.map(lambda agent: agent.work(started + lasting_s), farm))
    wall_s = time.perf_counter() - started
    cycles, operators = sum(agent.cycles for agent in farm), sum(agent.operators for agent in farm)
    print(json.dumps({"wall_s": wall_s, "cycles": cycles, "operators": operators}))


if __name__ == "__main__":
    typer.run(main)
