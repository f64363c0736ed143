"""Debian's real `adbd` as a device, for the tests of everything that speaks to one; and the shells of devices."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.debian_adbd import Adbd
from benchmarks.faulty_wire import FaultyWire
from device_agents.adb import AdbLink, parse_target


@pytest.fixture(params=["sh", "bash", "mksh", "busybox"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """The words that run a script: mksh is Android's shell, BusyBox that of small boards."""
    name: str = request.param
    program = shutil.which(name)
    if program is None:
        folder: Path = request.getfixturevalue("debian_shells")
        program = next(str(path) for path in (folder / "bin" / name, folder / "usr/bin" / name) if path.exists())
    return [program, "sh"] if name == "busybox" else [program]


@pytest.fixture
def adbd(debian_adbd: Path, tmp_path: Path) -> Iterator[Adbd]:  # noqa: ARG001
    """A device of this test alone; its shells start in `tmp_path/device`."""
    with Adbd(tmp_path / "device") as adbd:
        yield adbd


@pytest.fixture
def wire(adbd: Adbd) -> Iterator[FaultyWire]:
    """Between `linked` and `adbd`, so far without a fault."""
    with FaultyWire(adbd.port) as wire:
        yield wire


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Callable[[int], AdbLink]]:
    """Connects to a port of 127.0.0.1."""
    links = []

    def connect(port: int) -> AdbLink:
        links.append(AdbLink(parse_target(f"adb:127.0.0.1:{port}"), keys=tmp_path / "adbkey"))
        links[-1].connect()
        return links[-1]

    yield connect
    for link in links:
        link.close()
