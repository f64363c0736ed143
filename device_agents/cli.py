"""`padnas-agent`: run, doctor, devices."""

import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from device_agents.adb import DEFAULT_KEY, parse_target, why_no_usb
from device_agents.adb_device import AdbDevice
from device_agents.doctor import Finding, examine, examine_local
from device_agents.errors import AgentOutdated, DeviceChanged, DeviceFault
from device_agents.farm import Farm
from device_agents.local_device import LocalDevice, processor_name, runtime_is_installed
from device_agents.loop import Agent
from device_agents.opening import open_device
from device_agents.reachable import ReadyDevices, reachable
from latency_contract.connection import ServiceConnection, ServiceError

WORKER = [sys.executable, "-m", "device_agents", "run"]

app = typer.Typer(
    help="A device agent: leases jobs from the latency service and measures them on a device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DeviceOption = Annotated[
    str, typer.Option("--device", help="local (this machine), adb:HOST:PORT, usb (the only phone there) or usb:SERIAL")
]
TcpOption = Annotated[
    list[str] | None,
    typer.Option("--tcp", envvar="PADNAS_ADB", metavar="HOST:PORT", help="a device that listens there; repeatable"),
]
AdbKeyOption = Annotated[
    Path, typer.Option("--adb-key", envvar="PADNAS_ADB_KEY", help="key by which phones know this computer")
]
BinaryOption = Annotated[
    Path | None,
    typer.Option(
        "--benchmark-binary",
        envvar="PADNAS_BENCHMARK_BINARY",
        exists=True,
        dir_okay=False,
        readable=True,
        help="benchmark_model of TensorFlow Lite or LiteRT, built for the device; what a phone is measured with",
    ),
]
FolderOption = Annotated[
    str | None,
    typer.Option("--device-folder", help="where models are kept on the device, instead of the usual place"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


@app.callback()
def main() -> None:
    """Give `--help` to a command to see an example of it."""


@app.command(epilog="Example: padnas-agent run --service http://127.0.0.1:8000 --device local")
def run(
    context: typer.Context,
    service: Annotated[str, typer.Option("--service", envvar="PADNAS_SERVICE", help="URL of the latency service")],
    device: Annotated[
        str, typer.Option("--device", help="local (this machine), adb:HOST:PORT, usb, usb:SERIAL, or all: every phone")
    ] = "local",
    benchmark_binary: BinaryOption = None,
    device_folder: FolderOption = None,
    tcp: TcpOption = None,
    adb_key: AdbKeyOption = DEFAULT_KEY,
    max_jobs: Annotated[int, typer.Option(min=1, max=64, help="jobs of one lease, measured in turns")] = 16,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.01, max=3600, help="to measure for each operator, instead of until its interval is narrow"),
    ] = None,
    stop_with_input: Annotated[bool, typer.Option("--stop-with-input", help="stop when standard input ends")] = False,
) -> None:
    """Measure for a service until stopped. On SIGTERM or Ctrl-C, the lease is given back first.

    With --device all, every phone at USB and every device at --tcp has a worker process of its own.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if stop_with_input:
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    with _sentences():
        _must_be_heeded(context, device)
        if device == "all":
            options = ["--service", service, "--adb-key", str(adb_key), "--max-jobs", str(max_jobs)]
            if benchmark_binary is not None:
                options += ["--benchmark-binary", str(benchmark_binary)]
            if device_folder is not None:
                options += ["--device-folder", device_folder]
            if seconds is not None:
                options += ["--seconds", str(seconds)]
            Farm(
                command=lambda name: [*WORKER, "--device", name, *options, "--stop-with-input"],
                find=ReadyDevices(tcp or [], keys=adb_key),
                generator=random.Random(),
            ).run(stop)
            return
        with (
            ServiceConnection(service) as connection,
            _opened(device, adb_key, benchmark_binary, device_folder) as opened,
        ):
            Agent(connection, opened, stop=stop, max_jobs=max_jobs, budget_s=seconds).run()


@app.command(epilog="Example: padnas-agent doctor --device adb:192.168.1.7:5555")
def doctor(
    context: typer.Context,
    device: DeviceOption = "local",
    benchmark_binary: BinaryOption = None,
    device_folder: FolderOption = None,
    adb_key: AdbKeyOption = DEFAULT_KEY,
    as_json: JsonOption = False,
) -> None:
    """Say whether a device is fit to measure, and why not."""
    with _sentences():
        _must_be_heeded(context, device)
        if device == "local":
            checks = examine_local()
        else:
            target = parse_target(device)
            checks = examine(target, keys=adb_key, benchmark_binary=benchmark_binary, folder=device_folder)
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks]))
    else:
        table = Table("check", "finding", "seen", "what to do", box=None)
        for check in checks:
            table.add_row(*map(escape, check))
        Console().print(table)
    if any(check.finding == Finding.UNFIT for check in checks):
        raise typer.Exit(1)


@app.command(epilog="Example: padnas-agent devices --tcp 192.168.1.7:5555 --json")
def devices(tcp: TcpOption = None, adb_key: AdbKeyOption = DEFAULT_KEY, as_json: JsonOption = False) -> None:
    """List what can be measured on from here: this machine, phones at USB, and devices at the addresses given."""
    local = "ready" if runtime_is_installed() else "LiteRT is missing"
    with _sentences():
        found = reachable(tcp or [], keys=adb_key)
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


def _must_be_heeded(context: typer.Context, device: str) -> None:
    """Raises ValueError for an option that was given for a device that it says nothing of.

    What the environment says is for whichever device it fits.
    """
    of_phones = {"benchmark_binary": "--benchmark-binary", "device_folder": "--device-folder", "adb_key": "--adb-key"}
    ignored = of_phones if device == "local" else {}
    if device != "all":
        ignored = ignored | {"tcp": "--tcp"}
    sources = {option: context.get_parameter_source(name) for name, option in ignored.items()}
    given = [option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise ValueError(
            f"{' and '.join(given)} would be ignored with --device {device}. Leave out, or choose another device:"
            " --device adb:HOST:PORT or usb for one phone, --device all for every one."
        )


def _wait_for_end_of_input(stop: threading.Event) -> None:
    """Whoever started this agent holds the other end, and lets go of it however it ends."""
    while os.read(sys.stdin.fileno(), 4096):  # not the buffer, which an agent that ends could not close meanwhile
        pass
    stop.set()


def _opened(device: str, keys: Path, benchmark_binary: Path | None, folder: str | None) -> LocalDevice | AdbDevice:
    if device == "local":
        return LocalDevice()
    return open_device(parse_target(device), keys=keys, benchmark_binary=benchmark_binary, folder=folder)


@contextmanager
def _sentences() -> Iterator[None]:
    """What a user can mend is said in a sentence: with status 2 for a wrong use, else with status 1."""
    try:
        yield
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except (AgentOutdated, DeviceChanged, DeviceFault, ServiceError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
