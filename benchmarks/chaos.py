"""kill -9 of anything at any moment, while six agents measure 300 operators.

As docker-compose.yml has it: two services that convert nothing, one that does, a proxy in front of them, PostgreSQL.
The agents are processes with the agent's own loop and a scripted device behind it (scripted_agent.py): what they report
is no measurement of anything. What breaks between an agent and a real `adbd` is in adb_faults.py. A kill is due once as
many operators are measured as were drawn for it; what is killed is drawn too, and is away for up to two seconds. What
ends by itself, as a service that starts while PostgreSQL is away, is started again at once. Meanwhile a holder that
always comes too late (late_holder.py) reports with tokens of leases whose jobs others have. Then the same on SQLite,
with one service that converts itself. Figures, those of SQLite with the suffix `_sqlite`:

    kills                 by kill -9 before the last operator was measured; the log is in the results
    lost                  operators without a measurement at the end
    duplicates            measurements beyond one for each operator
    stale_accepted        requests with a stale token that were answered as if it were valid, or measurements stored by
                          them
    stale_refused         such requests that were refused
    ended_by_themselves   programs that ended though nobody had killed them; their last words are in the results
    wall_s                until everything was measured
"""

import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy import select

from benchmarks.debian_caddy import running_caddy
from benchmarks.late_holder import SERIAL, LateHolder
from benchmarks.postgresql import PostgresqlServer, running_server
from benchmarks.processes import Program, free_port
from benchmarks.results_file import Figure, Target, record
from latency_contract.connection import ServiceConnection
from latency_contract.operators import Operator
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import MeasurementRow
from search_client.errors import NotMeasurable
from search_client.latencies import LatencyService
from search_client.spaces import load_space

SEED = 0
KILLS, OPERATORS, AGENTS = 50, 300, 6
QUICK_KILLS, QUICK_OPERATORS = 5, 24
PAUSE_S = 0.5  # between two kills that are due, on average; drawn from an exponential distribution
DOWN_S = 2.0  # a killed program is away for up to this long
POLL_S = 0.1
GIVE_UP_S = 1800.0  # what is not measured by then is lost
UNITS = {
    "kills": "kills", "lost": "operators", "duplicates": "measurements", "stale_accepted": "requests",
    "stale_refused": "requests", "ended_by_themselves": "programs", "wall_s": "s",
}  # fmt: skip


class Ended(NamedTuple):
    figures: dict[str, float]
    log: list[str]  # of kills
    by_themselves: list[str]  # programs that ended, and their last words


def run(*, quick: bool) -> None:
    generator = random.Random(SEED)
    count, kills = (QUICK_OPERATORS, QUICK_KILLS) if quick else (OPERATORS, KILLS)
    known = [operator for space in ("large", "mbv3") for operator in load_space(space).operators()]
    operators = list(dict.fromkeys(known))[: count + 1]
    assert len(operators) == count + 1
    with tempfile.TemporaryDirectory() as name, running_server() as server, server.database() as url:
        on_postgresql = _Farm(Path(name), url, generator, server).measure(operators, kills=kills)
    with tempfile.TemporaryDirectory() as name:
        on_sqlite = _Farm(Path(name), f"sqlite:///{name}/chaos.db", generator, None).measure(operators, kills=kills)
    figures = on_postgresql.figures | {f"{key}_sqlite": value for key, value in on_sqlite.figures.items()}
    settings = {
        "operators": count, "agents": AGENTS, "seed": SEED, "log": on_postgresql.log, "log_sqlite": on_sqlite.log,
        "ended_by_themselves": on_postgresql.by_themselves, "ended_by_themselves_sqlite": on_sqlite.by_themselves,
    }  # fmt: skip
    targets = {"kills": Target(">=", KILLS)} | {
        key: Target("<=", 0) for key in ("lost", "duplicates", "stale_accepted")
    }
    record(
        "chaos",
        settings=settings,
        figures={key: Figure(n, n, n, UNITS[key.removesuffix("_sqlite")]) for key, n in figures.items()},
        targets=targets | {f"{key}_sqlite": target for key, target in targets.items()},
        save=not quick,
    )


class Programs:
    """What is to run. `start` has how, by name; `running` what was started last."""

    def __init__(self) -> None:
        self.start: dict[str, Callable[[], Program]] = {}
        self.running: dict[str, Program] = {}
        self.ended_by_themselves: list[str] = []  # and their last words
        self._down_until: dict[str, float] = {}  # of what was killed

    def away(self) -> list[str]:
        return [name for name in self.start if name not in self.alive()]

    def alive(self) -> list[str]:
        return [name for name, program in self.running.items() if program.process.poll() is None]

    def kill(self, name: str, *, down_until: float) -> None:
        self.running[name].kill()
        self._down_until[name] = down_until

    def keep_running(self, *, now: float) -> None:
        """Start what is away, unless it was killed and is not due yet."""
        for name in self.away():
            if now < self._down_until.get(name, now):
                continue
            if self._down_until.pop(name, None) is None and name in self.running:
                words = self.running[name].log.read_text().splitlines()
                self.ended_by_themselves.append(f"{name}: {words[-1] if words else ''}")
            self.running[name] = self.start[name]()

    def stop(self) -> None:
        for program in self.running.values():
            program.kill()


class _Farm:
    """Services, agents and a database, all of which are killed."""

    def __init__(
        self, folder: Path, database_url: str, generator: random.Random, postgresql: PostgresqlServer | None
    ) -> None:
        self._folder = folder
        self._database_url = database_url
        self._generator = generator
        self._postgresql = postgresql
        self._programs = Programs()

    def measure(self, operators: Sequence[Operator], *, kills: int) -> Ended:
        """All but the last one, which shows in the end that what was refused would have been taken in time."""
        *wanted, control = operators
        log: list[str] = []
        database = Database(self._database_url)
        database.migrate()
        with ExitStack() as stack:
            stack.callback(database.dispose)
            stack.callback(self._programs.stop)
            url = self._services(stack)
            for number in range(1, AGENTS + 1):
                self._agent(f"agent-{number}", url)
            self._programs.keep_running(now=time.monotonic())
            for name in [name for name in self._programs.start if not name.startswith("agent")]:
                self._programs.running[name].wait_for_line(r"(latency service on)")
            connection = stack.enter_context(ServiceConnection(url))
            service = LatencyService(connection, device=None, client="benchmark", wait=True)
            holder = LateHolder(url, database, like=service.device)
            stack.callback(holder.close)
            began = time.monotonic()
            over = threading.Event()
            asking = threading.Thread(target=self._ask, args=(service, wanted, over))
            asking.start()
            holding = threading.Thread(target=holder.run, args=(over,))
            holding.start()
            due = sorted(self._generator.randrange(len(wanted) * 4 // 5) for _ in range(kills))  # so that all find time
            while not over.wait(self._generator.expovariate(1 / PAUSE_S)) and time.monotonic() < began + GIVE_UP_S:
                self._programs.keep_running(now=time.monotonic())
                done = len(self._measured(database)[0])
                if len(log) < kills and due[len(log)] <= done:
                    at_s = time.monotonic() - began
                    log.append(f"{at_s:.1f} s, {done} measured: {self._kill()}")
            wall_s = time.monotonic() - began
            over.set()
            while holding.is_alive() or asking.is_alive() or self._programs.away():  # what is away comes back
                self._programs.keep_running(now=time.monotonic())
                time.sleep(POLL_S)
            measured, of_holder = self._measured(database)
            for name, program in self._programs.running.items():
                if name.startswith("agent"):
                    program.kill()
            service.request([control], purpose=Purpose.TABLE)
            assert holder.in_time() == 200, "what the late holder reports would be refused anyway"
        ids = {operator.id for operator in wanted}
        figures = {
            "kills": len(log),
            "lost": len(ids - set(measured)),
            "duplicates": len(measured) - len(set(measured)),
            "stale_accepted": holder.accepted + of_holder,
            "stale_refused": holder.refused,
            "ended_by_themselves": len(self._programs.ended_by_themselves),
            "wall_s": wall_s,
        }
        return Ended(figures, log, self._programs.ended_by_themselves)

    def _services(self, stack: ExitStack) -> str:
        """Returns where they are found."""
        if self._postgresql is None:
            return self._service("service")
        urls = {name: self._service(name, "--no-convert") for name in ("service-1", "service-2")}
        urls["converter"] = self._service("converter")
        ports = {f"{name}:8000": int(url.rpartition(":")[2]) for name, url in urls.items()}
        return stack.enter_context(running_caddy(self._folder, ports, port=free_port()))

    def _service(self, name: str, *options: str) -> str:
        port = free_port()
        arguments = ["serve", "--port", str(port), "--database-url", self._database_url, *options]
        log = self._folder / f"{name}.log"
        self._programs.start[name] = lambda: Program("latency_service.cli", *arguments, log=log)
        return f"http://127.0.0.1:{port}"

    def _agent(self, name: str, url: str) -> None:
        log = self._folder / f"{name}.log"
        self._programs.start[name] = lambda: Program("benchmarks.scripted_agent", url, name, log=log)

    def _kill(self) -> str:
        """A kind of program is drawn, then one of those that run; returns its name."""
        alive = self._programs.alive()
        victims: dict[str, list[str]] = {}
        for name in alive:
            victims.setdefault(name.partition("-")[0], []).append(name)
        converting = "converter" if self._postgresql is not None else "service"
        if converting in alive and (children := _tensorflow(self._programs.running[converting])):
            victims.setdefault("converter", []).append("TensorFlow")
        if self._postgresql is not None:
            victims["PostgreSQL"] = ["PostgreSQL"]
        name = self._generator.choice(victims[self._generator.choice(list(victims))])
        down_s = self._generator.uniform(0.0, DOWN_S)
        if name == "TensorFlow":
            for child in children:
                child.kill()
        elif name == "PostgreSQL":
            assert self._postgresql is not None
            self._postgresql.kill()
            time.sleep(down_s)
            self._postgresql.start()
        else:
            self._programs.kill(name, down_until=time.monotonic() + down_s)
        return name

    def _ask(self, service: LatencyService, operators: Sequence[Operator], over: threading.Event) -> None:
        try:
            service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
        except NotMeasurable as failure:
            print(failure)  # they are lost
        finally:
            over.set()

    def _measured(self, database: Database) -> tuple[list[str], int]:
        """A subject for each measurement of an agent, and how many measurements the late holder has."""
        with database.reading() as session:
            rows = session.execute(select(MeasurementRow.subject_id, MeasurementRow.device_serial)).all()
        by_agents = [row.subject_id for row in rows if row.device_serial != SERIAL]
        return by_agents, len(rows) - len(by_agents)


def _tensorflow(service: Program) -> list[psutil.Process]:
    """The process in which a service converts."""
    found = []
    with suppress(psutil.NoSuchProcess):  # ended since, also by an earlier kill
        for child in psutil.Process(service.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if any("spawn_main" in word for word in child.cmdline()):
                    found.append(child)
    return found
