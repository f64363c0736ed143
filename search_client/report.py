"""The report of a search: one page that a browser opens from disk, and the same table for a terminal."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search_client.analyses import RunRecord, accuracy_of, latency_of_final
from search_client.figures.accuracy import AccuracyCurves, draw_agreement, draw_pareto, draw_supernet_accuracy
from search_client.figures.operators import draw_architectures, draw_distributions
from search_client.imported_tables import Source
from search_client.pages import ABSENT, estimate, percent, seconds, size, write_page


class Row(NamedTuple):
    """One final architecture, as people read it."""

    name: str
    predicted: str
    measured: str  # ABSENT where no device was there
    difference: str  # of the prediction from the measurement
    # And under its target; by the measured latency, its interval given the benefit of the doubt; else as predicted.
    within_bounds: bool
    mispredicted: bool  # the measured latency lies outside the prediction's interval
    note: str  # what is not as it should be; "missed" where mispredicted; empty where all is well
    accuracy: str
    test_accuracy: str  # empty where accuracies were published, on test images
    macs: str
    parameters: str

    @property
    def missed(self) -> bool:
        return self.mispredicted or not self.within_bounds


def rows(final: Mapping[str, Any]) -> list[Row]:
    """The final architectures of a `final.json`."""
    low_ms, high_ms = final["latency_bounds_ms"]
    targets_ms = {f"{target_ms:g}ms": target_ms for target_ms in final["config"].get("latency_targets_ms", ())}
    made = []
    for architecture in final["architectures"]:
        most_ms = targets_ms.get(architecture["name"], high_ms)
        predicted, measured = architecture["predicted_latency"], architecture["measured_latency"]
        within_bounds = measured is None or (measured["high_ms"] >= low_ms and measured["low_ms"] <= most_ms)
        notes = []
        if measured is None:
            notes.append("not measured")
        elif measured["verdict"] != "steady":
            notes.append(measured["verdict"])
        if not within_bounds:
            notes.append("out of bounds" if most_ms == high_ms else "above its target")
        mispredicted = measured is not None and _outside(measured["latency_ms"], predicted)
        if mispredicted:
            notes.append("missed")
        made.append(
            Row(
                name=architecture["name"],
                predicted=_with_interval(predicted),
                measured=ABSENT if measured is None else _with_interval(measured),
                difference=ABSENT
                if measured is None
                else f"{predicted['latency_ms'] / measured['latency_ms'] - 1:+.1%}",
                within_bounds=within_bounds,
                mispredicted=mispredicted,
                note=", ".join(notes),
                accuracy=percent(accuracy_of(architecture)),
                test_accuracy=percent(architecture.get("one_shot_test_accuracy")),
                macs=_millions(architecture["macs"], decimals=2),
                parameters=_millions(architecture["parameters"], decimals=3),
            )
        )
    return made


def terminal_table(final: Mapping[str, Any]) -> Table:
    low_ms, high_ms = final["latency_bounds_ms"]
    title = f"Final architectures on {final['device_model']}, bounds {low_ms:.3f} to {high_ms:.3f} ms"
    if "imported" in final["table"]:
        title += "\nlatencies imported, nothing measured"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "predicted ms", "measured ms", "off by", "accuracy", "test", "MACs", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    table.columns[-1].no_wrap = False  # two notes take two lines
    if any(row.mispredicted for row in rows(final)):
        table.caption = "missed: measured outside the prediction's interval"
    for row in rows(final):
        cells = (row.name, row.predicted, row.measured, row.difference, row.accuracy, row.test_accuracy, row.macs)
        table.add_row(*cells, row.note, style="red" if row.missed else None)
    return table


def write(run: RunRecord) -> None:
    """`report.html` and the pictures in `figures/` beside it; what a run has no data for is left out."""
    figures = run.path / "figures"
    final = run.final
    draw_pareto(figures / "pareto.png", run)
    draw_distributions(
        figures / "distribution.png",
        run.space,
        {
            f"stage {number}: {size(stage.space.size)} architectures": (stage.space, stage.distribution)
            for number, stage in enumerate(run.stages, start=1)
        },
    )
    draw_architectures(
        figures / "architectures.png",
        run.space,
        [
            {
                "name": one["name"],
                "choices": one["choices"],
                "latency_ms": latency_of_final(one)["latency_ms"],
                "accuracy": accuracy_of(one),
            }
            for one in final["architectures"]
        ],
    )
    if run.accuracy_by_epoch:
        curves = AccuracyCurves([run.accuracy_by_epoch], run.pruned_after)
        draw_supernet_accuracy(figures / "supernet_accuracy.png", {"": curves})
    if run.accuracy_pairs:
        title = "" if run.tau is None else f"τ = {estimate(run.tau)}"
        draw_agreement(figures / "agreement.png", {title: run.accuracy_pairs})
    write_page(
        run.path / "report.html",
        "report.html",
        run=run,
        final=final,
        facts=facts(run),
        rows=rows(final),
        table=table_in_words(final),
        is_calibrated=final.get("calibration") is not None,
        is_measured=any(one["measured_latency"] is not None for one in final["architectures"]),
        has_intervals=any(one["predicted_latency"]["low_ms"] is not None for one in final["architectures"]),
        stages=_stage_rows(run),
        alone=_alone_rows(run),
        layers=[layer.name for layer in run.space.layers],
    )


def facts(run: RunRecord) -> dict[str, str]:
    """What was searched, for the top of the page."""
    config, final, space = run.config, run.final, run.space
    low_ms, high_ms = final["latency_bounds_ms"]
    side = space.stem.height
    found = {
        "space": (
            f"{config['space']}: {len(space.layers)} layers, {size(space.size)} architectures, input {side}×{side}"
        ),
        "accuracies from" if run.published else "data": f"{run.source}, {space.head.out_channels} classes",
        "device": ", ".join([final["device_model"], *_measured_under(final["protocol"])]),
        "latency table": f"{table_in_words(final)}; a copy is in {_copy_of_table(final)}",
        "calibration": calibration_in_words(final),
        "latency bounds": f"{low_ms:.3f} to {high_ms:.3f} ms{_with_probability(final)}",
        "method": (
            f"M = {config['stages']}, last search by {config['final_search']}, population {config['population']},"
            f" {config['iterations']} iterations, P_th {config['pruning_threshold']:g}, seed {config['seed']}"
        ),
    }
    costs = {
        "training": run.costs.training_s,
        "search": run.costs.search_s,
        "stand-alone training": run.costs.stand_alone_s,
    }
    if spent := [f"{name} {seconds(cost_s)}" for name, cost_s in costs.items() if cost_s is not None]:
        found["cost"] = ", ".join(spent)
    if isinstance(regret := final.get("regret"), int | float):
        found["regret"] = f"{regret:.4f}: this much below the best architecture within the bounds"
    return found


def table_in_words(final: Mapping[str, Any]) -> str:
    """Which table a search was made with, and from where where it was imported."""
    table = final["table"]
    if "imported" in table:
        return Source.model_validate(table["imported"]).sentence
    return f"version {table['version']} of {table['table_id'][:12]}"


def calibration_in_words(final: Mapping[str, Any]) -> str:
    """How sums over the table were made into latencies of whole networks."""
    calibration = final.get("calibration")
    if calibration is None:
        return "none: predictions are plain sums, and their intervals say how well the sums are known"
    return (
        f"by whole networks of '{calibration['space']}'{_formula(calibration)}: left out one by one, they are"
        f" {calibration['left_out_mape_pct']:.2f} % off on average, {calibration['left_out_worst_pct']:.2f} % at worst;"
        f" residual spread {calibration['residual_pct']:.2f} %{_known_within(calibration)}"
    )


def _known_within(calibration: Mapping[str, Any]) -> str:
    """Empty in a `final.json` of an earlier version."""
    within_pct = calibration.get("known_within_pct")
    return "" if within_pct is None else f"; measured again, they would lie within {within_pct:.2f} %"


def _formula(calibration: Mapping[str, Any]) -> str:
    """Empty in a `final.json` of an earlier version."""
    return f", {calibration['formula']}" if "formula" in calibration else ""


def _with_probability(final: Mapping[str, Any]) -> str:
    confidence = final["config"].get("latency_confidence")
    if confidence is None:
        return ""
    with_probability = f", the upper with probability {confidence:g} at least"
    return with_probability + ("" if final.get("calibration") else ", as far as operators add up")


def _copy_of_table(final: Mapping[str, Any]) -> str:
    """That of the last stage, where tables were refined between stages."""
    last = final["stages"][-1]["stage"]
    refined = last > 1 and final["config"].get("refine") and not final.get("calibration")
    return f"stage-{last}/table.json" if refined else "table.json"


def _measured_under(protocol: Mapping[str, Any] | None) -> list[str]:
    """Empty where nobody knows."""
    if protocol is None:
        return []
    runtime = f"{protocol['runtime']} {protocol['runtime_version']}"
    return [runtime, protocol["delegate"], protocol["precision"], f"{protocol['threads']} thread", protocol["cores"]]


class StageRow(NamedTuple):
    """One stage, as people read it."""

    number: int
    size: str
    of_the_first: str  # how much of the first space is left
    evaluated: int
    supernet_accuracy: str
    best_accuracy: str
    training_s: float | None
    search_s: float | None


def _stage_rows(run: RunRecord) -> list[StageRow]:
    return [
        StageRow(
            number=number,
            size=size(stage.space.size),
            of_the_first=_share(stage.space.size / run.space.size),
            evaluated=len(stage.evaluated),
            supernet_accuracy=percent(stage.epochs[-1].validation_accuracy if stage.epochs else None),
            best_accuracy=percent(max(item.accuracy for item in stage.evaluated)),
            training_s=sum(record.seconds for record in stage.epochs) or None,
            search_s=sum(record.seconds for record in stage.generations) or None,
        )
        for number, stage in enumerate(run.stages, start=1)
    ]


def _alone_rows(run: RunRecord) -> list[tuple[str, ...]]:
    """Name, one-shot, validation, test, predicted ms, MACs, parameters; the most accurate first."""
    return [
        (
            one.name,
            percent(one.one_shot_accuracy),
            percent(one.validation_accuracy),
            percent(one.test_accuracy),
            ABSENT if one.predicted_latency_ms is None else f"{one.predicted_latency_ms:.3f}",
            _millions(one.macs, decimals=2),
            _millions(one.parameters, decimals=3),
        )
        for one in sorted(run.stand_alone, key=lambda one: -one.test_accuracy)
    ]


def _millions(count: int, *, decimals: int) -> str:
    return f"{count / 1e6:.{decimals}f} M"


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1e}"


def _outside(value_ms: float, predicted: Mapping[str, Any]) -> bool:
    """Whether a prediction did not expect this; it expects everything where it has no interval."""
    low_ms, high_ms = predicted["low_ms"], predicted["high_ms"]
    return low_ms is not None and high_ms is not None and not low_ms <= value_ms <= high_ms


def _with_interval(latency: Mapping[str, Any]) -> str:
    """Value and half-width in milliseconds; the wider side where they differ. The value alone without an interval."""
    value = latency["latency_ms"]
    if latency["low_ms"] is None:
        return f"{value:.3f}"
    half_width = max(value - latency["low_ms"], latency["high_ms"] - value)
    return f"{value:.3f} ±{half_width:.3f}"
