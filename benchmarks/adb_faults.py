"""A table that is built while everything breaks: 100 random faults between a service, its agent and a real `adbd`.

Every operator of `large` is asked for. Meanwhile, at random moments, the wire to the device is cut, half closed,
stalled, slowed down, damaged or refused, the device is rebooted (another boot id), its `adbd` restarted, its storage
said to be full, its runner killed, the agent killed with its worker, and the service killed; agent and service are
started again. A fault counts if it has struck: bytes were under way that a stall held up, a runner was there to be
killed. The log of faults is in the results. Figures:

    faults       that struck before the table was complete
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

from benchmarks.adb_board import Board, running_board, running_plan, start_farm
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
LASTING_S = (0.2, 3.0)  # how long a stall, a slow wire, a refusal or a full storage lasts
STRIKE_S = 5.0  # a fault that has met nothing by then is called off
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
        """Have the operators measured, however long it takes; returns which faults struck when."""
        log: list[str] = []
        done = threading.Event()
        with ExitStack() as stack:
            board = stack.enter_context(running_board(self._folder))
            wire = stack.enter_context(FaultyWire(board.port))
            stack.callback(self._service.close)
            stack.callback(self._stop_agent)
            self._start_service(port=0)
            self._start_agent(wire)
            asking = threading.Thread(target=self._ask, args=(operators, done))
            asking.start()
            began = time.monotonic()
            while len(log) < faults and not done.wait(self._generator.expovariate(1 / PAUSE_S)):
                fault = self._break_something(board, wire)
                if fault is not None and not done.is_set():
                    log.append(f"{time.monotonic() - began:.1f} s: {fault}")
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

    def _break_something(self, board: Board, wire: FaultyWire) -> str | None:
        """One fault, and what mends it; returns its name if it has struck."""
        lasting_s = self._generator.uniform(*LASTING_S)
        direction = self._generator.choice(list(Direction))

        def wire_fault(fault: Fault) -> Callable[[], bool]:
            def inject() -> bool:
                wire.inject(fault, direction=direction)
                if fault == Fault.REFUSE:  # what is open would not notice
                    wire.inject(Fault.CUT)
                struck = wire.struck.wait(STRIKE_S)
                if fault in (Fault.STALL, Fault.SLOW, Fault.REFUSE):
                    time.sleep(lasting_s)
                wire.heal()
                return struck

            return inject

        def restart_adbd() -> bool:
            board.kill()
            time.sleep(lasting_s)
            board.start()
            return True

        def reboot() -> bool:
            board.reboot()
            return True

        def fill_up() -> bool:
            board.fill_up()
            time.sleep(lasting_s)
            asked = board.asked_for_space()
            board.clear_up()
            return asked

        def kill_agent() -> bool:
            assert self._agent is not None
            workers = psutil.Process(self._agent.process.pid).children()
            self._agent.kill()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self._start_agent(wire)
            return True

        faults: dict[str, Callable[[], bool]] = {
            **{f"wire: {fault}": wire_fault(fault) for fault in Fault},
            "adbd killed and started": restart_adbd,
            "device rebooted": reboot,
            "storage full": fill_up,
            "runner killed": self._kill_runner,
            "agent killed and started": kill_agent,
            "service killed and started": self._kill_service,
        }
        name = self._generator.choice(list(faults))
        return name if faults[name]() else None

    def _kill_runner(self) -> bool:
        """What runs plans in the device's folder, once anything does."""
        runner = running_plan(self._folder, patience_s=STRIKE_S)
        if runner is None:
            return False
        with suppress(psutil.NoSuchProcess):
            runner.kill()
        return True

    def _kill_service(self) -> bool:
        port = int(self._url.rpartition(":")[2])
        self._program.kill()
        self._service.close()
        self._start_service(port=port)
        return True

    def _start_service(self, *, port: int) -> None:
        self._program, self._url = self._service.enter_context(running_service(self._folder, port=port))

    def _start_agent(self, wire: FaultyWire) -> None:
        self._agent = start_farm(self._folder, self._url, port=wire.port)

    def _stop_agent(self) -> None:
        if self._agent is not None:
            self._agent.stop()
