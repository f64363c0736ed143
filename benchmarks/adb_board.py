"""This machine as a Linux board behind a real `adbd`: what the benchmarks of ADB measure on."""

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.debian_adbd import Adbd
from benchmarks.processes import Program


class Board(Adbd):
    """Its python3 is this one, which has LiteRT.

    What cannot be had of this machine's kernel, another boot id and a full storage, is answered by small scripts, which
    the board's shells find before the programs themselves.
    """

    def __init__(self, folder: Path) -> None:
        self._programs = folder / "programs"
        self._programs.mkdir()
        self._asked = folder / "asked-for-space"
        self._add("python3", f'exec {sys.executable} "$@"')
        super().__init__(folder / "board", programs=self._programs)

    def reboot(self) -> None:
        """Off and on again, with another boot id."""
        self.kill()
        boot_id = f"boot-{secrets.token_hex(4)}"
        self._add("cat", f'[ "$*" = /proc/sys/kernel/random/boot_id ] && exec echo {boot_id}\nexec /bin/cat "$@"')
        self.start()

    def fill_up(self, *, free_kb: int = 10) -> None:
        """From now on it says that its storage has no more room than this."""
        self._asked.unlink(missing_ok=True)
        self._add("df", f"touch {self._asked}\necho /dev/block/dm-4 1000000 {1000000 - free_kb} {free_kb} 90% /data")

    def asked_for_space(self) -> bool:
        """Whether anybody has heard that it is full."""
        return self._asked.exists()

    def clear_up(self) -> None:
        (self._programs / "df").unlink()

    def _add(self, name: str, script: str) -> None:
        program = self._programs / f"{name}.new"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        program.rename(self._programs / name)


@contextmanager
def running_board(folder: Path) -> Iterator[Board]:
    with Board(folder) as board:
        yield board


def running_plan(folder: Path, *, patience_s: float) -> psutil.Process | None:
    """What runs a plan on the board whose device folder is in `folder`, once anything does; None if nothing comes."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if (process.info["cmdline"] or [])[-2:] == ["plan", "steps"] and process.cwd().startswith(f"{folder}/"):
                    return process
        time.sleep(0.02)
    return None


def start_adb_agent(folder: Path, url: str, *options: str, port: int, max_jobs: int = 16) -> Program:
    """An agent that measures on the device whose `adbd` is reached at a port of 127.0.0.1."""
    device = ["--device", f"adb:127.0.0.1:{port}", "--max-jobs", str(max_jobs), *options]
    return Program("device_agents", "run", "--service", url, *device, *_places(folder), log=folder / "agent.log")


def start_farm(folder: Path, url: str, *, port: int) -> Program:
    """An agent that looks after its worker for that device."""
    devices = ["--device", "all", "--tcp", f"127.0.0.1:{port}"]
    return Program("device_agents", "run", "--service", url, *devices, *_places(folder), log=folder / "farm.log")


def _places(folder: Path) -> list[str]:
    return ["--adb-key", str(folder / "adbkey"), "--device-folder", str(folder / "padnas")]
