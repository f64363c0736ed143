"""`padnas-client table`: build, show, compare, export and import latency tables."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Lines

from latency_contract.comparisons import FALSE_DISCOVERIES, KnownLatency
from latency_contract.connection import ServiceConnection
from latency_contract.measurements import Measurement
from latency_contract.operators import parse_key
from latency_contract.tables import Purpose, Table, TableEntry
from search_client.command_line import (
    ClassesOption,
    DeviceOption,
    InputSizeOption,
    JsonOption,
    ServiceOption,
    ServiceOrTableOption,
    SpaceOption,
    SpaceSize,
    TableOption,
    WaitOption,
    WidthOption,
    errors_are_sentences,
    given_table,
    latency_service,
    named_table,
    output,
    rounds_kept_by,
)
from search_client.imported_tables import (
    AnyTable,
    ImportedEntry,
    ImportFormat,
    LinearModel,
    OperatorTable,
    describe,
    known_latency,
    of_operators,
)
from search_client.spaces import SearchSpace
from search_client.table_calibration import calibrate, check

# What needs PyTorch or SciPy is imported where it is used: `--help` and the small commands should not wait for it.
if TYPE_CHECKING:
    from search_client.table_comparison import Comparison

app = typer.Typer(help="Latency tables: build, calibrate, check, show, compare, export, import.", no_args_is_help=True)
app.command("calibrate", epilog="Example: padnas-client table calibrate --service http://127.0.0.1:8000 --space basic")(
    calibrate
)
app.command("check", epilog="Example: padnas-client table check --service http://127.0.0.1:8000 --space basic")(check)


@app.command("build", epilog="Example: padnas-client table build --service http://127.0.0.1:8000 --space basic")
@errors_are_sentences
def build(
    service: ServiceOption,
    space: SpaceOption,
    operator: Annotated[
        list[str] | None, typer.Option(help="key of another operator to measure; may be given several times")
    ] = None,
    input_size: InputSizeOption = None,
    width: WidthOption = None,
    classes: ClassesOption = None,
    device: DeviceOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have every operator of a space measured, and publish the table."""
    from search_client.progress import ConsoleProgress

    loaded = SpaceSize(input_size, width, classes).of(space)
    operators = list(dict.fromkeys([*loaded.operators(), *(parse_key(key) for key in operator or ())]))
    with latency_service(service, device, client="table-build", wait=wait) as latencies:
        with ConsoleProgress().task(f"measuring '{space}' on {latencies.device.model}", len(operators)) as advance:
            layers = loaded.layers_of_operators()
            measured = latencies.measured(operators, purpose=Purpose.TABLE, on_progress=advance, layers=layers)
        table = latencies.publish()
    if as_json:
        typer.echo(table.model_dump_json())
        return
    output.print(_lines(table))
    unsteady = sum(latency.verdict == "unsteady" for latency in measured)
    output.print(f"table {table.table_id} version {table.version}: {len(table.entries)} operators", soft_wrap=True)
    output.print(f"of this space: {len(measured) - unsteady} steady, {unsteady} unsteady")


@app.command("show", epilog="Example: padnas-client table show --service http://127.0.0.1:8000")
@errors_are_sentences
def show(
    service: ServiceOrTableOption = None,
    table: TableOption = None,
    device: DeviceOption = None,
    operator: Annotated[str | None, typer.Option(help="key of one operator: everything that is known of it")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the last published table of a device, or another one; with --operator, one entry with its rounds."""
    shown = given_table(service, table, device=device, client="table-show")
    if operator is not None:
        _show_entry(shown, operator, service=rounds_kept_by(service, table), as_json=as_json)
        return
    if as_json:
        typer.echo(shown.model_dump_json())
        return
    for line in _headings(shown):
        output.print(line, soft_wrap=True)
    output.print(_lines(shown))


def _headings(table: AnyTable) -> list[str]:
    if isinstance(table, Table):
        return [
            f"{table.device_model}, {table.protocol.runtime} {table.protocol.runtime_version}, version {table.version},"
            f" published {table.published_at:%Y-%m-%d %H:%M}",
            *(calibration.sentence for calibration in table.calibrations),
        ]
    said = [f"{table.device_model}, {table.source.sentence}"]
    if isinstance(table, LinearModel):
        return [*said, f"linear model of the space '{table.space_name}': {table.bias_ms:.4f} ms and an offset a layer"]
    said.append(f"intervals: {table.interval_means or 'none are known'}")
    if table.left_out:
        said.append(f"left out, as no operator here stands for them: {', '.join(table.left_out)}")
    return said


def _lines(table: AnyTable) -> Lines:
    if isinstance(table, Table):
        lines = Lines("operator", box=None)
        for heading in ("ms", "±", "verdict", "rounds"):
            lines.add_column(heading, justify="right")
        for entry in table.entries:
            half_width = (entry.high_ms - entry.latency_ms) / entry.latency_ms
            lines.add_row(entry.key, f"{entry.latency_ms:.4f}", f"{half_width:.1%}", entry.verdict, str(entry.rounds))
        return lines
    if isinstance(table, LinearModel):
        lines = Lines("layer", "offsets in ms", box=None)
        for layer in table.layers:
            offsets = ", ".join(f"{choice} {offset:+.3f}" for choice, offset in layer.coefficients_ms.items())
            lines.add_row(layer.name, offsets)
        return lines
    lines = Lines("operator", box=None)
    for heading in ("ms", "±", "readings"):
        lines.add_column(heading, justify="right")
    for imported in table.entries:
        counts = [number.count for number in imported.source]
        readings = " + ".join("?" if count is None else str(count) for count in counts)
        lines.add_row(imported.key, f"{imported.latency_ms:.4f}", _half_width(known_latency(imported)), readings)
    return lines


def _half_width(known: KnownLatency) -> str:
    return "–" if known.high_ms is None else f"{known.high_ms / known.latency_ms - 1:.1%}"


def _show_entry(table: AnyTable, key: str, *, service: str | None, as_json: bool) -> None:
    """One entry: rounds and provenance of a measured one, the source's own numbers of an imported one."""
    entries: dict[str, TableEntry | ImportedEntry] = {entry.key: entry for entry in of_operators(table).entries}
    if key not in entries:
        raise ValueError(f"The {describe(table)} does not hold '{key}'. `padnas-client table show` lists its keys.")
    entry = entries[key]
    if isinstance(entry, TableEntry) and service is not None:
        from search_client.latencies import kept_measurement

        with ServiceConnection(service) as connection:
            measurement = kept_measurement(connection, entry.measurement_id)
        if as_json:
            typer.echo(measurement.model_dump_json())
        else:
            print_measurement(key, measurement)
        return
    if as_json:
        typer.echo(entry.model_dump_json())
    elif isinstance(entry, TableEntry):
        output.print(
            f"{key}: {entry.latency_ms:.4f} ms ({entry.low_ms:.4f} to {entry.high_ms:.4f}), {entry.verdict} after"
            f" {entry.rounds} rounds on {entry.device_serial}, {entry.measured_at:%Y-%m-%d %H:%M}. The rounds are kept"
            f" by the service that measured it, as measurement {entry.measurement_id}.",
            soft_wrap=True,
        )
    else:
        _print_imported(entry)
        output.print(_headings(table)[0], soft_wrap=True)


def print_measurement(key: str, measurement: Measurement) -> None:
    output.print(
        f"{key}: {measurement.latency_ms:.4f} ms ({measurement.low_ms:.4f} to {measurement.high_ms:.4f} at"
        f" {measurement.confidence:.0%}), {measurement.verdict} after {len(measurement.rounds)} rounds",
        soft_wrap=True,
    )
    lines = Lines("round", "began", box=None)
    for heading in ("runs", "ms", "reference before", "reference after"):
        lines.add_column(heading, justify="right")
    for number, one in enumerate(measurement.rounds, start=1):
        readings = (one.block_ms, one.reference_before_ms, one.reference_after_ms)
        began, runs = f"{one.started_at:%Y-%m-%d %H:%M:%S}", one.summary_of or len(one.samples_ms)
        lines.add_row(str(number), began, str(runs), *(f"{reading:.4f}" for reading in readings))
    output.print(lines)
    if not measurement.was_quiet:
        output.print(
            f"No round inside the interval lies between two readings of the reference operator near its smallest,"
            f" {measurement.quiet_reference_ms:.4f} ms: the device was never quiet.",
            soft_wrap=True,
        )
    for rejected in measurement.rejected:
        began = f"{rejected.round.started_at:%Y-%m-%d %H:%M:%S}"
        output.print(f"rejected, {began}, {rejected.round.block_ms:.4f} ms: {rejected.reason}", soft_wrap=True)
    provenance = Lines("provenance", "", box=None)
    for name, value in measurement.provenance.model_dump(mode="json").items():
        if isinstance(value, dict):
            known = [f"{reading} {read}" for reading, read in value.items() if read is not None]
            provenance.add_row(name, ", ".join(known) or "nothing is readable")
        else:
            provenance.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    output.print(provenance)


def _print_imported(entry: ImportedEntry) -> None:
    interval = entry.interval
    known = "no interval" if interval is None else f"{interval.low_ms:.4f} to {interval.high_ms:.4f}"
    output.print(f"{entry.key}: {entry.latency_ms:.4f} ms ({known}), imported", soft_wrap=True)
    for number in entry.source:
        said = [f"{number.latency_ms:.4f} ms"]
        said += [] if number.variance_ms2 is None else [f"variance {number.variance_ms2:.4g} ms²"]
        said += [] if number.count is None else [f"{number.count} readings"]
        output.print(f"  {number.key}: {', '.join(said)}", soft_wrap=True)


class ExportFormat(StrEnum):
    JSON = "json"  # keeps everything
    CSV = "csv"
    YAML = "yaml"  # what ProxylessNAS and once-for-all read
    YAML_MBV3 = "yaml-mbv3"  # what once-for-all reads for MobileNetV3: squeeze-and-excitation and h-swish


@app.command(
    "export", epilog="Example: padnas-client table export --service http://127.0.0.1:8000 --format csv --out table.csv"
)
@errors_are_sentences
def export(
    out: Annotated[Path, typer.Option(help="file to write")],
    service: ServiceOrTableOption = None,
    table: TableOption = None,
    device: DeviceOption = None,
    as_format: Annotated[
        ExportFormat,
        typer.Option("--format", help="json keeps everything; yaml is ProxylessNAS's, yaml-mbv3 once-for-all's"),
    ] = ExportFormat.JSON,
    space: Annotated[str | None, typer.Option(help="only the operators of this space (csv and yaml)")] = None,
    input_size: InputSizeOption = None,
    width: WidthOption = None,
    classes: ClassesOption = None,
) -> None:
    """Write the last published table of a device, or another one, in a format that other programs read."""
    size = SpaceSize(input_size, width, classes)
    if space is None and size != SpaceSize():
        raise ValueError("--input-size, --width and --classes are the size of a space. Name it with --space.")
    given = given_table(service, table, device=device, client="table-export")
    if as_format is ExportFormat.JSON:
        if space is not None:
            raise ValueError("--format json keeps the whole table. Leave out --space, or use --format csv.")
        _write(out, given.model_dump_json(indent=1))
        output.print(f"{out}: {describe(given)}", soft_wrap=True)
        return
    chosen = of_operators(given)
    if space is not None:
        chosen = _only(chosen, size.of(space))
    if as_format is ExportFormat.CSV:
        from search_client.table_export import to_csv

        _write(out, to_csv(chosen))
        output.print(f"{out}: {len(chosen.entries)} operators of {chosen.device_model}", soft_wrap=True)
        return
    from search_client.proxylessnas_format import Flavour
    from search_client.table_export import proxylessnas

    flavour = Flavour.MBV3 if as_format is ExportFormat.YAML_MBV3 else Flavour.PROXYLESSNAS
    keeper = rounds_kept_by(service, table)
    if isinstance(chosen, Table) and keeper is not None:
        with ServiceConnection(keeper) as connection:
            written = proxylessnas(chosen, flavour, measurements=_measurements(connection, chosen))
    else:
        written = proxylessnas(chosen, flavour)
    _write(out, written.text)
    output.print(f"{out}: {written.keys} keys of {chosen.device_model}", soft_wrap=True)
    for note in written.notes:
        output.print(note, soft_wrap=True)


def _only(table: OperatorTable, space: SearchSpace) -> OperatorTable:
    """A table with the operators of a space alone. Raises IncompleteTable where it lacks some."""
    from search_client.proxylessnas_format import last_convolution
    from search_client.table_latencies import must_hold

    must_hold(table, space.operators())
    # The last convolution alone is no operator of a space; some formats want it apart from the head.
    wanted = {operator.id for operator in (*space.operators(), last_convolution(space.head))}
    entries = tuple(entry for entry in table.entries if entry.operator.id in wanted)
    fields = {name: getattr(table, name) for name in type(table).model_fields}
    return type(table).model_validate(fields | {"entries": entries})


def _measurements(connection: ServiceConnection, table: Table) -> dict[str, Measurement]:
    """Of every entry, by subject."""
    from search_client.latencies import kept_measurement
    from search_client.progress import ConsoleProgress

    found = {}
    with ConsoleProgress().task("reading rounds", len(table.entries)) as advance:
        for number, entry in enumerate(table.entries, start=1):
            found[entry.subject_id] = kept_measurement(connection, entry.measurement_id)
            advance(number)
    return found


@app.command(
    "import",
    epilog="Example: padnas-client table import mobile_trim.yaml --device 'Pixel 1' --out pixel1.json",
)
@errors_are_sentences
def import_(
    file: Annotated[Path, typer.Argument(help="the table that somebody else published")],
    device: Annotated[str, typer.Option(help="what the latencies are of, as Pixel 1")],
    out: Annotated[Path, typer.Option(help="table file to write, for --table")],
    as_format: Annotated[
        ImportFormat | None,
        typer.Option("--format", help="default: by the file's content"),
    ] = None,
    according_to: Annotated[str | None, typer.Option(help="who says so, where the file does not tell")] = None,
    bias: Annotated[Path | None, typer.Option(help="JSON file with the bias_ms of a tunas model")] = None,
) -> None:
    """Make a table file of latencies that somebody else measured. It says so wherever it is used."""
    from search_client.table_import import import_table

    table = import_table(
        file,
        as_format=as_format,
        device_model=device,
        stated_by=according_to,
        bias=bias,
        now=datetime.now(UTC),
    )
    _write(out, table.model_dump_json(indent=1))
    if isinstance(table, LinearModel):
        held = f"a linear model of the space '{table.space_name}', {len(table.layers)} layers"
    else:
        held = f"{len(table.entries)} operators"
    guessed = " (by its content)" if as_format is None else ""
    output.print(f"{file} is {table.source.format}{guessed}: {held} of {table.device_model}", soft_wrap=True)
    for line in _headings(table)[1:]:
        output.print(line, soft_wrap=True)
    output.print(str(out), soft_wrap=True)


@app.command(
    "diff",
    epilog="Example: padnas-client table diff 'Pixel 3@1' 'Pixel 3@2' --service http://127.0.0.1:8000",
)
@errors_are_sentences
def diff(
    first: Annotated[str, typer.Argument(help="a table file, a device model or a table id; @2 for its version 2")],
    second: Annotated[str, typer.Argument(help="another one")],
    service: Annotated[
        str | None, typer.Option(envvar="PADNAS_SERVICE", help="URL of the latency service, for what is no file")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="every operator, not only what differs")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two tables, operator by operator: versions, devices, protocols, or somebody else's."""
    from search_client.table_comparison import compare

    found = compare(named_table(first, service), named_table(second, service))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    _print_comparison(found, show_all=show_all)


def _print_comparison(found: "Comparison", *, show_all: bool) -> None:
    from search_client.table_comparison import differences

    output.print(f"A: {describe(found.first)}\nB: {describe(found.second)}", soft_wrap=True)
    for name, (in_first, in_second) in differences(found.first, found.second).items():
        output.print(f"  {name}: {in_first} → {in_second}", soft_wrap=True)
    if shown := (found.operators if show_all else found.significant):
        lines = Lines("operator", box=None)
        for heading in ("A ms", "±", "B ms", "±", "B/A", "interval", "p, adjusted", ""):
            lines.add_column(heading, justify="right", no_wrap=True)
        for one in shown:
            low, high, p = one.ratio.low, one.ratio.high, one.adjusted_p
            lines.add_row(
                one.key,
                f"{one.first.latency_ms:.4f}",
                _half_width(one.first),
                f"{one.second.latency_ms:.4f}",
                _half_width(one.second),
                f"{one.ratio.value:.3f}",
                "–" if low is None or high is None else f"{low:.3f} to {high:.3f}",
                "–" if p is None else f"{p:.2g}",
                "*" if one.significant else "",
            )
        output.print(lines)
    if show_all:
        for heading, keys in (("only in A", found.only_first), ("only in B", found.only_second)):
            for key in keys:
                output.print(f"{heading}: {key}", soft_wrap=True)
    said = [
        f"{len(found.operators)} operators in both",
        f"{len(found.only_first)} only in A",
        f"{len(found.only_second)} only in B",
        f"{len(found.significant)} of {found.tested} with intervals differ significantly"
        f" (false discovery rate {FALSE_DISCOVERIES:.0%})",
    ]
    if found.median_ratio is not None:
        said.append(f"median B/A {found.median_ratio:.3f}")
    if found.rank_correlations is not None:
        said.append("Spearman {:.3f}, Kendall {:.3f}".format(*found.rank_correlations))
    output.print("; ".join(said), soft_wrap=True)


def _write(out: Path, text: str) -> None:
    from search_client.durable_files import write_text

    write_text(out, text if text.endswith("\n") else text + "\n")
