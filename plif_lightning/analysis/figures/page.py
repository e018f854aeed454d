"""Sizes, panels, legends and text that all figures share."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plif_lightning.errors import UserError


class NoDataError(UserError):
    """No run has the data that a figure needs."""


Drawn = tuple[Figure, str]  # a figure and its caption
WIDTH = 6.9  # of a page's two columns [inch] (IEEE, CVF)
# Maximum number of legend entries, and the number of legend lines that fit the default height of a panel.
_ENTRIES, _LINES = 16, 6


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Create a figure [inch], scaled down if it is wider than the page.

    Returns:
        The figure and its axes [rows, columns].
    """
    size = (width, height) if width <= WIDTH else (WIDTH, height * WIDTH / width)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def new_panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Create a figure of the page's width with `count` panels of equal height [inch]."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = new_figure(WIDTH, height * rows, rows, columns)
    flat = list(axes.flat)
    for ax in flat[count:]:
        ax.set_visible(False)
    return figure, flat[:count]


def ink(share: float = 1.0) -> str:
    """Grey: black, fainter for `share` below 1."""
    return str(1 - share)


def legends_below(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """Add a legend below each panel and make the figure taller to fit it; long legends end with "and N more"."""
    longest = 0
    for ax in panels:
        handles, labels = ax.get_legend_handles_labels()
        if (more := len(labels) - _ENTRIES) > 0:
            handles = [*handles[:_ENTRIES], Line2D([], [], linestyle="")]
            labels = [*labels[:_ENTRIES], f"and {more} more"]
        longest = max(longest, sum(1 + label.count("\n") for label in labels) // columns)
        # borderaxespad [font size] leaves room for the ticks and the axis label.
        ax.legend(
            handles, labels, frameon=False, fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5,
            ncols=columns, columnspacing=1.2,
        )  # fmt: skip
    rows = panels[0].get_gridspec().nrows  # type: ignore[union-attr]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + rows * 0.13 * max(0, longest - _LINES))


def shorten(words: object, max_length: int = 60) -> str:
    """Collapse white space and truncate to `max_length` characters."""
    text = " ".join(str(words).split())
    return text if len(text) <= max_length else text[: max_length - 1] + "\u2026"


def escape_formula(text: str) -> str:
    """Escape "$", which would start a formula. Wrap before escaping: a line break may separate the backslash."""
    return text.replace("$", r"\$")


def literal(words: object, max_length: int = 60) -> str:
    """Shorten and escape."""
    return escape_formula(shorten(words, max_length))


def for_title(words: str) -> str:
    """Shorten, wrap and escape the settings in a panel's title."""
    return escape_formula(textwrap.fill(shorten(words, 120), 50))


def for_legend(label: str) -> str:
    """Shorten, wrap and escape a legend entry, with tau as a symbol."""
    text = escape_formula(textwrap.fill(shorten(label, 120), 42, subsequent_indent="  "))
    return text.replace("tau_0", "$\\tau_0$").replace("tau =", "$\\tau$ =")
