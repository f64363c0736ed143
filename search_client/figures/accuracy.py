"""Pictures of accuracies: against latency (Fig. 1 of the paper), by epoch (Fig. 5), one-shot and alone (Fig. 6)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import BboxBase

from search_client.analyses import RunRecord, accuracy_of, latency_of_final
from search_client.ces import pareto_front
from search_client.figures.style import (
    ALONE_COLOUR,
    FAINT_COLOUR,
    FINAL_COLOUR,
    LABEL_PT,
    SMALL_PT,
    TITLE_PT,
    group_colour,
    in_percent,
    save,
    stage_colour,
    tidy,
)
from search_client.published import PublishedNetwork, comparable

MARGIN = 0.06  # of a span of latencies, left and right of it
PANELS_IN_A_ROW = 3
MARKED_EPOCHS = 40  # fewer than these have a mark each


def draw_pareto(path: Path, run: RunRecord) -> None:
    """Accuracy against latency: what each stage evaluated, the last front, the final networks as measured whole
    (as predicted where no device was there).

    What was trained alone and, where they may be compared, other people's networks are added.
    """
    figure = Figure(figsize=(8.5, 5.6), layout="constrained")
    axes = figure.add_subplot()
    for index, stage in enumerate(run.stages):
        axes.scatter(
            [item.latency_ms for item in stage.evaluated],
            [item.accuracy for item in stage.evaluated],
            s=14,
            linewidth=0,
            color=stage_colour(index, stages=len(run.stages)),
            label=f"stage {index + 1}, predicted",
        )
    _draw_front(axes, run)
    _draw_finals(axes, run)
    alone = [
        (one.predicted_latency_ms, one.test_accuracy) for one in run.stand_alone if one.predicted_latency_ms is not None
    ]
    if alone:
        latencies_ms, accuracies = zip(*alone, strict=True)
        axes.scatter(
            latencies_ms, accuracies, s=34, marker="^", color=ALONE_COLOUR, label="trained alone, on test images"
        )
    _limit_latencies(axes, run)
    low_ms, high_ms = axes.get_xlim()
    published = comparable(device_model=run.final["device_model"], classes=run.space.head.out_channels)
    shown = [one for one in published if low_ms < one.latency_ms < high_ms]
    if shown:
        _draw_published(axes, shown)
    for bound_ms in run.final["latency_bounds_ms"]:
        axes.axvline(bound_ms, color=FAINT_COLOUR, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_xlabel(f"latency on {run.final['device_model']} (ms); dashed: bounds", fontsize=LABEL_PT)
    images = "" if run.published else ", on validation images"
    axes.set_ylabel(f"{run.accuracy_name}{images}", fontsize=LABEL_PT)
    axes.margins(y=0.09)  # room for the names of the best
    in_percent(axes)
    tidy(axes)
    figure.legend(loc="outside upper left", ncols=4, fontsize=SMALL_PT, frameon=False)
    _name_published(figure, axes, shown)
    save(figure, path)


def _draw_front(axes: Axes, run: RunRecord) -> None:
    front = [(item.latency_ms, item.accuracy) for item in pareto_front(run.stages[-1].evaluated)]
    colour = stage_colour(len(run.stages) - 1, stages=len(run.stages))
    axes.step(*zip(*front, strict=True), where="post", color=colour, linewidth=1.2, label="Pareto front")


def _draw_finals(axes: Axes, run: RunRecord) -> None:
    for number, architecture in enumerate(run.final["architectures"]):
        latency, accuracy = latency_of_final(architecture), accuracy_of(architecture)
        latency_ms, (low_ms, high_ms) = latency["latency_ms"], _interval(latency)
        axes.errorbar(
            latency_ms,
            accuracy,
            xerr=[[latency_ms - low_ms], [high_ms - latency_ms]],
            fmt="D",
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            capsize=3,
            color=FINAL_COLOUR,
            label=_finals_are(architecture) if number == 0 else None,
        )
        axes.annotate(
            architecture["name"],
            (latency_ms, accuracy),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=LABEL_PT,
            fontweight="bold",
            color=FINAL_COLOUR,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _finals_are(architecture: Mapping[str, Any]) -> str:
    return "final, predicted" if architecture["measured_latency"] is None else "final, measured whole"


def _interval(latency: Mapping[str, Any]) -> tuple[float, float]:
    """Without one, the latency alone."""
    if latency["low_ms"] is None:
        return latency["latency_ms"], latency["latency_ms"]
    return latency["low_ms"], latency["high_ms"]


def _limit_latencies(axes: Axes, run: RunRecord) -> None:
    """To what belongs to this run: other people's networks are only shown where they fall into it."""
    shown_ms = [*run.final["latency_bounds_ms"]]
    shown_ms += [end_ms for one in run.final["architectures"] for end_ms in _interval(latency_of_final(one))]
    shown_ms += [item.latency_ms for stage in run.stages for item in stage.evaluated]
    low_ms, high_ms = min(shown_ms), max(shown_ms)
    margin_ms = MARGIN * ((high_ms - low_ms) or high_ms)
    axes.set_xlim(low_ms - margin_ms, high_ms + margin_ms)


def _draw_published(axes: Axes, networks: Sequence[PublishedNetwork]) -> None:
    axes.scatter(
        [one.latency_ms for one in networks],
        [one.top_1 for one in networks],
        s=20,
        facecolor="none",
        edgecolor=FAINT_COLOUR,
        zorder=0,
        label="published, trained alone",
    )


def _name_published(figure: Figure, axes: Axes, networks: Sequence[PublishedNetwork]) -> None:
    """Last of all, when places are final: names that would lie on one another are left out."""
    figure.draw_without_rendering()
    taken: list[BboxBase] = []
    for one in networks:
        name = axes.annotate(
            one.name,
            (one.latency_ms, one.top_1),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=SMALL_PT - 1,
            color=FAINT_COLOUR,
            zorder=0,
        )
        extent = name.get_window_extent()
        if any(extent.overlaps(other) for other in taken):
            name.remove()
        else:
            taken.append(extent)


@dataclass(frozen=True)
class AccuracyCurves:
    """Supernet accuracy by epoch, counted through all stages: one curve a run, all of one length."""

    curves: Sequence[Sequence[float]]  # (runs, epochs)
    pruned_after: Sequence[int]  # epochs


def draw_supernet_accuracy(path: Path, groups: Mapping[str, AccuracyCurves]) -> None:
    """One line a group, the mean over its runs, with a band of one standard deviation where there are several.

    A group without curves is left out, and keeps its colour.
    """
    figure = Figure(figsize=(8.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, group) in enumerate(groups.items()):
        if not group.curves:
            continue
        colour = group_colour(index)
        curves = np.array(group.curves)  # (runs, epochs)
        epochs, mean = np.arange(1, 1 + curves.shape[1]), curves.mean(axis=0)
        marker = "o" if len(epochs) < MARKED_EPOCHS else None
        axes.plot(epochs, mean, color=colour, linewidth=1.8, marker=marker, markersize=3, label=label)
        if len(curves) > 1:
            deviation = curves.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
        for epoch in group.pruned_after:
            axes.axvline(epoch + 0.5, color=colour, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"{mean[-1]:.1%}",
            (epochs[-1], mean[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL_PT + 1,
            color=colour,
        )
    boundaries = [epoch for group in groups.values() for epoch in group.pruned_after]
    axes.set_xlabel("epoch, through all stages" + ("; dotted: pruned" if boundaries else ""), fontsize=LABEL_PT)
    axes.set_ylabel("supernet accuracy, on validation images", fontsize=LABEL_PT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    in_percent(axes)
    tidy(axes)
    if len(groups) > 1:
        figure.legend(loc="outside upper left", ncols=4, fontsize=SMALL_PT + 1, frameon=False)
    save(figure, path)


def draw_agreement(path: Path, groups: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Stand-alone against one-shot accuracy, one panel a group: from its title to pairs (one-shot, stand-alone).

    A group without pairs is left out, and keeps its colour.
    """
    shown = [(group_colour(index), title, pairs) for index, (title, pairs) in enumerate(groups.items()) if pairs]
    columns = len(shown) if len(shown) <= PANELS_IN_A_ROW else math.ceil(math.sqrt(len(shown)))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.4), 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axes, (colour, title, pairs) in zip(panels, shown, strict=False):
        one_shot, alone = zip(*pairs, strict=True)
        axes.scatter(one_shot, alone, s=32, color=colour, alpha=0.8, linewidth=0)
        axes.set_title(title, fontsize=TITLE_PT, loc="left")
        axes.set_xlabel("one-shot accuracy, validation", fontsize=LABEL_PT)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        in_percent(axes)
        tidy(axes)
    for axes in panels[::columns]:
        axes.set_ylabel("trained alone, test", fontsize=LABEL_PT)
    for axes in panels[len(shown) :]:
        axes.remove()
    save(figure, path)
