"""One worker a device; workers here are small programs of their own that do what a test wants."""

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from device_agents import farm
from device_agents.farm import BACKOFF_MAX_S, BACKOFF_S, Farm, rest_after

# Writes its number down, then waits for its input to end or a signal, as a worker of an agent does.
WAITS = "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); sys.stdin.read()"
FAILS = "import os, sys; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); sys.exit(1)"


@contextmanager
def running(program: str, folder: Path, devices: Callable[[Collection[str]], Sequence[str]]) -> Iterator[None]:
    stop = threading.Event()
    workers = Farm(
        command=lambda device: [sys.executable, "-c", program, str(folder / device)],
        find=devices,
        generator=random.Random(0),
    )
    thread = threading.Thread(target=workers.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def started(folder: Path, device: str, *, times: int = 1) -> list[int]:
    """Process ids of a device's workers, once there have been so many."""
    deadline = time.monotonic() + 60
    while True:
        file = folder / device
        pids = [int(line) for line in file.read_text().splitlines()] if file.exists() else []
        if len(pids) >= times:
            return pids
        assert time.monotonic() < deadline, f"{device} had {len(pids)} workers"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_device_has_a_worker_and_one_that_comes_later_gets_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "LOOK_S", 0.05)
    monkeypatch.setattr(farm, "WATCH_S", 0.01)
    devices = ["first", "second"]
    with running(WAITS, tmp_path, lambda _: devices):
        pids = started(tmp_path, "first") + started(tmp_path, "second")
        devices.append("third")
        pids += started(tmp_path, "third")
        assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))
    assert len(pids) == 3


def test_a_worker_that_ended_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm, "BACKOFF_S", 0.01)
    monkeypatch.setattr(farm, "WATCH_S", 0.01)
    with running(FAILS, tmp_path, lambda _: ["phone"]):
        started(tmp_path, "phone", times=3)


@pytest.mark.parametrize(("well_after_s", "expected"), [(3600.0, [1, 2, 3]), (-1.0, [1, 1, 1])])
def test_failures_in_a_row_are_counted_and_a_worker_that_ran_well_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, well_after_s: float, expected: list[int]
) -> None:
    counted: list[int] = []

    def rest_after_none(failures: int, _: random.Random) -> float:
        counted.append(failures)
        return 0.0

    monkeypatch.setattr(farm, "WELL_AFTER_S", well_after_s)
    monkeypatch.setattr(farm, "WATCH_S", 0.01)
    monkeypatch.setattr(farm, "rest_after", rest_after_none)
    with running(FAILS, tmp_path, lambda _: ["phone"]):
        started(tmp_path, "phone", times=4)
    assert counted[:3] == expected


def test_a_worker_that_fails_again_and_again_rests_longer_each_time() -> None:
    rests = [rest_after(n, random.Random(0)) for n in range(1, 30)]
    assert all(a < b for a, b in pairwise(rests[:9]))
    assert BACKOFF_S / 2 <= rests[0] <= BACKOFF_S
    assert max(rests) <= BACKOFF_MAX_S


def test_rests_of_devices_that_failed_together_differ() -> None:
    generator = random.Random(0)
    assert len({rest_after(3, generator) for _ in range(20)}) == 20


def test_a_device_that_has_a_worker_is_named_so_that_nobody_disturbs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "LOOK_S", 0.01)
    monkeypatch.setattr(farm, "WATCH_S", 0.01)
    asked: list[list[str]] = []

    def find(at_work: Collection[str]) -> list[str]:
        asked.append(list(at_work))
        return ["phone"]

    with running(WAITS, tmp_path, find):
        started(tmp_path, "phone")
        deadline = time.monotonic() + 60
        while len(asked) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert asked[:2] == [[], ["phone"]]
