"""The leaderboard: accuracy against spikes."""

import math
from collections.abc import Sequence
from string import ascii_lowercase

from matplotlib.axes import Axes

from plif_lightning.analysis.figures.page import Drawn, NoDataError, escape_formula, ink, new_panels
from plif_lightning.analysis.leaderboard import Standing, number_of_seeds, standings
from plif_lightning.plot.style import COLOURS, plain
from plif_lightning.runs.run import Run

# Settings so much worse than the paper's [points] are named in the caption: they would squeeze all others together.
_FAR = 12.0
_STYLE = {"better": (COLOURS[2], "^"), "worse": (COLOURS[1], "v"), "": (None, "o")}


def figure_leaderboard(runs: Sequence[Run]) -> Drawn:
    """Draw test accuracy over the spikes for a sample, each with its interval over seeds."""
    boards = [rows for rows in standings(runs) if any(_has_spikes(row) for row in rows)]
    if not boards:
        raise NoDataError("no leaderboard has counted spikes: see `tables --only leaderboard`.")
    figure, panels = new_panels(len(boards), height=3.0)
    names = ""
    for ax, rows in zip(panels, boards, strict=True):
        baseline = next(row for row in rows if row.is_baseline)
        far = [row for row in rows if row.cell.accuracy <= baseline.cell.accuracy - _FAR]
        near = [row for row in rows if row not in far and _has_spikes(row)]
        for row in near:
            _draw(ax, row)
        # Names in their place would cover each other.
        lettered = dict(zip(ascii_lowercase, (row for row in near if row.verdict), strict=False))
        for letter, row in lettered.items():
            ax.annotate(letter, (row.mean("spikes"), row.cell.accuracy), (6, 4), textcoords="offset points", fontsize=7)
        parts = [f"({letter}) {row.change}" for letter, row in lettered.items()]
        parts += [f"far below: {row.change} ({row.cell.accuracy:.1f} %)" for row in far]
        names += f" {baseline.data}: {'; '.join(parts)}." if parts else ""
        ax.axhline(baseline.cell.accuracy, color=ink(0.3), linewidth=0.6, zorder=0)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_title(escape_formula(baseline.data), loc="left", fontsize=7.5)
        ax.set_xlabel("spikes for a sample")
        ax.set_ylabel("test accuracy [%]")
        plain(ax)
    every = [row for rows in boards for row in rows]
    return figure, (
        f"Accuracy B against spikes, one point for each setting, the mean over {number_of_seeds(every)}"
        + (" with Student's 95 % interval" if any(len(row.cell.runs) > 1 for row in every) else "")
        + ". Star and line: the paper's setting. Triangles: settings whose difference to it over the same seeds has an "
        f"interval without 0, upwards better, downwards worse.{names}"
    )


def _has_spikes(row: Standing) -> bool:
    """True if the spikes of all its runs are known."""
    return not math.isnan(row.mean("spikes"))


def _draw(ax: Axes, row: Standing) -> None:
    colour, marker = (ink(), "*") if row.is_baseline else _STYLE[row.verdict]
    cell = row.cell
    has_interval = len(cell.runs) > 1 and not math.isnan(cell.low)
    # Its ends stay between 0 and 100 %, so its halves differ.
    halves = [[cell.accuracy - cell.low], [cell.high - cell.accuracy]] if has_interval else None
    x = row.mean("spikes")
    ax.errorbar(
        x, cell.accuracy, halves, marker=marker, color=colour or ink(0.55), markersize=9 if row.is_baseline else 4.5,
        linewidth=0.7, zorder=3 if row.is_baseline else 2,
    )  # fmt: skip
