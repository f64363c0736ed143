"""The three programs as processes of their own, for benchmarks and end-to-end tests."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import psutil

PATIENCE_S = 60.0  # for a program to start
STOP_S = 30.0  # for a program to end after SIGTERM


class Command:
    """A running command; its output goes to a file."""

    def __init__(self, *command: str, log: Path, environment: Mapping[str, str] = {}) -> None:
        self.log = log
        self.name = " ".join(command)
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for_line(self, pattern: str) -> str:
        """The first group of a pattern, once the output has it."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.log.read_text()):
                return match.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{self.name} did not say {pattern!r}:\n{self.log.read_text()}")

    def stop(self) -> int:
        """End it as an operator would; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


class Program(Command):
    """One of the three programs, with this Python."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        super().__init__(sys.executable, "-m", module, *arguments, log=log)


@contextmanager
def running_service(
    folder: Path, *arguments: str, port: int = 0, database_url: str | None = None
) -> Iterator[tuple[Program, str]]:
    """A service, by default on an SQLite database in `folder`, and its address."""
    database_url = database_url or f"sqlite:///{folder / 'service.db'}"
    options = ["--port", str(port), "--database-url", database_url, *arguments]
    with Program("latency_service.cli", "serve", *options, log=folder / "service.log") as program:
        yield program, program.wait_for_line(r"latency service on (http://\S+),")


def start_agent(folder: Path, url: str, *options: str) -> Program:
    """An agent that measures on this machine."""
    return Program("device_agents", "run", "--service", url, "--device", "local", *options, log=folder / "agent.log")


def wait_until_warm(address: str) -> None:
    """Until TensorFlow is imported beside the service, which takes the machine's time too."""
    deadline = time.monotonic() + PATIENCE_S
    with httpx.Client(base_url=address, trust_env=False) as http:
        while http.get("/readyz").json()["converter"] != "warm":
            assert time.monotonic() < deadline, "the converter did not get warm"
            time.sleep(0.1)


class PeakMemory:
    """While entered, watches the memory of a process and of its descendants, those of an agent apart.

    Memory that processes share is counted once (PSS): a runner forks for every turn, and shares nearly all of its own.
    """

    INTERVAL_S = 0.2

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._of_agent: set[psutil.Process] = set()
        self.own_mb = 0.0  # of the process and what it started, without an agent: the most at one moment
        self.agent_mb = 0.0  # of the agent and what it started

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.INTERVAL_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                own, agent = 0.0, 0.0
                for process in [self._root, *self._root.children(recursive=True)]:
                    megabytes = self._megabytes(process)
                    if process in self._of_agent:
                        agent += megabytes
                    else:
                        own += megabytes
                self.own_mb, self.agent_mb = max(self.own_mb, own), max(self.agent_mb, agent)

    def _megabytes(self, process: psutil.Process) -> float:
        """0 of one that has ended meanwhile."""
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "device_agents" in process.cmdline() or process.parent() in self._of_agent:
                self._of_agent.add(process)
            return float(process.memory_full_info().pss) / 1e6
        return 0.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
