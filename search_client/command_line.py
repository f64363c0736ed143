"""What all commands of `padnas-client` share: options, the way they fail, where they print."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, ParamSpec

import typer
from rich.console import Console

from latency_contract.connection import ServiceConnection, ServiceError
from search_client.errors import SearchError
from search_client.imported_tables import AnyTable, read_table
from search_client.spaces import SearchSpace, load_space

# What needs PyTorch is imported where it is used: `--help` and the small commands should not wait for it.
if TYPE_CHECKING:
    from search_client.latencies import LatencyService

output = Console(highlight=False, markup=False)
if not output.is_terminal:
    output.width = 160  # what is piped should not be cut to the width of a terminal that is not there

ServiceOption = Annotated[str, typer.Option("--service", envvar="PADNAS_SERVICE", help="URL of the latency service")]
ServiceOrTableOption = Annotated[
    str | None, typer.Option("--service", envvar="PADNAS_SERVICE", help="URL of the latency service; or use --table")
]
TableOption = Annotated[
    str | None,
    typer.Option(
        "--table",
        help="a table file, exported or imported, which needs no service; or a published table: its device model or id,"
        " with @2 its version 2",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="device model or serial; needed where the service knows several")
]
SpaceOption = Annotated[str, typer.Option("--space", help="a built-in space, or the path of a TOML file")]
InputSizeOption = Annotated[
    int | None, typer.Option("--input-size", help="pixels of an image's side, instead of the space's")
]
WidthOption = Annotated[float | None, typer.Option("--width", help="times the channels of the space")]
ClassesOption = Annotated[
    int | None, typer.Option("--classes", min=1, help="classes of the data, instead of the space's")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="wait for service, device and agent, however long it takes")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]

Parameters = ParamSpec("Parameters")


class SpaceSize(NamedTuple):
    """What --input-size, --width and --classes said; None: as the space has it."""

    input_size: int | None = None
    width: float | None = None
    classes: int | None = None

    def of(self, space: str) -> SearchSpace:
        """A space of that size, by its name or file. Raises InvalidSpace."""
        return load_space(
            space, input_size=self.input_size, width=1.0 if self.width is None else self.width, classes=self.classes
        )


def errors_are_sentences(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Exit status 1 and one sentence for what failed, 2 for wrong use."""

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (SearchError, ServiceError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
        except OSError as error:
            known = error.filename is not None and error.strerror is not None
            typer.echo(f"{error.filename}: {error.strerror}." if known else str(error), err=True)
            raise typer.Exit(1) from error
        except ValueError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error

    return run


@contextmanager
def latency_service(
    service: str, device: str | None, *, client: str, protocol_id: str | None = None, wait: bool = False
) -> Iterator["LatencyService"]:
    from search_client.latencies import LatencyService
    from search_client.progress import ConsoleProgress

    with ServiceConnection(service) as connection:
        yield LatencyService(
            connection, device=device, client=client, protocol_id=protocol_id, wait=wait, say=ConsoleProgress().say
        )


def must_be_one(service: str | None, table: str | None) -> None:
    """Raises ValueError without a service or a table file."""
    if service is None and table is None:
        raise ValueError("Latencies come from a service (--service URL) or from a file (--table FILE). Give one.")


def given_table(service: str | None, table: str | None, *, device: str | None, client: str) -> AnyTable:
    """The table that is named, or the last published one of a device.

    Raises:
        ValueError: neither is given, it is no table, or of another device.
    """
    must_be_one(service, table)
    if table is not None:
        named = named_table(table, service)
        must_be_of(named, device, name=table)
        return named
    assert service is not None
    with latency_service(service, device, client=client) as latencies:
        return latencies.published()


def must_be_of(table: AnyTable, device: str | None, *, name: str) -> None:
    """Raises ValueError where --device asks for another device than a table is of."""
    if device is not None and device.casefold() != table.device_model.casefold():
        raise ValueError(f"{name} is of {table.device_model}, not of {device}. Leave --device out.")


def rounds_kept_by(service: str | None, table: str | None) -> str | None:
    """The service that has the rounds of a table that was given so; None for a file."""
    return None if table is not None and Path(table).is_file() else service


def named_table(name: str, service: str | None) -> AnyTable:
    """A file, or a published table of the service. Raises ValueError."""
    if Path(name).is_file():
        return read_table(Path(name))
    if service is None:
        raise ValueError(f"{name} is no file. For a table of a service, give --service URL.")
    from search_client.latencies import find_table

    with ServiceConnection(service) as connection:
        return find_table(connection, name)
