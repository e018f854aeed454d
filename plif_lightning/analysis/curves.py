"""A run's learning curve and time constants over its epochs."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plif_lightning.plot.style import COLOURS, MARKERS, plain
from plif_lightning.runs.metrics import layer_values


def _figure(title: str, y_label: str) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)
    return figure


def _line(figure: Figure, i: int, epochs: list[float], values: list[float], label: str) -> None:
    figure.axes[0].plot(
        epochs,
        values,
        label=label,
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        markersize=4 if len(epochs) <= 64 else 0,
        linewidth=1.5,
    )


def _save(figure: Figure, path: Path) -> None:
    if figure.axes[0].lines:
        figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def plot_learning_curve(metrics: list[dict[str, float]], path: Path, title: str) -> None:
    """Writes accuracy [%] over epochs, one line for each part of the data that was measured.

    Args:
        metrics: a row per epoch, from `read_metrics`.
        path: an image file.
        title: the figure's title.
    """
    names = {"train/acc": "training", "val/acc": "validation", "test_as_val/acc": "test (used to select the epoch)"}
    figure = _figure(title, "accuracy [%]")
    for i, (key, label) in enumerate(names.items()):
        rows = [row for row in metrics if key in row]
        if rows:
            _line(figure, i, [row["epoch"] + 1 for row in rows], [100 * row[key] for row in rows], label)
    _save(figure, path)


def plot_tau_curve(metrics: list[dict[str, float]], path: Path, title: str) -> None:
    """Writes the time constant [time-steps] of each layer over epochs; arguments as `plot_learning_curve`."""
    figure = _figure(title, "membrane time constant $\\tau$ [time-steps]")
    rows = [row for row in metrics if layer_values(row, "tau")]
    for i, layer in enumerate(layer_values(rows[-1], "tau") if rows else ()):
        _line(figure, i, [row["epoch"] + 1 for row in rows], [row[f"tau/{layer}"] for row in rows], layer)
    _save(figure, path)
