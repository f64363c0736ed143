"""A worker of procrastinate with nothing to do but to take tasks: the peer of `queue_throughput`.

`python -m benchmarks.procrastinate_tasks prepare URL` makes its tables; `work URL AGENTS SECONDS` says how many tasks a
second it finishes with so many at once.
"""

import asyncio
import sys
import time
from typing import Any

import procrastinate
from sqlalchemy import make_url

TASKS_PER_S = 1500  # more than it does
FEW = 500  # queued in one statement


def app_for(url: str) -> procrastinate.App:
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo, min_size=4, max_size=40))


async def prepare(url: str) -> None:
    async with (app := app_for(url)).open_async():
        await app.schema_manager.apply_schema_async()


async def work(url: str, *, agents: int, lasting_s: float) -> float:
    """Tasks a second."""
    async with (app := app_for(url)).open_async():
        done = 0

        @app.task(name="empty")
        async def empty(number: int) -> None:  # noqa: ARG001 - as `defer` wants it
            nonlocal done
            done += 1

        await app.connector.execute_query_async("DELETE FROM procrastinate_events")
        await app.connector.execute_query_async("DELETE FROM procrastinate_jobs")
        for start in range(0, int(TASKS_PER_S * lasting_s), FEW):
            few: list[dict[str, Any]] = [{"number": number} for number in range(start, start + FEW)]
            await empty.batch_defer_async(*few)
        await app.connector.execute_query_async("ANALYZE procrastinate_jobs")
        started = time.perf_counter()
        worker = asyncio.create_task(
            app.run_worker_async(
                concurrency=agents,
                wait=False,
                listen_notify=False,
                install_signal_handlers=False,
            )
        )
        await asyncio.wait([worker], timeout=lasting_s)
        wall_s, finished = time.perf_counter() - started, done
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return finished / wall_s


match sys.argv[1:]:
    case ["prepare", url]:
        asyncio.run(prepare(url))
    case ["work", url, agents, lasting_s]:
        print(asyncio.run(work(url, agents=int(agents), lasting_s=float(lasting_s))))
