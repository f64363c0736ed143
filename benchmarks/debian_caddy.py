"""Debian's real Caddy with the project's Caddyfile: the proxy in front of several services, in tests and benchmarks."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.debian_packages import unpacked
from benchmarks.processes import Command

CADDYFILE = Path(__file__).parent.parent / "deploy" / "Caddyfile"
START_S = 20.0


def program() -> Path:
    """Raises CannotInstall."""
    return unpacked("caddy", ["caddy"]) / "usr" / "bin" / "caddy"


def words(caddyfile: Path | str) -> list[str]:
    """As in docker-compose.yml."""
    return ["run", "--config", str(caddyfile), "--adapter", "caddyfile"]


def on_this_machine(caddyfile: str, addresses: Mapping[str, int]) -> str:
    """A Caddyfile with `HOST:PORT` of each container said as a port of 127.0.0.1, and listening there alone."""
    for name, port in addresses.items():
        caddyfile, times = re.subn(rf"(?<![\w.-]){re.escape(name)}(?!\w)", f"127.0.0.1:{port}", caddyfile)
        assert times, f"the Caddyfile does not name {name}"
    return caddyfile.replace("{\n", "{\n\tdefault_bind 127.0.0.1\n", 1)


@contextmanager
def running_caddy(folder: Path, addresses: Mapping[str, int], *, port: int) -> Iterator[str]:
    """Gives the proxy's address once it answers, whoever is behind it."""
    (folder / "Caddyfile").write_text(on_this_machine(CADDYFILE.read_text(), addresses))
    command = [str(program()), *words(folder / "Caddyfile")]
    own = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    url = f"http://127.0.0.1:{port}"
    with Command(*command, log=folder / "caddy.log", environment=own | {"PADNAS_PORT": str(port)}) as caddy:
        deadline = time.monotonic() + START_S
        while not _answers(url):
            assert caddy.process.poll() is None, caddy.log.read_text()
            assert time.monotonic() < deadline, caddy.log.read_text()
            time.sleep(0.05)
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10.0).status_code > 0
    except httpx.TransportError:
        return False
