"""Pictures of operators: how often each is used (Fig. 3 and 7 of the paper), and architectures as blocks (Fig. 4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from latency_contract.operators import Conv, IBConv
from search_client.analyses import Spread
from search_client.figures.style import (
    LABEL_PT,
    PRUNED_COLOUR,
    QUIET_COLOUR,
    SMALL_PT,
    TITLE_PT,
    group_colour,
    in_percent,
    ink_on,
    kernel_colour,
    save,
    tidy,
)
from search_client.pruning import OperatorDistribution
from search_client.spaces import SearchSpace

BLOCK_GAP = 0.35  # of a layer's width, between blocks of a network
HIGHEST_EXPANSION = 6  # fills the height of a row
DARK_PROBABILITY = 0.4  # above it, black is hard to read on the colour
NAMES_IN = 1.4  # width of the names left of a distribution
WIDEST_IN = 11.0  # of a picture whose width grows with what is in it


def draw_distributions(
    path: Path, full: SearchSpace, stages: Mapping[str, tuple[SearchSpace, OperatorDistribution]]
) -> None:
    """Probability in percent of each operator in each layer, one panel a stage; what it does not offer is grey.

    `stages` is from a panel's title to the space that was searched and the distribution estimated in it.
    """
    operators = _by_kernel(full)
    choices = list(operators)
    width = max(NAMES_IN + 0.45 * len(full.layers), 7.0)
    height = 0.75 + 0.25 * len(choices)
    figure = Figure(figsize=(width, height * len(stages) + 0.4), layout="constrained")
    panels = figure.subplots(len(stages), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (title, (space, distribution)) in zip(panels, stages.items(), strict=True):
        shown = np.full((len(choices), len(full.layers)), np.nan)
        for column, probabilities in enumerate(distribution):
            for choice, probability in probabilities.items():
                shown[choices.index(choice), column] = probability
        axes.set_facecolor(PRUNED_COLOUR)
        axes.imshow(shown, cmap="Blues", norm=PowerNorm(0.6, vmin=0, vmax=1), aspect="auto")
        _mark_kernels(axes, list(operators.values()), width_in=width - NAMES_IN)
        for (row, column), probability in np.ndenumerate(shown):
            if probability >= 0.005:
                colour = "white" if probability > DARK_PROBABILITY else "black"
                text = f"{100 * probability:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=SMALL_PT, color=colour)
        axes.set_title(title, fontsize=TITLE_PT, loc="left")
        axes.set_yticks(range(len(choices)), choices, fontsize=SMALL_PT)
        axes.set_xticks(np.arange(len(space.layers) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(choices) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
    names = [layer.name.removeprefix("block") for layer in full.layers]
    panels[-1].set_xticks(range(len(names)), names, fontsize=SMALL_PT)
    panels[-1].set_xlabel("layer: block.place", fontsize=LABEL_PT)
    save(figure, path)


def _by_kernel(space: SearchSpace) -> dict[str, IBConv | Conv | None]:
    """Every choice that a layer offers, and an operator that it stands for: identity last, the others by kernel size,
    then by expansion."""
    found = {
        choice: space.operator(index, choice) for index, layer in enumerate(space.layers) for choice in layer.choices
    }
    return dict(sorted(found.items(), key=lambda item: _sort_key(item[1])))


def _mark_kernels(axes: Axes, operators: Sequence[IBConv | Conv | None], *, width_in: float) -> None:
    """A strip left of the rows, in the colours of kernel sizes; `width_in` is that of the axes."""
    strip, gap = 0.07 / width_in, 0.04 / width_in  # in shares of the axes
    for row, operator in enumerate(operators):
        if operator is not None:
            axes.add_patch(
                Rectangle(
                    (-strip - gap, row - 0.5),
                    strip,
                    1,
                    color=kernel_colour(operator.kernel),
                    linewidth=0,
                    clip_on=False,
                    transform=axes.get_yaxis_transform(),
                )
            )
    axes.tick_params(axis="y", pad=10)


def _sort_key(operator: IBConv | Conv | None) -> tuple[bool, int, int, bool]:
    if isinstance(operator, IBConv):
        return False, operator.kernel, operator.expansion, operator.squeeze_excite
    return operator is None, 0 if operator is None else operator.kernel, 0, False


def draw_architectures(path: Path, space: SearchSpace, architectures: Sequence[Mapping[str, Any]]) -> None:
    """One row an architecture, layers in order: colour is kernel size, height and number are expansion.

    The absence of an operator leaves its place empty; a linear convolution is a low block with its kernel in it.

    Args:
        architectures: each with name, choices by layer, latency_ms and accuracy.
    """
    places = _places(space)
    width = max(2.6 + 0.42 * places[-1], 7.0)
    figure = Figure(figsize=(width, 0.75 + 0.78 * len(architectures)), layout="constrained")
    axes = figure.add_subplot()
    kernels: dict[int, bool] = {}
    for row, one in enumerate(architectures):
        bottom = -1.25 * row
        axes.plot([places[0] - 0.5, places[-1] + 0.5], [bottom, bottom], color=PRUNED_COLOUR, linewidth=1, zorder=0)
        for index, layer in enumerate(space.layers):
            operator = space.operator(index, one["choices"][layer.name])
            if operator is not None:
                _draw_block(axes, operator, x=places[index], bottom=bottom)
                kernels[operator.kernel] = True
        axes.text(
            places[0] - 0.8, bottom + 0.42, one["name"], ha="right", va="center", fontsize=TITLE_PT, weight="bold"
        )
        said = f"{one['latency_ms']:.4g} ms\n{one['accuracy']:.1%}"
        axes.text(places[-1] + 0.75, bottom + 0.42, said, ha="left", va="center", fontsize=SMALL_PT + 1)
    _name_blocks(axes, space, places, y=-1.25 * (len(architectures) - 1) - 0.15)
    axes.set_xlim(places[0] - 1.2, places[-1] + 3.2)
    axes.set_ylim(-1.25 * (len(architectures) - 1) - 0.6, 1.1)
    axes.set_axis_off()
    patches = [Patch(color=kernel_colour(kernel), label=f"{kernel}×{kernel}") for kernel in sorted(kernels)]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), fontsize=SMALL_PT + 1, frameon=False)
    save(figure, path)


def _places(space: SearchSpace) -> list[float]:
    """Horizontal middle of each layer; blocks stand a little apart."""
    places, at, before = [], 0.0, None
    for layer in space.layers:
        block = layer.name.partition(".")[0]
        at += 0.0 if before is None else 1.0 + (BLOCK_GAP if block != before else 0.0)
        places.append(at)
        before = block
    return places


def _draw_block(axes: Axes, operator: IBConv | Conv, *, x: float, bottom: float) -> None:
    colour = kernel_colour(operator.kernel)
    expansion = operator.expansion if isinstance(operator, IBConv) else 1
    height = 0.25 + 0.75 * min(expansion, HIGHEST_EXPANSION) / HIGHEST_EXPANSION
    axes.add_patch(Rectangle((x - 0.45, bottom), 0.9, height, facecolor=colour, edgecolor="none"))
    text = str(expansion) if isinstance(operator, IBConv) else "conv"
    if isinstance(operator, IBConv) and operator.squeeze_excite:
        text += "\nSE"
    axes.text(
        x, bottom + height / 2, text, ha="center", va="center", fontsize=SMALL_PT, color=ink_on(colour), linespacing=0.9
    )


def _name_blocks(axes: Axes, space: SearchSpace, places: Sequence[float], *, y: float) -> None:
    blocks: dict[str, list[float]] = {}
    for layer, place in zip(space.layers, places, strict=True):
        blocks.setdefault(layer.name.partition(".")[0], []).append(place)
    for name, inside in blocks.items():
        middle = (inside[0] + inside[-1]) / 2
        short = name.removeprefix("block") if len(inside) == 1 else name.replace("block", "block ")
        axes.text(middle, y, short, ha="center", va="top", fontsize=SMALL_PT, color=QUIET_COLOUR)


def draw_last_layer(path: Path, groups: Mapping[str, Mapping[str, Spread]]) -> None:
    """Probability of each operator of the last layer, one bar a group; its line is one standard deviation over runs."""
    longest_first = sorted(groups.values(), key=len, reverse=True)
    choices = list(dict.fromkeys(choice for group in longest_first for choice in group))
    bar = 0.8 / len(groups)
    width = min(max(2 + 0.22 * len(choices) * (len(groups) + 1), 7.0), WIDEST_IN)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, group) in enumerate(groups.items()):
        offered = [choice for choice in choices if choice in group]
        at = [choices.index(choice) - 0.4 + bar * (index + 0.5) for choice in offered]
        axes.bar(
            at,
            [group[choice].mean for choice in offered],
            0.9 * bar,
            yerr=[group[choice].deviation or 0.0 for choice in offered],
            color=group_colour(index),
            error_kw={"linewidth": 1, "capsize": 2, "ecolor": "#333333"},
            label=label,
        )
    axes.set_xticks(range(len(choices)), [choice.replace("IBConv_", "") for choice in choices])
    axes.set_ylabel("probability in the last layer", fontsize=LABEL_PT)
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, len(choices) - 0.4)
    in_percent(axes)
    tidy(axes)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0, rotation=0 if len(choices) < 12 else 45)
    figure.legend(loc="outside upper left", ncols=4, fontsize=SMALL_PT + 1, frameon=False)
    save(figure, path)
