"""Style of all figures."""

from typing import Any

from matplotlib.axes import Axes

# Palette of Okabe and Ito, distinguishable with any colour vision; markers and dashes also work in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A800")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")
FILLS: tuple[Any, ...] = ("full", "none", "left", "bottom")


def plain(axes: Axes) -> None:
    """Remove the top and right spines and add a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
