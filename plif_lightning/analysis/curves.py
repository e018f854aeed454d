"""A run's learning curve and time constants over its epochs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plif_lightning.plot.style import COLOURS, MARKERS, plain
from plif_lightning.runs.metrics import layer_values
from plif_lightning.runtime.files import written_whole

Metrics = Sequence[dict[str, float]]
_PARTS = {"train": "training", "val": "validation", "test_as_val": "test (used to select the epoch)"}


def _axes(title: str, y_labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.0 + 4.6 * len(y_labels), 3.6), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, len(y_labels), squeeze=False)[0])
    axes[0].set_title(title, loc="left", fontsize=11)
    for ax, y_label in zip(axes, y_labels, strict=True):
        ax.set_xlabel("epoch")
        ax.set_ylabel(y_label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(ax)
    return figure, axes


def _line(ax: Axes, i: int, metrics: Metrics, key: str, label: str, factor: float = 1.0) -> None:
    rows = [row for row in metrics if key in row]
    if rows:
        ax.plot(
            [row["epoch"] + 1 for row in rows],
            [factor * row[key] for row in rows],
            label=label,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4 if len(rows) <= 64 else 0,
            linewidth=1.5,
        )


def _save(figure: Figure, path: Path) -> None:
    for ax in figure.axes:
        if ax.lines:
            ax.legend(frameon=False)
    with written_whole(path, "wb") as file:
        figure.savefig(file, format="png")


def plot_learning_curve(metrics: Metrics, path: Path, title: str) -> None:
    """Writes accuracy [%] and loss over epochs, one line for each part of the data that was measured.

    Args:
        metrics: a row per epoch, from `read_metrics`.
        path: a png file.
        title: the figure's title.
    """
    figure, axes = _axes(title, ["accuracy [%]", "loss"])
    for i, (part, label) in enumerate(_PARTS.items()):
        _line(axes[0], i, metrics, f"{part}/acc", label, 100)
        _line(axes[1], i, metrics, f"{part}/loss", label)
    _save(figure, path)


def plot_tau_curve(metrics: Metrics, path: Path, title: str) -> None:
    """Writes the time constant [time-steps] of each layer over epochs; arguments as `plot_learning_curve`."""
    figure, axes = _axes(title, ["membrane time constant $\\tau$ [time-steps]"])
    rows = [row for row in metrics if layer_values(row, "tau")]
    for i, layer in enumerate(layer_values(rows[-1], "tau") if rows else ()):
        _line(axes[0], i, rows, f"tau/{layer}", layer)
    _save(figure, path)


def plot_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Writes how often samples of each class were taken for each: colour for the share of the true class.

    Args:
        counts: [true class, predicted class].
        names: of the classes.
        path: a png file.
    """
    n = len(names)
    side = 3.6 + 0.28 * n
    figure = Figure(figsize=(side + 1.2, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    totals = [sum(row) for row in counts]
    share = [[count / max(total, 1) for count in row] for row, total in zip(counts, totals, strict=True)]
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    long = max(map(len, names)) > 3
    axes.set_xticks(range(n), names, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(n), [f"{name} ({total})" for name, total in zip(names, totals, strict=True)])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (samples)")
    right = sum(counts[i][i] for i in range(n))
    whole = sum(totals)
    axes.set_title(f"accuracy {100 * right / max(whole, 1):.2f} %: {right:,} of {whole:,}", loc="left", fontsize=11)
    size = 9 if n <= 12 else 5
    for i, row in enumerate(counts if n <= 30 else []):
        for j, count in enumerate(row):
            if count:
                colour = "white" if share[i][j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=size)
    _save(figure, path)
