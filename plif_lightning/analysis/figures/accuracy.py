"""Accuracy over epochs (6)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from plif_lightning.analysis import paper
from plif_lightning.analysis.figures.page import Drawn, NoDataError, for_legend, legends_below, new_panels
from plif_lightning.analysis.figures.panels import Curve, by_panel, common_epochs
from plif_lightning.analysis.select import setting_of
from plif_lightning.plot.style import COLOURS, DASHES, FILLS, MARKERS, plain
from plif_lightning.runs.run import Run

_WINDOW = 64  # epochs of the moving average


def moving_average(values: Sequence[float], window: int = _WINDOW) -> NDArray[np.float64]:
    """Average the last `window` values at each position, starting at the first complete window."""
    sums = np.cumsum([0.0, *values])
    return (sums[window:] - sums[:-window]) / window


def figure_6(runs: Sequence[Run]) -> Drawn:
    """Draw accuracy over epochs."""
    data = by_panel(runs, lambda run: len(run.curve(run.val_key)[0]) > 0)
    if not data:
        raise NoDataError("no run has measured an accuracy yet.")
    figure, panels = new_panels(len(data), height=3.3)
    smoothed = authors = False
    for ax, (panel, groups) in zip(panels, data.items(), strict=True):
        for index, (label, group) in enumerate(groups):
            curves = [run.curve(run.val_key) for run in group]
            epochs, mean = _mean(curves)
            _draw_runs(ax, index, curves)
            smoothed |= _draw_mean(ax, index, epochs, mean, label, len(group))
            authors |= _draw_authors(ax, index, group[0], max(epochs))
        ax.set_title(panel.title, loc="left", fontsize=7.5)
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"{'test' if groups[0][1][0].protocol == 'A' else 'validation'} accuracy [%]")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    legends_below(figure, panels, 1)
    return figure, (
        "Accuracy over epochs. Faint: each run; strong: the mean of runs that differ only in their seed."
        + (" For 128 or more epochs, all validated, the mean is a 64-epoch moving average." if smoothed else "")
        + (" Crosses: the authors' runs, on the full data set." if authors else "")
    )


def _mean(curves: Sequence[Curve]) -> tuple[list[float], NDArray[np.float64]]:
    """Return common epochs and mean accuracy [%]; of the first run if there is no common epoch."""
    try:
        epochs, values = common_epochs(curves)
    except NoDataError:
        epochs, values = curves[0][0], np.array([curves[0][1]])
    return epochs, 100 * values.mean(0)


def _draw_runs(ax: Axes, index: int, curves: Sequence[Curve]) -> None:
    for epochs, values in curves:
        colour = COLOURS[index % 8]
        ax.plot(epochs, [100 * v for v in values], color=colour, alpha=0.25, linewidth=0.8)


def _draw_mean(
    ax: Axes, index: int, epochs: Sequence[float], mean: NDArray[np.float64], label: str, count: int
) -> bool:
    """Draw the mean accuracy [%] of `count` runs.

    Returns:
        True if it was smoothed: the curve has at least two windows of the moving average, and a value for each epoch.
    """
    name = for_legend(label) + (f" ({count} runs)" if count > 1 else "")
    smoothed = len(mean) >= 2 * _WINDOW and epochs[-1] - epochs[0] == len(mean) - 1
    x, y = (epochs[_WINDOW - 1 :], moving_average(list(mean))) if smoothed else (epochs, mean)
    mark = MARKERS[index % 8] if len(x) <= 32 else ""
    # The ninth setting has the colour of the first, with other dashes and, from here on, a hollow marker.
    colour, style = COLOURS[index % 8], DASHES[(index + index // 8) % 4]
    ax.plot(x, y, style, color=colour, label=name, marker=mark, markersize=4,
            fillstyle=FILLS[index // 8 % 4])  # fmt: skip
    return smoothed


def _draw_authors(ax: Axes, index: int, run: Run, last: float) -> bool:
    """Mark the authors' accuracies of the same setting up to epoch `last`; True if they published any."""
    accuracies = paper.CURVES.get(setting_of(run))
    if not accuracies or run.protocol != "A":
        return False
    points = [(e, a) for e, a in zip(paper.CURVE_EPOCHS, accuracies, strict=True) if e <= last]
    colour = COLOURS[index % 8]
    ax.plot(*zip(*points, strict=True), "x", color=colour, markersize=7, markeredgewidth=1.8)
    return True
