"""An agent whose device is a script: the agent's own loop on the real wire, and a pause where a block would run.

`python -m benchmarks.scripted_agent URL SERIAL`. For what concerns the service: six agents that really measured on one
machine would disturb nothing so much as each other.
"""

import logging
import signal
import sys
import threading
import time
from pathlib import Path

from device_agents.loop import Agent
from latency_contract.connection import ServiceConnection
from latency_contract.devices import DeviceKind, DeviceReport
from latency_contract.protocols import Protocol
from tests.device_agents.scripted_device import ScriptedDevice

BLOCK_S = 0.1  # an operator takes six rounds of two blocks and so 1.2 s
MAX_JOBS = 8


def main(url: str, serial: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    report = DeviceReport(
        serial=serial,
        model="Scripted",
        kind=DeviceKind.BOARD,
        soc="none",
        os_build="none",
        protocol=Protocol(runtime="litert", runtime_version="2.3.0"),
    )

    def block(_: Path) -> float:
        time.sleep(BLOCK_S)
        return 1.0

    with ServiceConnection(url) as connection:
        Agent(connection, ScriptedDevice(block, report=report), stop=stop, max_jobs=MAX_JOBS).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
