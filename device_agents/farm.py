"""Every device within reach, each with a worker process of its own that is started again when it ends.

A worker that brings itself down takes no other with it, and is not restarted in a tight loop.
"""

import logging
import random
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

LOOK_S = 10.0  # between two looks for devices that have come
WATCH_S = 0.5  # between two looks at the workers
WELL_AFTER_S = 600.0  # a worker that ran for so long had no fault in starting, which may take minutes
BACKOFF_S, BACKOFF_MAX_S = 2.0, 600.0
STOP_S = 30.0  # for workers to give their leases back


@dataclass
class _Worker:
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0  # seconds of a monotonic clock, as below
    start_at: float = 0.0  # not before
    failures: int = 0  # in a row


class Farm:
    def __init__(
        self,
        *,
        command: Callable[[str], Sequence[str]],
        find: Callable[[Collection[str]], Sequence[str]],
        generator: random.Random,
    ) -> None:
        """`find` names the devices that are ready, without touching those that it is given, which have a worker;
        `command` starts a worker for one. A worker ends with its input.
        """
        self._command = command
        self._find = find
        self._generator = generator
        self._workers: dict[str, _Worker] = {}

    def run(self, stop: threading.Event) -> None:
        """Look for devices and keep their workers alive, until told to stop."""
        look_at = time.monotonic()
        try:
            while not stop.is_set():
                if time.monotonic() >= look_at:
                    for device in self._find(self._workers):
                        self._workers.setdefault(device, _Worker())
                    look_at = time.monotonic() + LOOK_S
                for device, worker in self._workers.items():
                    self._attend(device, worker)
                stop.wait(WATCH_S)
        finally:
            self._end()

    def _attend(self, device: str, worker: _Worker) -> None:
        """Start a worker that does not run; after its n-th failure in a row no sooner than its rest is over."""
        now = time.monotonic()
        if worker.process is None:
            if now >= worker.start_at:
                log.info("starting a worker for %s", device)
                worker.process = subprocess.Popen(self._command(device), stdin=subprocess.PIPE, start_new_session=True)
                worker.started_at = now
            return
        status = worker.process.poll()
        if status is None:
            return
        worker.process.communicate()
        worker.process = None
        worker.failures = 1 if now - worker.started_at > WELL_AFTER_S else worker.failures + 1
        rest_s = rest_after(worker.failures, self._generator)
        worker.start_at = now + rest_s
        log.warning("the worker for %s ended with status %d; starting it again in %.0f s", device, status, rest_s)

    def _end(self) -> None:
        """Let the workers give their leases back; whoever takes too long is ended."""
        running = [worker.process for worker in self._workers.values() if worker.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()


def rest_after(failures: int, generator: random.Random) -> float:
    """Seconds: between half and the whole of BACKOFF_S * 2^(n-1), at most BACKOFF_MAX_S, for the n-th in a row."""
    whole_s = min(BACKOFF_S * 2.0 ** min(failures - 1, 30), BACKOFF_MAX_S)
    return whole_s * generator.uniform(0.5, 1.0)
