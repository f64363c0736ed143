"""The pictures of a search: what it found (Fig. 1 of the paper) and which operators it kept (Fig. 3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from search_client.ces import nondomination_ranks
from search_client.pruning import OperatorDistribution
from search_client.report import accuracy_of
from search_client.search_problem import Evaluated
from search_client.spaces import SearchSpace

DPI = 150
STAGE_COLOURS = ("#9ecae1", "#6baed6", "#3182bd", "#08519c")  # light to dark, the last stage darkest
FINAL_COLOUR = "#d94801"
PRUNED_COLOUR = "#e8e8e8"


def draw_pareto(path: Path, final: Mapping[str, Any], evaluated_by_stage: Mapping[int, Sequence[Evaluated]]) -> None:
    """Accuracy against latency of everything evaluated, the last front, and the final networks as measured whole."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    shades = STAGE_COLOURS[-len(evaluated_by_stage) :] or STAGE_COLOURS
    for index, (stage, evaluated) in enumerate(evaluated_by_stage.items()):
        axes.scatter(
            [item.latency_ms for item in evaluated],
            [item.accuracy for item in evaluated],
            s=12,
            color=shades[min(index, len(shades) - 1)],
            label=f"stage {stage}, predicted",
        )
    last = list(evaluated_by_stage.values())[-1]
    front = sorted(
        (item.latency_ms, item.accuracy)
        for item, rank in zip(last, nondomination_ranks(last), strict=True)
        if rank == 1
    )
    axes.step(*zip(*front, strict=True), where="post", color=STAGE_COLOURS[-1], linewidth=1, label="Pareto front")
    for number, architecture in enumerate(final["architectures"]):
        measured = architecture["measured_latency"]
        latency_ms = measured["latency_ms"]
        axes.errorbar(
            latency_ms,
            accuracy_of(architecture),
            xerr=[[latency_ms - measured["low_ms"]], [measured["high_ms"] - latency_ms]],
            fmt="D",
            markersize=5,
            capsize=3,
            color=FINAL_COLOUR,
            label="final, measured whole" if number == 0 else None,
        )
        axes.annotate(
            architecture["name"],
            (latency_ms, accuracy_of(architecture)),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=FINAL_COLOUR,
        )
    for bound_ms in final["latency_bounds_ms"]:
        axes.axvline(bound_ms, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel(f"latency on {final['device_model']} (ms)")
    published = "accuracy" in final["architectures"][0]
    axes.set_ylabel("published accuracy" if published else "one-shot accuracy on validation images")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=DPI)


def draw_distributions(
    path: Path, full: SearchSpace, stages: Mapping[str, tuple[SearchSpace, OperatorDistribution]]
) -> None:
    """Probability of each operator in each layer, one panel a stage; what it does not offer (any more) is grey.

    `stages` is from a panel's title to the space that was searched and the distribution estimated in it.
    """
    choices = list(dict.fromkeys(choice for layer in full.layers for choice in layer.choices))
    width, height = 2.5 + 0.45 * len(full.layers), 1.4 + 0.28 * len(choices)
    figure = Figure(figsize=(width, height * len(stages)), layout="constrained")
    for place, (title, (space, distribution)) in enumerate(stages.items(), start=1):
        axes = figure.add_subplot(len(stages), 1, place)
        shown = np.full((len(choices), len(full.layers)), np.nan)
        for column, probabilities in enumerate(distribution):
            for choice, probability in probabilities.items():
                shown[choices.index(choice), column] = probability
        axes.set_facecolor(PRUNED_COLOUR)
        image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), probability in np.ndenumerate(shown):
            if probability > 0:
                colour = "white" if probability > 0.6 else "black"
                axes.text(column, row, f"{probability:.0%}", ha="center", va="center", fontsize=6, color=colour)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(range(len(choices)), choices, fontsize=7)
        axes.set_xticks(range(len(space.layers)), [layer.name for layer in space.layers], fontsize=7, rotation=45)
        figure.colorbar(image, ax=axes, label="probability")
    figure.savefig(path, dpi=DPI)
