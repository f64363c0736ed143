"""`padnas-agent`: run, doctor, devices."""

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.adb import DEFAULT_KEY, why_no_usb
from device_agents.doctor import Finding, examine_local
from device_agents.errors import DeviceFault
from device_agents.local_device import LocalDevice, processor_name, runtime_is_installed
from device_agents.loop import Agent
from device_agents.reachable import reachable
from latency_contract.connection import NotThisService, ServiceConnection, ServiceRefused

app = typer.Typer(
    help="A device agent: leases jobs from the latency service and measures them on a device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DeviceOption = Annotated[str, typer.Option("--device", help="what to measure on: local (this machine)")]
TcpOption = Annotated[
    list[str] | None,
    typer.Option("--tcp", envvar="PADNAS_ADB", metavar="HOST:PORT", help="a device that listens there; repeatable"),
]
AdbKeyOption = Annotated[
    Path, typer.Option("--adb-key", envvar="PADNAS_ADB_KEY", help="key by which phones know this computer")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


@app.callback()
def main() -> None:
    """Give `--help` to a command to see an example of it."""


@app.command(epilog="Example: padnas-agent run --service http://127.0.0.1:8000 --device local")
def run(
    service: Annotated[str, typer.Option("--service", envvar="PADNAS_SERVICE", help="URL of the latency service")],
    device: DeviceOption = "local",
    max_jobs: Annotated[int, typer.Option(min=1, max=64, help="jobs of one lease, measured in turns")] = 16,
    stop_with_input: Annotated[bool, typer.Option("--stop-with-input", help="stop when standard input ends")] = False,
) -> None:
    """Measure for a service until stopped. On SIGTERM or Ctrl-C, the lease is given back first."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _must_be_local(device)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if stop_with_input:
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    try:
        with ServiceConnection(service) as connection, LocalDevice() as local:
            Agent(connection, local, stop=stop, max_jobs=max_jobs).run()
    except (DeviceFault, NotThisService, ServiceRefused) as error:
        _fail(str(error))


@app.command(epilog="Example: padnas-agent doctor --device local")
def doctor(device: DeviceOption = "local", as_json: JsonOption = False) -> None:
    """Say whether a device is fit to measure, and why not."""
    _must_be_local(device)
    checks = examine_local()
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks]))
    else:
        table = Table("check", "finding", "seen", "what to do", box=None)
        for check in checks:
            table.add_row(*check)
        Console().print(table)
    if any(check.finding == Finding.UNFIT for check in checks):
        raise typer.Exit(1)


@app.command(epilog="Example: padnas-agent devices --tcp 192.168.1.7:5555 --json")
def devices(tcp: TcpOption = None, adb_key: AdbKeyOption = DEFAULT_KEY, as_json: JsonOption = False) -> None:
    """List what can be measured on from here: this machine, phones at USB, and devices at the addresses given."""
    local = "ready" if runtime_is_installed() else "LiteRT is missing"
    try:
        found = reachable(tcp or [], keys=adb_key)
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    rows = [("local", processor_name(), local, ""), *((str(r.target), r.model, r.state, r.advice) for r in found)]
    if as_json:
        names = ("device", "model", "state", "advice")
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    else:
        table = Table("device", "model", "state", "what to do", box=None)
        for row in rows:
            table.add_row(*map(escape, row))
        Console().print(table)
    if missing := why_no_usb():
        typer.echo(missing, err=True)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    """Whoever started this agent holds the other end, and lets go of it however it ends."""
    sys.stdin.buffer.read()
    stop.set()


def _must_be_local(device: str) -> None:
    if device != "local":
        typer.echo(f"This agent cannot measure on '{device}'. Use --device local.", err=True)
        raise typer.Exit(2)


def _fail(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(1)
