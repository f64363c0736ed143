"""`padnas-client`: search, and the parts of a search on their own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table as Lines

from latency_contract.canonical import content_hash
from latency_contract.connection import ServiceConnection
from latency_contract.devices import Device, Unit, UnitComparison
from latency_contract.operators import Network
from latency_contract.predictions import CONFIDENCE
from latency_contract.tables import Purpose
from latency_contract.tables import Table as MeasuredTable
from search_client import table_commands
from search_client.command_line import (
    ClassesOption,
    DeviceOption,
    InputSizeOption,
    JsonOption,
    ServiceOption,
    ServiceOrTableOption,
    SpaceSize,
    TableOption,
    WaitOption,
    WidthOption,
    errors_are_sentences,
    given_table,
    latency_service,
    must_be_of,
    must_be_one,
    output,
)
from search_client.imported_tables import read_table

# What needs PyTorch is imported where it is used: `--help` and the small commands should not wait for it.
if TYPE_CHECKING:
    from search_client.config import SearchConfig
    from search_client.latency_sources import TableFile
    from search_client.pad_nas import LatencySource
    from search_client.progress import ConsoleProgress
    from search_client.run_directory import RunDirectory

app = typer.Typer(
    help="PAD-NAS: search for networks under a latency bound that is measured, not guessed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(table_commands.app, name="table")

ChoicesSpaceOption = Annotated[str | None, typer.Option("--space", help="space of --choices")]
ChoicesOption = Annotated[
    str | None, typer.Option("--choices", help="one choice per layer, with commas: IBConv_K3_E6,Identity,…")
]
FromOption = Annotated[Path | None, typer.Option("--from", help="a finished search: its directory, or its final.json")]
NameOption = Annotated[str, typer.Option("--name", help="which architecture of final.json")]


@app.command(
    epilog="Example: padnas-client search --service http://127.0.0.1:8000 --space demo --data digits --out runs/first"
)
@errors_are_sentences
def search(
    out: Annotated[Path, typer.Option(help="directory of the search; the same one resumes it")],
    service: ServiceOrTableOption = None,
    table: Annotated[str | None, typer.Option(help="a table file, exported or imported, instead of a service")] = None,
    space: Annotated[str | None, typer.Option(help="a built-in space, or the path of a TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10:PATH, folder:PATH or huggingface:PATH")] = None,
    oracle: Annotated[str | None, typer.Option(help="published accuracies, no training: nas-bench-macro:PATH")] = None,
    device: DeviceOption = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings")] = None,
    latency_min: Annotated[float | None, typer.Option(help="lower bound in ms")] = None,
    latency_max: Annotated[float | None, typer.Option(help="upper bound in ms")] = None,
    latency_confidence: Annotated[
        float | None, typer.Option(help="probability with which the upper bound holds, as 0.95; default: as predicted")
    ] = None,
    latency_targets: Annotated[
        str | None, typer.Option(help="ms, with commas: the most accurate network under each, in one search")
    ] = None,
    input_size: InputSizeOption = None,
    width: WidthOption = None,
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
    refine: Annotated[
        int | None, typer.Option(help="so many of the most uncertain operators are measured again after each stage")
    ] = None,
    finals: Annotated[int | None, typer.Option(help="architectures to return")] = None,
    seed: Annotated[int | None, typer.Option(help="of all randomness")] = None,
    report_to_service: Annotated[
        bool, typer.Option("--report-to-service", help="show at the service's dashboard how far the search is")
    ] = False,
    without_device: Annotated[
        bool,
        typer.Option(
            "--without-device", help="finish a search whose device is gone: by its own table, nothing measured"
        ),
    ] = False,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search a space for the most accurate networks within latency bounds (Algorithm 1 of the paper)."""
    from search_client.config import CHANGE_NO_RESULT, resolve
    from search_client.pad_nas import Search
    from search_client.progress import ConsoleProgress
    from search_client.report import terminal_table
    from search_client.run_directory import RunDirectory
    from search_client.search_reports import SearchReports, first_report

    flags = {
        "space": space,
        "data": data,
        "oracle": oracle,
        "device": device,
        "table": table,
        "latency_min_ms": latency_min,
        "latency_max_ms": latency_max,
        "latency_confidence": latency_confidence,
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
        "refine": refine,
        "finals": finals,
        "seed": seed,
    }
    settings = resolve(flags, file=config)
    if not without_device:
        must_be_one(service, settings.table)
    who = settings.model_dump(mode="json", exclude=CHANGE_NO_RESULT)  # the same, whoever takes it up again
    client = f"search-{content_hash([who, str(out.resolve())])[:16]}"
    if report_to_service and service is None:
        raise ValueError("--report-to-service needs the address of one: --service URL.")
    reports: SearchReports | None = None
    progress = ConsoleProgress(heard=lambda *step: reports.doing(*step) if reports is not None else None)
    with RunDirectory(out, settings) as directory:
        path = directory.final
        if path.exists():
            progress.say(f"{out} holds a finished search.")
        else:
            try:
                with (
                    nullcontext(_own_table(directory))
                    if without_device
                    else _latency_source(settings, directory, progress, service=service, client=client, wait=wait)
                ) as latencies:
                    found = Search(settings, latencies, directory, progress)
                    if report_to_service:
                        assert service is not None
                        first = first_report(
                            out, device=latencies.device_model, space=settings.space, stages=settings.stages - 1,
                            started_at=datetime.now(UTC),
                        )  # fmt: skip
                        reports = SearchReports(service, client, first, say=progress.say)
                        found.on_stage = reports.stage
                    with nullcontext() if reports is None else reports.running():
                        found.run()
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
    for device in known:
        if device.quarantine is not None:
            output.print(f"{device.model}, {device.serial}: {device.quarantine.reason}", soft_wrap=True)
    for comparison in comparisons:
        for sentence in _about_units(comparison):
            output.print(sentence, soft_wrap=True)


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
    service: ServiceOrTableOption = None,
    table: TableOption = None,
    from_file: FromOption = None,
    name: NameOption = "1",
    space: ChoicesSpaceOption = None,
    choices: ChoicesOption = None,
    input_size: InputSizeOption = None,
    width: WidthOption = None,
    classes: ClassesOption = None,
    device: DeviceOption = None,
    confidence: Annotated[float, typer.Option(min=0.501, max=0.9999, help="of the interval")] = CONFIDENCE,
    as_json: JsonOption = False,
) -> None:
    """Predict an architecture's latency from the published table, or from a table file."""
    from search_client.table_latencies import calibration_for
    from search_client.table_latencies import predict as predicted_by

    size = SpaceSize(input_size, width, classes)
    chosen = _chosen(from_file, name=name, space=space, choices=choices, size=size)
    known = given_table(service, table, device=device, client="predict")
    prediction = predicted_by(chosen.network, chosen.choices, known, confidence=confidence)
    if as_json:
        typer.echo(prediction.model_dump_json())
        return
    interval = "no interval is known"
    if prediction.low_ms is not None and prediction.confidence is not None:
        interval = f"{prediction.low_ms:.4f} to {prediction.high_ms:.4f} at {prediction.confidence:.4g}"
    output.print(f"{prediction.latency_ms:.4f} ms ({interval})")
    calibration = calibration_for(chosen.network.operators, known)
    if calibration is not None:
        output.print(calibration.sentence, soft_wrap=True)
    elif isinstance(known, MeasuredTable):
        output.print("not calibrated: the interval says how well the sum is known, not how well it predicts")
    else:
        output.print(known.source.sentence, soft_wrap=True)


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
    input_size: InputSizeOption = None,
    width: WidthOption = None,
    classes: ClassesOption = None,
    tflite: Annotated[Path | None, typer.Option(help="a TFLite file, measured as it is")] = None,
    device: DeviceOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a whole network on a device, or a TFLite file as it is."""
    from search_client.progress import ConsoleProgress

    size = SpaceSize(input_size, width, classes)
    if tflite is not None and ((from_file, space, choices) != (None, None, None) or size != SpaceSize()):
        raise ValueError("--tflite measures a file as it is. Leave out --from, --space, --choices and their size.")
    given: bytes | Network
    if tflite is None:
        given = _chosen(from_file, name=name, space=space, choices=choices, size=size).network
    else:
        given = tflite.read_bytes()
    with (
        latency_service(service, device, client="measure", wait=wait) as latencies,
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

    if name is not None and spread is not None:
        raise ValueError("Give --name or --spread, not both.")
    run = RunFiles(from_run)
    config, final = run.config(), run.finished()
    if spread is None:
        found = [final_architecture(run, name or final["architectures"][0]["name"])]
    else:
        found = spread_along_front(run.stages()[-1].history(), count=spread)
    progress, space = ConsoleProgress(), run.stage(1).space()
    if data is None or data == config.data:
        images = run.images(progress)
    else:
        given = config.model_copy(update={"data": data})
        images = given.load_data(input_size=space.stem.height, progress=progress)
        space = space.with_classes(images.classes)
    recipe = replace(
        config.training(1),
        epochs=sum(config.epochs) if epochs is None else epochs,
        learning_rate=config.learning_rates[0] if learning_rate is None else learning_rate,
        batch_size=config.batch_size if batch_size is None else batch_size,
    )
    results = [
        train_alone(
            one,
            space,
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


def _own_table(directory: "RunDirectory") -> "TableFile":
    """What the search has of its table. Raises ValueError."""
    from search_client.latency_sources import TableFile

    if (table := directory.table) is None:
        raise ValueError(
            f"{directory.path} has no table yet: its operators have to be measured. Leave out --without-device."
        )
    return TableFile(table)


@contextmanager
def _latency_source(
    settings: "SearchConfig",
    directory: "RunDirectory",
    progress: "ConsoleProgress",
    *,
    service: str | None,
    client: str,
    wait: bool,
) -> Iterator["LatencySource"]:
    """A table file where the settings name one, else the service."""
    from search_client.latency_sources import MeasuredLatencies, TableFile

    if settings.table is not None:
        if not Path(settings.table).is_file():
            raise ValueError(
                f"{settings.table} is no file. A search takes a table file; to have a published table as one:"
                f" padnas-client table export --table '{settings.table}' --out table.json"
            )
        table = read_table(Path(settings.table))
        must_be_of(table, settings.device, name=settings.table)
        yield TableFile(table)
        return
    assert service is not None
    begun_with = directory.table
    on = settings.device or (None if begun_with is None else begun_with.device_model)
    protocol_id = begun_with.protocol.id if isinstance(begun_with, MeasuredTable) else None
    with latency_service(service, on, client=client, protocol_id=protocol_id, wait=wait) as latencies:
        yield MeasuredLatencies(latencies, directory, progress)


class _Chosen(NamedTuple):
    """An architecture as a command was given it."""

    network: Network
    choices: tuple[str, ...]  # one a layer of its space


def _chosen(from_file: Path | None, *, name: str, space: str | None, choices: str | None, size: SpaceSize) -> _Chosen:
    """By a search's result, or by a space and its choices."""
    if from_file is not None:
        if size != SpaceSize():
            raise ValueError("--from has networks of their own size. Leave out --input-size, --width and --classes.")
        if (space, choices) != (None, None):
            raise ValueError("--from says which architecture. Leave out --space and --choices, or --from.")
        if from_file.is_dir():
            from_file = from_file / "final.json"
        try:
            final = json.loads(from_file.read_text())
            found = {
                one["name"]: _Chosen(Network.model_validate(one["network"]), tuple(one["choices"].values()))
                for one in final["architectures"]
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{from_file} is not the final.json of a search: {error}.") from error
        if name not in found:
            raise ValueError(f"{from_file} has no architecture '{name}'. It has {', '.join(found)}.")
        return found[name]
    if space is None or choices is None:
        raise ValueError("No architecture given. Use --from FINAL.JSON, or --space and --choices.")
    loaded, chosen = size.of(space), tuple(choices.split(","))
    if len(chosen) != len(loaded.layers):
        raise ValueError(f"'{space}' has {len(loaded.layers)} layers, but {len(chosen)} choices are given.")
    return _Chosen(loaded.restricted([[choice] for choice in chosen]).network(chosen), chosen)


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
    if device.quarantine is not None:
        return "quarantined"
    return "ready" if device.blocked_until is None else f"rests: {device.last_fault}"
