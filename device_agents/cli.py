"""`padnas-agent`: run, doctor, devices."""

import json
import logging
import os
import signal
import sys
import threading
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from device_agents.doctor import Finding, examine_local
from device_agents.errors import DeviceFault
from device_agents.local_device import LocalDevice, processor_name, runtime_is_installed
from device_agents.loop import Agent
from latency_contract.connection import ServiceConnection, ServiceError

app = typer.Typer(
    help="A device agent: leases jobs from the latency service and measures them on a device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DeviceOption = Annotated[str, typer.Option("--device", help="what to measure on: local (this machine)")]
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
    except (DeviceFault, ServiceError) as error:
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


@app.command(epilog="Example: padnas-agent devices --json")
def devices(as_json: JsonOption = False) -> None:
    """List what can be measured on from here."""
    state = "ready" if runtime_is_installed() else "LiteRT is missing"
    if as_json:
        typer.echo(json.dumps([{"device": "local", "model": processor_name(), "state": state}]))
    else:
        table = Table("device", "model", "state", box=None)
        table.add_row("local", processor_name(), state)
        Console().print(table)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    """Whoever started this agent holds the other end, and lets go of it however it ends."""
    while os.read(sys.stdin.fileno(), 4096):  # not the buffer, which an agent that ends could not close meanwhile
        pass
    stop.set()


def _must_be_local(device: str) -> None:
    if device != "local":
        typer.echo(f"This agent cannot measure on '{device}'. Use --device local.", err=True)
        raise typer.Exit(2)


def _fail(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(1)
