"""What all pictures share: one colour for one meaning, sizes of type, and how they are saved."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

DPI = 150
TITLE_PT, LABEL_PT, SMALL_PT = 11, 10, 8

FINAL_COLOUR = "#d94801"  # final architectures, as measured whole
ALONE_COLOUR = "#1b7837"  # accuracies of stand-alone training
FAINT_COLOUR = "#9a9a9a"  # background: bounds, other people's networks
QUIET_COLOUR = "#6b6b6b"  # names of what everything else stands on
PRUNED_COLOUR = "#ececec"  # what is not offered
# By kernel size: small ones light, large ones dark; also apart for people who see few colours.
KERNEL_COLOURS = {1: "#c9c9c9", 3: "#f4c95d", 5: "#45a88f", 7: "#56447f"}
OTHER_KERNEL_COLOUR = "#3b3b3b"
# Groups of runs, in their order (Okabe and Ito's palette without its yellow).
GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def stage_colour(index: int, *, stages: int) -> str:
    """Of the stage with this index from 0: light to dark, the last one darkest."""
    return to_hex(colormaps["Blues"](0.95 - 0.55 * (stages - 1 - index) / max(stages - 1, 1)))


def group_colour(index: int) -> str:
    return GROUP_COLOURS[index % len(GROUP_COLOURS)]


def kernel_colour(kernel: int) -> str:
    return KERNEL_COLOURS.get(kernel, OTHER_KERNEL_COLOUR)


def ink_on(colour: str) -> str:
    """Black or white, whichever is read more easily on this colour."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL_PT + 1)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def in_percent(axes: Axes) -> None:
    """The vertical axis holds shares of 1."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
