"""Runs side by side: grouped by their settings, with mean and deviation over seeds (Tables 6, 8 and 9 of the paper)."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search_client.analyses import RunRecord, Spread, last_layer, numbers, spread
from search_client.figures.accuracy import AccuracyCurves, draw_agreement, draw_supernet_accuracy
from search_client.figures.operators import draw_last_layer
from search_client.figures.style import group_colour
from search_client.pages import ABSENT, percent, size, write_page
from search_client.pages import spread as written
from search_client.report import table_in_words
from search_client.run_directory import write_json

# What a label says of a group wherever groups differ in it, in this order. Any other setting is named only where it
# is needed to tell two groups apart: epochs and learning rates, for one, follow from M.
TELLING: dict[str, Callable[[Any], str]] = {
    "space": lambda value: Path(str(value)).stem,
    "stages": lambda value: f"M = {value}",
    "final_search": str,
    "oracle": lambda oracle: str(oracle or "supernet"),
    "data": str,
    "device_model": str,
}
NOT_A_SETTING_OF_A_GROUP = ("seed", "device")  # the device is known by its model
SAME_BOUNDS = 0.02  # relative; bounds that are closer than this count as the same


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str
    runs: tuple[RunRecord, ...]

    def over_runs(self, value: Callable[[RunRecord], float | None]) -> Spread | None:
        return spread(value(run) for run in self.runs)

    @property
    def tau(self) -> Spread | None:
        return self.over_runs(lambda run: None if run.tau is None else run.tau.value)

    @property
    def title(self) -> str:
        """With the group's tau, where it has one."""
        return self.label if self.tau is None else f"{self.label}\nτ = {written(self.tau)}"

    @property
    def accuracy_curves(self) -> AccuracyCurves:
        curves = [run.accuracy_by_epoch for run in self.runs if run.accuracy_by_epoch]
        return AccuracyCurves(curves, self.runs[0].pruned_after if curves else [])

    @property
    def accuracy_pairs(self) -> list[tuple[float, float]]:
        return [pair for run in self.runs for pair in run.accuracy_pairs]

    @property
    def last_sizes(self) -> list[int]:
        """Of the space that was searched last, by run."""
        return [run.stages[-1].space.size for run in self.runs]


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Runs by their settings, in order of first appearance, labelled by what differs between the groups.

    Raises:
        ValueError: no run, or one that is given twice.
    """
    if not runs:
        raise ValueError("No run to compare. Give the directory of at least one finished search.")
    for place, run in enumerate(runs):
        for other in runs[:place]:
            if run.path.resolve() == other.path.resolve():
                raise ValueError(f"{run.path} is given twice. Give each run once.")
            if run.final == other.final:
                raise ValueError(
                    f"{run.path} is a copy of {other.path}: same settings, seed and results. Give one of them."
                )
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    members = list(found.values())
    labels = _labels([_settings(group[0]) for group in members])
    return [Group(label, tuple(group)) for label, group in zip(labels, members, strict=True)]


def _settings(run: RunRecord) -> dict[str, Any]:
    """What is not set is not there, as in a run of a version that did not know the setting."""
    settings = {
        name: value for name, value in run.config.items() if name not in NOT_A_SETTING_OF_A_GROUP and value is not None
    }
    return settings | {"device_model": run.final["device_model"]}


def _labels(settings: Sequence[dict[str, Any]]) -> list[str]:
    """One a group: its space and M where it is the only one, otherwise what differs."""
    if len(settings) == 1:
        names = ["space", "stages"]
    else:
        differing = [
            name
            for name in dict.fromkeys(chain(TELLING, *settings))
            if len({json.dumps(one.get(name)) for one in settings}) > 1
        ]
        names = [name for name in differing if name in TELLING]
        for name in differing:
            if len(set(_written(settings, names))) < len(set(_written(settings, [*names, name]))):
                names.append(name)
    return _written(settings, names)


def _written(settings: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    return [
        ", ".join(TELLING[name](one.get(name)) if name in TELLING else f"{name} = {one.get(name)}" for name in names)
        for one in settings
    ]


def notes(groups: Sequence[Group]) -> list[str]:
    """Where groups are not like with like."""
    runs = [run for group in groups for run in group.runs]
    found = []
    if len(data := list(dict.fromkeys(run.source for run in runs))) > 1:
        found.append(f"Accuracies are on different data ({', '.join(data)}): they do not compare between groups.")
    if len(devices := list(dict.fromkeys(run.final["device_model"] for run in runs))) > 1:
        found.append(f"Latencies are of different devices ({', '.join(devices)}): they do not compare between groups.")
    if imported := list(dict.fromkeys(table_in_words(run.final) for run in runs if "imported" in run.final["table"])):
        found.append(f"Latencies were not measured but taken from a table: {'; '.join(imported)}.")
    bounds = [run.final["latency_bounds_ms"] for run in runs]
    if any(max(side) > (1 + SAME_BOUNDS) * min(side) for side in zip(*bounds, strict=True)):
        lows, highs = zip(*bounds, strict=True)
        found.append(
            f"Latency bounds differ (from {min(lows):.3f} to {max(lows):.3f} ms, up to {min(highs):.3f} to"
            f" {max(highs):.3f} ms): a slower network may be better for being slower."
        )
    return found


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Callable[[Group], str]


def _spread_column(heading: str, value: Callable[[RunRecord], float | None], *, scale: float, decimals: int) -> Column:
    return Column(heading, lambda group: written(group.over_runs(value), scale=scale, decimals=decimals))


COLUMNS = (
    Column("runs", lambda group: str(len(group.runs))),
    Column("last space", lambda group: _from_to(group.last_sizes)),
    _spread_column("supernet %", lambda run: run.supernet_accuracy, scale=100, decimals=1),
    _spread_column("best found %", lambda run: run.best_accuracy, scale=100, decimals=1),
    _spread_column("best alone %", lambda run: run.best_stand_alone, scale=100, decimals=1),
    Column("τ", lambda group: written(group.tau)),
    _spread_column("training s", lambda run: run.costs.training_s, scale=1, decimals=0),
    _spread_column("search s", lambda run: run.costs.search_s, scale=1, decimals=0),
    _spread_column("alone s", lambda run: run.costs.stand_alone_s, scale=1, decimals=0),
)


def _from_to(sizes: Sequence[int]) -> str:
    low, high = size(min(sizes)), size(max(sizes))
    return low if low == high else f"{low} to {high}"


def columns(groups: Sequence[Group]) -> list[Column]:
    """Those that at least one group has something in."""
    return [column for column in COLUMNS if any(column.cell(group) != ABSENT for group in groups)]


def terminal_table(groups: Sequence[Group]) -> Table:
    shown = columns(groups)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in shown:
        table.add_column(column.heading, justify="right")
    for group in groups:
        table.add_row(group.label, *(column.cell(group) for column in shown))
    return table


def summary(groups: Sequence[Group]) -> dict[str, Any]:
    """What `compare.json` holds: every number of the table, by group and by run."""

    def plain(over_runs: Spread | None) -> dict[str, Any] | None:
        return None if over_runs is None else over_runs._asdict()

    return {
        "notes": notes(groups),
        "groups": [
            {
                "label": group.label,
                "settings": _settings(group.runs[0]),
                "last_sizes": group.last_sizes,
                "supernet_accuracy": plain(group.over_runs(lambda run: run.supernet_accuracy)),
                "best_accuracy": plain(group.over_runs(lambda run: run.best_accuracy)),
                "best_stand_alone_accuracy": plain(group.over_runs(lambda run: run.best_stand_alone)),
                "kendall_tau": plain(group.tau),
                "training_s": plain(group.over_runs(lambda run: run.costs.training_s)),
                "search_s": plain(group.over_runs(lambda run: run.costs.search_s)),
                "stand_alone_s": plain(group.over_runs(lambda run: run.costs.stand_alone_s)),
                "last_layer": {choice: plain(one) for choice, one in last_layer(group.runs).items()},
                "runs": [numbers(run) for run in group.runs],
            }
            for group in groups
        ],
    }


def write(out: Path, groups: Sequence[Group]) -> None:
    """`compare.json`, `compare.html` and its pictures in `figures/`."""
    out.mkdir(parents=True, exist_ok=True)
    figures = out / "figures"
    curves = {group.label: group.accuracy_curves for group in groups}
    agreement = {group.title: group.accuracy_pairs for group in groups}
    layers = {group.label: last_layer(group.runs) for group in groups}
    has_curves, has_agreement = any(one.curves for one in curves.values()), any(agreement.values())
    if has_curves:
        draw_supernet_accuracy(figures / "supernet_accuracy.png", curves)
    if has_agreement:
        draw_agreement(figures / "agreement.png", agreement)
    draw_last_layer(figures / "last_layer.png", layers)
    write_json(out / "compare.json", summary(groups))
    write_page(
        out / "compare.html",
        "compare.html",
        groups=groups,
        columns=columns(groups),
        notes=notes(groups),
        colours=[group_colour(index) for index in range(len(groups))],
        layers=_layer_rows(groups),
        has_curves=has_curves,
        has_agreement=has_agreement,
    )


def _layer_rows(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """By group: operators that the last layer still uses, and how far seeds differ (Fig. 7)."""
    rows = []
    for group in groups:
        found = last_layer(group.runs)
        used = spread(sum(p > 0 for p in run.stages[-1].distribution[-1].values()) for run in group.runs)
        deviations = [one.deviation for one in found.values() if one.deviation is not None]
        mean_deviation = statistics.fmean(deviations) if deviations else None
        rows.append((group.label, f"{written(used, decimals=1)} of {len(found)}", percent(mean_deviation)))
    return rows
