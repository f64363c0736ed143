"""This machine as a Linux board behind a real `adbd`: what the benchmarks of ADB measure on."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.debian_adbd import Adbd
from benchmarks.processes import Program


@contextmanager
def running_board(folder: Path) -> Iterator[Adbd]:
    """Its python3 is this one, which has LiteRT."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python3").chmod(0o755)
    with Adbd(folder / "board", programs=programs) as adbd:
        yield adbd


def start_adb_agent(folder: Path, url: str, *, port: int, max_jobs: int = 16) -> Program:
    """An agent that measures on the device whose `adbd` is reached at a port of 127.0.0.1."""
    device = ["--device", f"adb:127.0.0.1:{port}", "--max-jobs", str(max_jobs)]
    return Program("device_agents", "run", "--service", url, *device, *_places(folder), log=folder / "agent.log")


def start_farm(folder: Path, url: str, *, port: int) -> Program:
    """An agent that looks after its worker for that device."""
    devices = ["--device", "all", "--tcp", f"127.0.0.1:{port}"]
    return Program("device_agents", "run", "--service", url, *devices, *_places(folder), log=folder / "farm.log")


def _places(folder: Path) -> list[str]:
    return ["--adb-key", str(folder / "adbkey"), "--device-folder", str(folder / "padnas")]
