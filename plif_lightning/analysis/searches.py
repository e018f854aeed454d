"""A search: its ranking, and each parameter against the metric."""

import numbers
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plif_lightning.analysis.figures.page import literal, new_panels
from plif_lightning.analysis.tables import Table
from plif_lightning.plot.style import COLOURS, plain
from plif_lightning.runs.metrics import value_in_words
from plif_lightning.runs.searches import SearchRecord, Trial

# Rows of a ranking, and values of a parameter without order, that are shown.
_ROWS, _VALUES = 30, 12


def search_table(search: SearchRecord) -> Table:
    """The ranking of a search; below it, what matters and the best run's command."""
    keys = list(dict.fromkeys(key for trial in search.trials for key in trial.parameters))
    rows = [
        [trial.run, _value(search, trial), trial.state, *(_text(trial, key) for key in keys)]
        for trial in search.trials[:_ROWS]
    ]
    notes = []
    if (more := len(search.trials) - len(rows)) > 0:
        notes.append(f"And {more} more.")
    if search.importance:
        shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in search.importance.items())
        notes.append(f"What explains the metric's variance (fANOVA): {shares}.")
    if search.command:
        notes.append(f"The best run: {search.command}")
    order = "highest" if search.maximise else "lowest"
    title = f"{search.name}: {search.method} search, {search.metric}, {order} first"
    return Table("", title, ["run", search.metric, "state", *keys], rows, notes)


def _value(search: SearchRecord, trial: Trial) -> str:
    return "" if trial.value is None else value_in_words(search.metric, trial.value)


def _text(trial: Trial, key: str) -> str:
    value = trial.parameters.get(key, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def search_figure(search: SearchRecord) -> tuple[Figure, str] | None:
    """Draw each parameter against the metric and return the figure and its caption; None for fewer than two values."""
    done = [trial for trial in search.trials if trial.value is not None]
    keys = [key for key in dict.fromkeys(k for t in done for k in t.parameters) if len(_different(done, key)) > 1]
    if len(done) < 2 or not keys:
        return None
    figure, panels = new_panels(len(keys), height=2.4)
    for ax, key in zip(panels, keys, strict=True):
        _draw(ax, search, key, [trial for trial in done if key in trial.parameters])
    return figure, f"Each parameter of {search.name} against {search.metric}, one point for each of {len(done)} runs."


def _different(trials: Sequence[Trial], key: str) -> set[str]:
    return {str(trial.parameters[key]) for trial in trials if key in trial.parameters}


def _draw(ax: Axes, search: SearchRecord, key: str, trials: Sequence[Trial]) -> None:
    scale = 100 if search.metric.endswith("acc") else 1
    y = [scale * trial.value for trial in trials if trial.value is not None]
    values = [trial.parameters[key] for trial in trials]
    if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
        x = [float(value) for value in values]
        if key in search.logarithmic and min(x) > 0:
            ax.set_xscale("log")
    else:
        names = sorted(map(str, {str(value): None for value in values}))
        x = [float(names.index(str(value))) for value in values]
        ax.set_xticks(range(len(names[:_VALUES])), [literal(name, 14) for name in names[:_VALUES]], fontsize=6.5)
        ax.set_xlim(-0.5, len(names) - 0.5)
    ax.plot(x, y, "o", color=COLOURS[0], markersize=3.5, alpha=0.7)
    ax.set_xlabel(literal(key))
    ax.set_ylabel(literal(search.metric) + (" [%]" if scale == 100 else ""))
    plain(ax)
