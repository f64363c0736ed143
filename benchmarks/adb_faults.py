"""A table that is built while everything breaks: 100 random faults between a service, its agent and a real `adbd`.

Every operator of `large` is asked for. Meanwhile, at random moments, the wire to the device is cut, half closed,
stalled, slowed down, damaged or refused, the device is rebooted, its runner is killed, the agent is killed with its
worker, and the service is killed; agent and service are started again. The log of faults is in the results. Figures:

    faults       that happened before the table was complete
    lost         operators without a measurement at the end
    duplicates   measurements beyond one for each operator
    wall_s       until the table was complete
"""

import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from sqlalchemy import select

from benchmarks.adb_board import running_board, start_farm
from benchmarks.debian_adbd import Adbd
from benchmarks.faulty_wire import Direction, Fault, FaultyWire
from benchmarks.processes import Program, running_service
from benchmarks.results_file import Figure, Target, record
from latency_contract.connection import ServiceConnection
from latency_contract.operators import Operator
from latency_contract.tables import Purpose
from latency_service.database import Database
from latency_service.models import MeasurementRow
from search_client.latencies import LatencyService
from search_client.spaces import load_space

SEED = 0
FAULTS = 100
PAUSE_S = 1.0  # between two faults, on average; drawn from an exponential distribution
LASTING_S = (0.2, 3.0)  # how long a stall, a slow wire or a refusal lasts
QUICK_OPERATORS, QUICK_FAULTS = 24, 5


def run(*, quick: bool) -> None:
    operators = load_space("large").operators()[: QUICK_OPERATORS if quick else None]
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        bench = _Bench(Path(name), random.Random(SEED))
        log = bench.build(operators, faults=QUICK_FAULTS if quick else FAULTS)
        wall_s = time.perf_counter() - started
        measured = bench.measured_subjects()
    wanted = {operator.id for operator in operators}
    figures = {
        "faults": len(log),
        "lost": len(wanted - set(measured)),
        "duplicates": len(measured) - len(set(measured)),
        "wall_s": wall_s,
    }
    units = {"lost": "operators", "duplicates": "measurements", "faults": "faults", "wall_s": "s"}
    record(
        "adb_faults",
        settings={"space": "large", "operators": len(operators), "seed": SEED, "log": log},
        figures={key: Figure(value, value, value, units[key]) for key, value in figures.items()},
        targets={"faults": Target(">=", FAULTS), "lost": Target("<=", 0), "duplicates": Target("<=", 0)},
        save=not quick,
    )


class _Bench:
    """A service, an agent, a wire and a device, all of which can be broken."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        self._folder = folder
        self._generator = generator
        self._service = ExitStack()
        self._agent: Program | None = None
        self._url = ""

    def build(self, operators: Sequence[Operator], *, faults: int) -> list[str]:
        """Have the operators measured, however long it takes; returns what was broken when."""
        log: list[str] = []
        done = threading.Event()
        with ExitStack() as stack:
            adbd = stack.enter_context(running_board(self._folder))
            wire = stack.enter_context(FaultyWire(adbd.port))
            stack.callback(self._service.close)
            stack.callback(self._stop_agent)
            self._start_service(port=0)
            self._start_agent(wire)
            asking = threading.Thread(target=self._ask, args=(operators, done))
            asking.start()
            began = time.monotonic()
            while len(log) < faults and not done.wait(self._generator.expovariate(1 / PAUSE_S)):
                at_s = time.monotonic() - began
                log.append(f"{at_s:.1f} s: {self._break_something(adbd, wire)}")
            asking.join()
        return log

    def measured_subjects(self) -> list[str]:
        """One entry for each measurement of an operator asked for."""
        database = Database(f"sqlite:///{self._folder / 'service.db'}")
        with database.reading() as session:
            subjects = list(session.scalars(select(MeasurementRow.subject_id)))
        database.dispose()
        return subjects

    def _ask(self, operators: Sequence[Operator], done: threading.Event) -> None:
        with ServiceConnection(self._url) as connection:
            service = LatencyService(connection, device=None, client="benchmark", wait=True)
            service.measured(operators, purpose=Purpose.TABLE, on_progress=lambda _: None)
        done.set()

    def _break_something(self, adbd: Adbd, wire: FaultyWire) -> str:
        """One fault, and what mends it; returns its name."""
        lasting_s = self._generator.uniform(*LASTING_S)
        direction = self._generator.choice(list(Direction))

        def wire_fault(fault: Fault) -> Callable[[], None]:
            def inject() -> None:
                wire.inject(fault, direction=direction)
                if fault in (Fault.STALL, Fault.SLOW, Fault.REFUSE):
                    if fault == Fault.REFUSE:  # what is open would not notice
                        wire.inject(Fault.CUT)
                    time.sleep(lasting_s)
                    wire.heal()

            return inject

        def reboot() -> None:
            adbd.kill()
            time.sleep(lasting_s)
            adbd.start()

        def kill_agent() -> None:
            assert self._agent is not None
            workers = psutil.Process(self._agent.process.pid).children()
            self._agent.kill()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self._start_agent(wire)

        faults: dict[str, Callable[[], None]] = {
            **{f"wire: {fault}": wire_fault(fault) for fault in Fault},
            "adbd killed and started": reboot,
            "runner killed": self._kill_runner,
            "agent killed and started": kill_agent,
            "service killed and started": self._kill_service,
        }
        name = self._generator.choice(list(faults))
        faults[name]()
        return name

    def _kill_runner(self) -> None:
        """What runs plans in the device's folder, if anything does at this moment."""
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [])[-2:] == ["plan", "steps"]:
                with suppress(psutil.NoSuchProcess):
                    if process.cwd().startswith(f"{self._folder}/padnas"):
                        process.kill()

    def _kill_service(self) -> None:
        port = int(self._url.rpartition(":")[2])
        self._program.kill()
        self._service.close()
        self._start_service(port=port)

    def _start_service(self, *, port: int) -> None:
        self._program, self._url = self._service.enter_context(running_service(self._folder, port=port))

    def _start_agent(self, wire: FaultyWire) -> None:
        self._agent = start_farm(self._folder, self._url, port=wire.port)

    def _stop_agent(self) -> None:
        if self._agent is not None:
            self._agent.stop()
