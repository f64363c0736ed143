"""The report of a search: one page that a browser opens from disk, and the same table for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.table import Table

from search_client.durable_files import write_text


class Row(NamedTuple):
    """One final architecture, as people read it."""

    name: str
    predicted: str
    measured: str
    difference: str  # of the prediction from the measurement
    within_bounds: bool  # by the measured latency, its interval given the benefit of the doubt
    note: str  # what is not as it should be; empty where all is well
    accuracy: str
    test_accuracy: str  # empty where accuracies were published, on test images
    macs: str
    parameters: str


def rows(final: Mapping[str, Any]) -> list[Row]:
    """The final architectures of a `final.json`."""
    low_ms, high_ms = final["latency_bounds_ms"]
    made = []
    for architecture in final["architectures"]:
        predicted, measured = architecture["predicted_latency"], architecture["measured_latency"]
        within_bounds = measured["high_ms"] >= low_ms and measured["low_ms"] <= high_ms
        notes = []
        if measured["verdict"] != "steady":
            notes.append(measured["verdict"])
        if not within_bounds:
            notes.append("out of bounds")
        made.append(
            Row(
                name=architecture["name"],
                predicted=_with_interval(predicted),
                measured=_with_interval(measured),
                difference=f"{predicted['latency_ms'] / measured['latency_ms'] - 1:+.1%}",
                within_bounds=within_bounds,
                note=", ".join(notes),
                accuracy=f"{accuracy_of(architecture):.1%}",
                test_accuracy=f"{tested:.1%}" if (tested := architecture.get("one_shot_test_accuracy")) else "",
                macs=f"{architecture['macs'] / 1e6:.2f} M",
                parameters=f"{architecture['parameters'] / 1e6:.3f} M",
            )
        )
    return made


def accuracy_of(architecture: Mapping[str, Any]) -> float:
    """One-shot accuracy, or the one that a table has published, in [0, 1]."""
    return float(architecture["accuracy"] if "accuracy" in architecture else architecture["one_shot_accuracy"])


def terminal_table(final: Mapping[str, Any]) -> Table:
    low_ms, high_ms = final["latency_bounds_ms"]
    title = f"Final architectures on {final['device_model']}, bounds {low_ms:.3f} to {high_ms:.3f} ms"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "predicted ms", "measured ms", "off by", "accuracy", "test", "MACs", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows(final):
        cells = (row.name, row.predicted, row.measured, row.difference, row.accuracy, row.test_accuracy, row.macs)
        table.add_row(*cells, row.note, style=None if row.within_bounds else "red")
    return table


def write(path: Path, final: Mapping[str, Any]) -> None:
    """The page; its pictures are those in `figures/` beside it."""
    environment = Environment(
        loader=PackageLoader("search_client", "templates"), autoescape=True, undefined=StrictUndefined
    )
    published = "accuracy" in final["architectures"][0]
    page = environment.get_template("report.html").render(
        final=final,
        rows=rows(final),
        published=published,
        accuracy="published accuracy" if published else "one-shot accuracy",
    )
    write_text(path, page)


def _with_interval(latency: Mapping[str, Any]) -> str:
    """Value and half-width in milliseconds; the wider side where they differ."""
    value = latency["latency_ms"]
    half_width = max(value - latency["low_ms"], latency["high_ms"] - value)
    return f"{value:.3f} ±{half_width:.3f}"
