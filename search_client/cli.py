"""`padnas-client`: search, and the parts of a search on their own."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table as Lines

from latency_contract.canonical import content_hash
from latency_contract.connection import ServiceConnection, ServiceError
from latency_contract.devices import Device, Unit, UnitComparison
from latency_contract.operators import Network
from latency_contract.tables import Purpose

# What needs PyTorch is imported where it is used: `--help` and the small commands should not wait for it.
from search_client.errors import SearchError

if TYPE_CHECKING:
    from search_client.latencies import LatencyService

app = typer.Typer(
    help="PAD-NAS: search for networks under a latency bound that is measured, not guessed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
table_app = typer.Typer(help="Latency tables: build, show, export.", no_args_is_help=True)
app.add_typer(table_app, name="table")

output = Console(highlight=False, markup=False)
if not output.is_terminal:
    output.width = 160  # what is piped should not be cut to the width of a terminal that is not there

ServiceOption = Annotated[str, typer.Option("--service", envvar="PADNAS_SERVICE", help="URL of the latency service")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="device model or serial; needed where the service knows several")
]
SpaceOption = Annotated[str, typer.Option("--space", help="a built-in space, or the path of a TOML file")]
WaitOption = Annotated[bool, typer.Option("--wait", help="wait for an agent, however long it takes")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
ChoicesSpaceOption = Annotated[str | None, typer.Option("--space", help="space of --choices")]
ChoicesOption = Annotated[
    str | None, typer.Option("--choices", help="one choice per layer, with commas: IBConv_K3_E6,Identity,…")
]
FromOption = Annotated[Path | None, typer.Option("--from", help="a search's final.json")]
NameOption = Annotated[str, typer.Option("--name", help="which architecture of final.json")]

Parameters = ParamSpec("Parameters")


def errors_are_sentences(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Exit status 1 and one sentence for what failed, 2 for wrong use."""

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (SearchError, ServiceError, OSError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
        except ValueError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error

    return run


@app.command(
    epilog="Example: padnas-client search --service http://127.0.0.1:8000 --space demo --data digits --out runs/first"
)
@errors_are_sentences
def search(
    service: ServiceOption,
    out: Annotated[Path, typer.Option(help="directory of the search; the same one resumes it")],
    space: Annotated[str | None, typer.Option(help="a built-in space, or the path of a TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10:PATH, folder:PATH or huggingface:PATH")] = None,
    oracle: Annotated[str | None, typer.Option(help="published accuracies, no training: nas-bench-macro:PATH")] = None,
    device: DeviceOption = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings")] = None,
    latency_min: Annotated[float | None, typer.Option(help="lower bound in ms")] = None,
    latency_max: Annotated[float | None, typer.Option(help="upper bound in ms")] = None,
    latency_targets: Annotated[
        str | None, typer.Option(help="ms, with commas: the most accurate network under each, in one search")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="pixels of an image's side, instead of the space's")] = None,
    width: Annotated[float | None, typer.Option(help="times the channels of the space")] = None,
    stages: Annotated[int | None, typer.Option(help="M of the paper: the space is pruned M - 2 times")] = None,
    epochs: Annotated[str | None, typer.Option(help="of each training, with commas: 120,80,40")] = None,
    learning_rates: Annotated[str | None, typer.Option(help="of each training, with commas: 0.5,0.1,0.1")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images of one training step")] = None,
    population: Annotated[int | None, typer.Option(help="architectures of one generation")] = None,
    iterations: Annotated[int | None, typer.Option(help="generations after the first")] = None,
    final_search: Annotated[
        str | None, typer.Option(help="of the last stage: ces, or a baseline, spos or random")
    ] = None,
    pruning_threshold: Annotated[float | None, typer.Option(help="P_th of the paper")] = None,
    finals: Annotated[int | None, typer.Option(help="architectures to return")] = None,
    seed: Annotated[int | None, typer.Option(help="of all randomness")] = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search a space for the most accurate networks within latency bounds (Algorithm 1 of the paper)."""
    from search_client.config import resolve
    from search_client.pad_nas import Search
    from search_client.progress import ConsoleProgress
    from search_client.report import terminal_table
    from search_client.run_directory import RunDirectory

    flags = {
        "space": space,
        "data": data,
        "oracle": oracle,
        "device": device,
        "latency_min_ms": latency_min,
        "latency_max_ms": latency_max,
        "latency_targets_ms": _numbers(latency_targets, float),
        "input_size": input_size,
        "width": width,
        "stages": stages,
        "epochs": _numbers(epochs, int),
        "learning_rates": _numbers(learning_rates, float),
        "batch_size": batch_size,
        "population": population,
        "iterations": iterations,
        "final_search": final_search,
        "pruning_threshold": pruning_threshold,
        "finals": finals,
        "seed": seed,
    }
    settings = resolve(flags, file=config)
    client = f"search-{content_hash([settings.model_dump(mode='json'), str(out.resolve())])[:16]}"
    progress = ConsoleProgress()
    with RunDirectory(out, settings) as directory:
        path = directory.final
        if path.exists():
            progress.say(f"{out} holds a finished search.")
        else:
            on = settings.device or directory.device_model
            try:
                with _latencies(service, on, client=client, wait=wait) as latencies:
                    Search(settings, latencies, directory, progress).run()
            except KeyboardInterrupt:
                progress.say(f"Stopped. The same command goes on where this one was, in {out}.")
                raise typer.Exit(1) from None
    if as_json:
        typer.echo(path.read_text(), nl=False)
        return
    output.print(terminal_table(json.loads(path.read_text())))
    for written in (path, out / "report.html", out / "figures" / "pareto.png", out / "figures" / "distribution.png"):
        output.print(str(written), soft_wrap=True)


@app.command(epilog="Example: padnas-client spaces --json")
@errors_are_sentences
def spaces(as_json: JsonOption = False) -> None:
    """List the built-in search spaces."""
    from search_client.spaces import builtin_spaces, load_space

    listed: list[dict[str, Any]] = []
    for name in builtin_spaces():
        space = load_space(name)
        choices = list(dict.fromkeys(choice for layer in space.layers for choice in layer.choices))
        listed.append(
            {
                "space": name,
                "input_size": space.stem.height,
                "layers": len(space.layers),
                "size": space.size,
                "operators": len(space.operators()),
                "choices": choices,
            }
        )
    if as_json:
        typer.echo(json.dumps(listed))
        return
    lines = Lines("space", "input", "layers", "architectures", "operators to measure", "choices", box=None)
    for space_line in listed:
        size = space_line["size"]
        lines.add_row(
            str(space_line["space"]),
            str(space_line["input_size"]),
            str(space_line["layers"]),
            f"{size:,}" if size < 1e9 else f"{size:.2e}",
            str(space_line["operators"]),
            " ".join(space_line["choices"]),
        )
    output.print(lines)


@app.command(epilog="Example: padnas-client devices --service http://127.0.0.1:8000")
@errors_are_sentences
def devices(service: ServiceOption, as_json: JsonOption = False) -> None:
    """List the devices that the service knows, and how the units of one model compare.

    The relative latency of a unit is its reading of the reference operator over the median of the model's units.
    """
    from search_client.latencies import known_devices, unit_comparisons

    with ServiceConnection(service) as connection:
        known = known_devices(connection)
        comparisons = unit_comparisons(connection, known)
    compared = {(c.protocol_id, unit.serial): unit for c in comparisons for unit in c.units}
    units = [compared.get((device.protocol.id, device.serial)) for device in known]
    if as_json:
        listed = [
            device.model_dump(mode="json") | {"unit": unit and unit.model_dump(mode="json")}
            for device, unit in zip(known, units, strict=True)
        ]
        typer.echo(json.dumps(listed))
        return
    lines = Lines("model", "serial", "state", "last seen", "relative latency", "runtime", box=None)
    for device, unit in zip(known, units, strict=True):
        lines.add_row(
            device.model,
            device.serial,
            _state(device),
            f"{device.last_seen_at:%Y-%m-%d %H:%M:%S}",
            _relative_latency(unit),
            f"{device.protocol.runtime} {device.protocol.runtime_version}, {device.protocol.delegate}",
        )
    output.print(lines if known else "No agent has reported a device yet. Start `padnas-agent run`.")
    for comparison in comparisons:
        for sentence in _about_units(comparison):
            output.print(sentence, soft_wrap=True)


@table_app.command("build", epilog="Example: padnas-client table build --service http://127.0.0.1:8000 --space basic")
@errors_are_sentences
def table_build(
    service: ServiceOption,
    space: SpaceOption,
    device: DeviceOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have every operator of a space measured, and publish the table."""
    from search_client.progress import ConsoleProgress
    from search_client.spaces import load_space

    operators = load_space(space).operators()
    with _latencies(service, device, client="table-build", wait=wait) as latencies:
        with ConsoleProgress().task(f"measuring '{space}' on {latencies.device.model}", len(operators)) as advance:
            measured = latencies.measured(operators, purpose=Purpose.TABLE, on_progress=advance)
        table = latencies.publish()
    if as_json:
        typer.echo(table.model_dump_json())
        return
    unsteady = sum(latency.verdict == "unsteady" for latency in measured)
    output.print(f"table {table.table_id} version {table.version}: {len(table.entries)} operators", soft_wrap=True)
    output.print(f"of this space: {len(measured) - unsteady} steady, {unsteady} unsteady")


@table_app.command("show", epilog="Example: padnas-client table show --service http://127.0.0.1:8000")
@errors_are_sentences
def table_show(service: ServiceOption, device: DeviceOption = None, as_json: JsonOption = False) -> None:
    """Show the last published table of a device."""
    with _latencies(service, device, client="table-show") as latencies:
        table = latencies.published()
    if as_json:
        typer.echo(table.model_dump_json())
        return
    output.print(
        f"{table.device_model}, {table.protocol.runtime} {table.protocol.runtime_version}, version {table.version},"
        f" published {table.published_at:%Y-%m-%d %H:%M}",
        soft_wrap=True,
    )
    lines = Lines("operator", box=None)
    for heading in ("ms", "±", "verdict", "rounds"):
        lines.add_column(heading, justify="right")
    for entry in table.entries:
        half_width = (entry.high_ms - entry.latency_ms) / entry.latency_ms
        lines.add_row(entry.key, f"{entry.latency_ms:.4f}", f"{half_width:.1%}", entry.verdict, str(entry.rounds))
    output.print(lines)


class ExportFormat(StrEnum):
    JSON = "json"
    CSV = "csv"


@table_app.command(
    "export", epilog="Example: padnas-client table export --service http://127.0.0.1:8000 --format csv --out table.csv"
)
@errors_are_sentences
def table_export(
    service: ServiceOption,
    out: Annotated[Path, typer.Option(help="file to write")],
    device: DeviceOption = None,
    as_format: Annotated[ExportFormat, typer.Option("--format", help="json keeps everything")] = ExportFormat.JSON,
) -> None:
    """Write the last published table of a device to a file."""
    with _latencies(service, device, client="table-export") as latencies:
        table = latencies.published()
    out.write_text(table.to_csv() if as_format == ExportFormat.CSV else table.model_dump_json(indent=1))
    output.print(f"{out}: {len(table.entries)} operators of {table.device_model}", soft_wrap=True)


class NetworkFormat(StrEnum):
    TFLITE = "tflite"  # images (1, H, W, C)
    ONNX = "onnx"  # images (N, C, H, W)


@app.command(epilog="Example: padnas-client export --from runs/demo --name 1 --format onnx --out network.onnx")
@errors_are_sentences
def export(
    source: Annotated[Path, typer.Option("--from", help="directory of a trained network, or of a finished search")],
    as_format: Annotated[
        NetworkFormat, typer.Option("--format", help="tflite takes images (1, H, W, C), onnx (N, C, H, W)")
    ],
    out: Annotated[Path, typer.Option(help="file to write")],
    name: NameOption = "1",
    service: Annotated[
        str | None, typer.Option(envvar="PADNAS_SERVICE", help="URL of the latency service, which converts to TFLite")
    ] = None,
) -> None:
    """Write a trained network to a file that other programs run, with its weights."""
    from search_client.durable_files import written_whole
    from search_client.export import load_trained, to_onnx, to_tflite
    from search_client.progress import ConsoleProgress

    with ConsoleProgress().task(f"exporting to {out}", 1):
        trained = load_trained(source, name=name)
        if as_format == NetworkFormat.ONNX:
            content = to_onnx(trained)
        elif service is None:
            raise ValueError("TFLite is converted by the service. Say where it is with --service URL.")
        else:
            with ServiceConnection(service) as connection:
                content = to_tflite(trained, connection)
        with written_whole(out) as unfinished:
            unfinished.write_bytes(content)
    first = trained.network.operators[0]
    height, width, channels = first.height, first.width, first.in_channels
    shape = ("N", channels, height, width) if as_format == NetworkFormat.ONNX else (1, height, width, channels)
    images = ", ".join(str(side) for side in shape)
    output.print(f"{out}: {len(content):,} bytes, for images ({images}) normalised as in training", soft_wrap=True)


@app.command(
    epilog="Example: padnas-client predict --service http://127.0.0.1:8000 --from runs/demo/final.json --name 1"
)
@errors_are_sentences
def predict(
    service: ServiceOption,
    from_file: FromOption = None,
    name: NameOption = "1",
    space: ChoicesSpaceOption = None,
    choices: ChoicesOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict an architecture's latency: the sum of its operators in the published table."""
    from search_client.latencies import predict as sum_up

    network = _network(from_file, name=name, space=space, choices=choices)
    with _latencies(service, device, client="predict") as latencies:
        prediction = sum_up(network, latencies.published())
    if as_json:
        typer.echo(json.dumps(prediction._asdict()))
    else:
        output.print(f"{prediction.latency_ms:.4f} ms ({prediction.low_ms:.4f} to {prediction.high_ms:.4f})")


@app.command(
    epilog="Example: padnas-client measure --service http://127.0.0.1:8000 --from runs/demo/final.json --name 1"
)
@errors_are_sentences
def measure(
    service: ServiceOption,
    from_file: FromOption = None,
    name: NameOption = "1",
    space: ChoicesSpaceOption = None,
    choices: ChoicesOption = None,
    tflite: Annotated[Path | None, typer.Option(help="a TFLite file, measured as it is")] = None,
    device: DeviceOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a whole network on a device, or a TFLite file as it is."""
    from search_client.progress import ConsoleProgress

    if tflite is not None and (from_file, space, choices) != (None, None, None):
        raise ValueError("--tflite measures a file as it is. Leave out --from, --space and --choices.")
    given = _network(from_file, name=name, space=space, choices=choices) if tflite is None else tflite.read_bytes()
    with (
        _latencies(service, device, client="measure", wait=wait) as latencies,
        ConsoleProgress().task(f"measuring on {latencies.device.model}", 1) as advance,
    ):
        subject = latencies.give_file(given) if isinstance(given, bytes) else given
        (latency,) = latencies.measured([subject], purpose=Purpose.SEARCH, on_progress=advance)
    if as_json:
        typer.echo(latency.model_dump_json())
    else:
        output.print(
            f"{latency.latency_ms:.4f} ms ({latency.low_ms:.4f} to {latency.high_ms:.4f}), {latency.verdict}"
            f" after {latency.rounds} rounds"
        )


@app.command(epilog="Example: padnas-client train --from runs/demo --name 1")
@errors_are_sentences
def train(
    from_run: Annotated[Path, typer.Option("--from", help="directory of a finished search")],
    name: Annotated[str | None, typer.Option(help="which architecture of final.json; default: the first")] = None,
    spread: Annotated[
        int | None, typer.Option(min=2, help="instead: so many, spread along the last stage's Pareto front")
    ] = None,
    data: Annotated[str | None, typer.Option(help="data set; default: the search's")] = None,
    epochs: Annotated[int | None, typer.Option(help="default: as many as the search's supernets in all")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="default: that of the first supernet")] = None,
    batch_size: Annotated[int | None, typer.Option(help="default: the search's")] = None,
    seed: Annotated[int, typer.Option(help="of weights and order; the split is the search's")] = 0,
    out: Annotated[Path | None, typer.Option(help="directory; default: standalone/ in that of the search")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train found architectures alone, from scratch, and score them on the test images. The same command resumes."""
    from dataclasses import replace

    from search_client.progress import ConsoleProgress
    from search_client.run_directory import RunFiles
    from search_client.standalone import final_architecture, spread_along_front, train_alone

    run = RunFiles(from_run)
    config = run.config()
    if name is not None and spread is not None:
        raise ValueError("Give --name or --spread, not both.")
    if spread is None:
        found = [final_architecture(run, name or run.finished()["architectures"][0]["name"])]
    else:
        found = spread_along_front(run.stages()[-1].history(), count=spread)
    progress = ConsoleProgress()
    images = config.model_copy(update={"data": data or config.data}).load_data(known=run.decoding(), progress=progress)
    recipe = replace(
        config.training(1),
        epochs=epochs or sum(config.epochs),
        learning_rate=learning_rate or config.learning_rates[0],
        batch_size=batch_size or config.batch_size,
    )
    results = [
        train_alone(
            one,
            config.load_space(classes=images.classes),
            images,
            recipe=recipe,
            seed=seed,
            directory=(out or run.standalone) / one.name,
            progress=progress,
        )
        for one in found
    ]
    if as_json:
        typer.echo(json.dumps(results))
        return
    lines = Lines("", "one-shot", "validation", "test", "predicted ms", "MACs", box=None)
    for result in results:
        shares = (result["one_shot_accuracy"], result["validation_accuracy"], result["test_accuracy"])
        latency, macs = f"{result['predicted_latency_ms']:.3f}", f"{result['macs'] / 1e6:.2f} M"
        lines.add_row(result["name"], *(f"{share:.1%}" for share in shares), latency, macs)
    output.print(lines)
    output.print(str(out or run.standalone), soft_wrap=True)


@app.command(epilog="Example: padnas-client report runs/first")
@errors_are_sentences
def report(
    run: Annotated[Path, typer.Argument(help="directory of a finished search")], as_json: JsonOption = False
) -> None:
    """Write a search's report anew, from its files alone."""
    from search_client import report as report_of
    from search_client.analyses import numbers, read_run
    from search_client.run_directory import RunFiles

    record = read_run(RunFiles(run))
    report_of.write(record)
    if as_json:
        typer.echo(json.dumps(numbers(record)))
        return
    output.print(report_of.terminal_table(record.final))
    output.print(str(run / "report.html"), soft_wrap=True)


@app.command(epilog="Example: padnas-client compare runs/m2-seed1 runs/m2-seed2 runs/m4-seed1 --out runs/comparison")
@errors_are_sentences
def compare(
    runs: Annotated[list[Path], typer.Argument(help="directories of finished searches")],
    out: Annotated[Path, typer.Option(help="directory for compare.html, compare.json and figures/")],
    as_json: JsonOption = False,
) -> None:
    """Compare searches; those that differ in nothing but their seed are one group, with mean and deviation."""
    from search_client import comparison
    from search_client.analyses import read_run
    from search_client.run_directory import RunFiles

    groups = comparison.grouped([read_run(RunFiles(run)) for run in runs])
    comparison.write(out, groups)
    if as_json:
        typer.echo((out / "compare.json").read_text(), nl=False)
        return
    output.print(comparison.terminal_table(groups))
    for note in comparison.notes(groups):
        output.print(note, soft_wrap=True)
    output.print(str(out / "compare.html"), soft_wrap=True)


@contextmanager
def _latencies(service: str, device: str | None, *, client: str, wait: bool = False) -> Iterator["LatencyService"]:
    from search_client.latencies import LatencyService

    with ServiceConnection(service) as connection:
        yield LatencyService(connection, device=device, client=client, wait=wait)


def _network(from_file: Path | None, *, name: str, space: str | None, choices: str | None) -> Network:
    """The network that a command was given, by a search's result or by a space and its choices."""
    from search_client.spaces import load_space

    if from_file is not None:
        try:
            final = json.loads(from_file.read_text())
            networks = {one["name"]: Network.model_validate(one["network"]) for one in final["architectures"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{from_file} is not the final.json of a search: {error}.") from error
        if name not in networks:
            raise ValueError(f"{from_file} has no architecture '{name}'. It has {', '.join(networks)}.")
        return networks[name]
    if space is None or choices is None:
        raise ValueError("No architecture given. Use --from FINAL.JSON, or --space and --choices.")
    loaded, chosen = load_space(space), tuple(choices.split(","))
    if len(chosen) != len(loaded.layers):
        raise ValueError(f"'{space}' has {len(loaded.layers)} layers, but {len(chosen)} choices are given.")
    return loaded.network(chosen)


def _numbers(text: str | None, kind: type[int] | type[float]) -> list[Any] | None:
    """Numbers of a list with commas. Raises ValueError."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"'{text}' is not a list of numbers with commas, as 120,80,40.") from error


def _relative_latency(unit: Unit | None) -> str:
    if unit is None or unit.relative is None:
        return ""
    return f"{unit.relative:.3f}{' odd' if unit.odd else ''}"


def _about_units(comparison: UnitComparison) -> Iterator[str]:
    """How far units lie apart, and what each reason is and whose; not of those too new to be compared."""
    if comparison.spread_pct is not None:
        yield f"{comparison.device_model}: units up to {comparison.spread_pct:.1f} % apart"
    spoken_of = [unit for unit in comparison.units if unit.relative is not None and unit.reason is not None]
    for reason in dict.fromkeys(unit.reason for unit in spoken_of):
        serials = ", ".join(unit.serial for unit in spoken_of if unit.reason == reason)
        yield f"{comparison.device_model}, {serials}: {reason}"


def _state(device: Device) -> str:
    if not device.alive:
        return "no agent"
    return "ready" if device.blocked_until is None else f"rests: {device.last_fault}"
