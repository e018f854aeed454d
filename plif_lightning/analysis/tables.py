"""The paper's tables, with this project's runs beside the paper's numbers. Cells without a run stay empty."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from plif_lightning import configs
from plif_lightning.analysis import paper, words
from plif_lightning.analysis.paper import Setting
from plif_lightning.analysis.select import Group, distinguishing, groups, names_of, real, setting_of
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import by_numbers
from plif_lightning.runtime.files import atomic_write
from plif_lightning.runtime.program import needed_by

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        name: its number in the paper; empty for other tables.
        title: its heading.
        columns: heads.
        rows: cells; empty where there is nothing to say.
        notes: sentences below it.
        runs: folders of the runs that each row averages; empty for a table of something else.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    runs: list[list[str]] = field(default_factory=list)

    @property
    def frame(self) -> "pd.DataFrame":
        """The cells as a data frame, which can write them to files."""
        with needed_by("a table in a file"):
            import pandas as pd

        return pd.DataFrame(self.rows, columns=self.columns, dtype=str)

    @property
    def has_runs(self) -> bool:
        """True if a row averages runs."""
        return any(self.runs)

    @property
    def with_its_runs(self) -> "Table":
        """The table with a last column, `runs`: the runs that each row averages."""
        if not self.runs:
            return self
        rows = [[*row, " ".join(names)] for row, names in zip(self.rows, self.runs, strict=True)]
        return replace(self, columns=[*self.columns, "runs"], rows=rows, runs=[])

    @property
    def without_empty_columns(self) -> "Table":
        """The table without the columns that are empty in all rows; the first two always stay."""
        columns_with_text = [i for i in range(len(self.columns)) if i < 2 or any(row[i] for row in self.rows)]
        columns, *rows = ([cells[i] for i in columns_with_text] for cells in (self.columns, *self.rows))
        return replace(self, columns=columns, rows=rows)


_RESULT_COLUMNS = [
    *("paper", "ours", "difference", "95 % interval", "seeds", "epochs", "T", "protocol", "data", "other settings"),
]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _accuracy_cells(cell: Group | None, of_paper: float | None, protocol: str, other_settings: str = "") -> list[str]:
    """Return the cells below _RESULT_COLUMNS."""
    if cell is None:
        return [_number(of_paper), *[""] * (len(_RESULT_COLUMNS) - 1)]
    comparable = cell.protocol == protocol and cell.has_all_samples and cell.has_shipped_settings
    return [
        _number(of_paper),
        f"{cell.accuracy:.2f}",
        f"{cell.accuracy - of_paper:+.2f}" if of_paper is not None and comparable else "",
        words.interval(cell.low, cell.high),
        str(len(cell.runs)),
        words.numbers(cell.epochs),
        str(cell.runs[0].setting("data.time_steps", "")),
        cell.protocol,
        words.source(cell.runs[0]),
        other_settings,
    ]


def _with_settings_in_words(averaged: Sequence[Group]) -> list[tuple[Group, str]]:
    """Groups sorted by data set, each with the settings that distinguish it there."""
    by_data: dict[str, list[Group]] = defaultdict(list)
    for group in averaged:
        by_data[group.setting.data_set].append(group)
    return [
        (group, ", ".join(map(words.difference, found)))
        for alike in by_data.values()
        for group, found in zip(alike, distinguishing([group.runs[0] for group in alike]), strict=True)
    ]


class _Comparison(NamedTuple):
    """A table of the paper with accuracies.

    Attributes:
        name: its number in the paper.
        title: its heading.
        protocol: protocol of the paper's accuracies.
        label: head of the column that `describe` fills.
        known: the paper's accuracies [%].
        wanted: True for the settings that belong to it.
        describe: put a setting in words.
        only_protocol: leave out runs of the other protocol.
        beside: heads and values of further columns with accuracies of the paper [%].
    """

    name: str
    title: str
    protocol: str
    label: str
    of_paper: Mapping[Setting, float]
    wanted: Callable[[Setting], bool]
    describe: Callable[[Setting], str]
    only_protocol: bool = False
    beside: tuple[tuple[str, Mapping[Setting, float]], ...] = ()

    def with_runs(self, runs: Sequence[Run]) -> Table:
        """Return the table: each setting of the paper with its runs, if any, then runs of other settings."""
        by_setting: dict[Setting, list[tuple[Group | None, str]]] = defaultdict(list)
        for cell, others in _with_settings_in_words([cell for cell in groups(runs) if self.shows(cell)]):
            by_setting[cell.setting].append((cell, others))
        cells = [
            (setting, cell, others)
            for setting in [*self.of_paper, *sorted((s for s in by_setting if s not in self.of_paper), key=_order)]
            for cell, others in by_setting.get(setting, [(None, "")])
        ]
        averaged = [cell for _, cell, _ in cells]
        notes = words.left_out([run for run in runs if self.wanted(setting_of(run))])
        notes += words.notes_on_groups([cell for cell in averaged if cell is not None])
        notes.append(
            f"Accuracy {self.protocol} [%] in the paper; the authors' logs have {paper.EPOCHS} epochs. "
            "Ours: the mean over seeds with Student's 95 % interval, or Wilson's of one run and of seeds that all "
            "reached the same; a difference only where protocol and data are the paper's and all else is as shipped."
        )
        heads = [head for head, _ in self.beside]
        columns = ["data set", self.label, *heads, *_RESULT_COLUMNS]
        rows = [self._row(*of_cell) for of_cell in cells]
        return Table(self.name, self.title, columns, rows, notes, [names_of(cell) for cell in averaged])

    def shows(self, cell: Group) -> bool:
        """True if the table has a row of these runs."""
        is_comparable = not self.only_protocol or cell.protocol == self.protocol
        return is_comparable and self.wanted(cell.setting) and cell.setting.data_set in paper.TITLES

    def _row(self, setting: Setting, cell: Group | None, others: str) -> list[str]:
        beside_paper = [_number(values.get(setting)) for _, values in self.beside]
        result = _accuracy_cells(cell, self.of_paper.get(setting), self.protocol, others)
        return [paper.TITLES[setting.data_set], self.describe(setting), *beside_paper, *result]


def _order(setting: Setting) -> tuple[Any, ...]:
    return setting.data_set, setting.neuron != "plif", setting.init_tau, setting.pooling


def earlier_work() -> Table:
    """The other methods of the paper's Table 2."""
    rows = [[work, method, *accuracies] for work, method, accuracies in paper.EARLIER]
    rows.append(["the paper", "Spike-based BP", *(f"{paper.TABLE_2[data_set]:.2f}" for data_set in paper.TITLES)])
    notes = ["Accuracy [%] as the paper's Table 2 gives it; [21] is of 10 of the 11 classes of DVS128 Gesture."]
    return Table("2b", "Earlier work beside it", ["work", "method", *paper.TITLES.values()], rows, notes)


def tau_table(runs: Sequence[Run]) -> Table:
    """Accuracy and tau of each layer (Figure 7) beside the authors' after the same epochs, where there are any."""
    cells = [c for c in groups(runs) if c.protocol == "A" and c.setting in paper.TAU]
    cells = [c for c in cells if len(c.runs[0].layers("tau")) == len(paper.TAU[c.setting][0])]  # the paper's network
    layers = max((len(paper.TAU[cell.setting][0]) for cell in cells), default=0)
    heads = [f"tau({i}), ours / authors'" for i in range(layers)]
    columns = ["data set", "network", "T", "data", "seeds", "epoch", "accuracy", "authors'", *heads]
    of_cells = [(cell, row) for cell, others in _with_settings_in_words(cells) for row in _tau_rows(cell, others)]
    rows = [[*row, *[""] * (len(columns) - len(row))] for _, row in of_cells]
    notes = ["Layers counted from 0 at the input. The authors' are of one run each; Fashion-MNIST and CIFAR-10 only."]
    title = "Time constants beside the authors' (Figure 7)"
    return Table("tau", title, columns, rows, notes, [names_of(cell) for cell, _ in of_cells])


def _tau_rows(cell: Group, others: str) -> Iterator[list[str]]:
    """Yield a row of `tau_table` for each of the authors' epochs that all runs of a cell have reached."""
    first = cell.runs[0]
    accuracies = dict(zip(paper.CURVE_EPOCHS, paper.CURVES.get(cell.setting, ()), strict=False))
    network = ", ".join(filter(None, (_network(cell.setting), others)))
    for epoch, taus in zip(paper.TAU_EPOCHS, paper.TAU[cell.setting], strict=True):
        at = [row for run in cell.runs for row in run.metrics if row["epoch"] + 1 == epoch]
        if len(at) != len(cell.runs):
            continue
        shares = [row[first.val_key] for row in at if first.val_key in row]
        yield [
            *(
                paper.TITLES[cell.setting.data_set],
                network,
                str(first.setting("data.time_steps", "")),
                words.source(first),
            ),
            *(str(len(at)), f"{epoch} of {words.numbers(cell.epochs)}"),
            *(_number(100 * statistics.fmean(shares) if shares else None), _number(accuracies.get(epoch))),
            *(_tau_beside(cell, name, tau, at) for name, tau in zip(first.layers("tau"), taus, strict=True)),
        ]


def _tau_beside(cell: Group, layer: str, theirs: float, at: Sequence[Mapping[str, float]]) -> str:
    """Return the mean tau of a layer and the authors', with the difference if the runs saw all of the data."""
    mean = statistics.fmean(row.get(f"tau/{layer}", math.nan) for row in at)
    difference = f" ({100 * (mean / theirs - 1):+.1f} %)" if cell.has_all_samples else ""
    return f"{mean:.3f} / {theirs:.3f}{difference}"


def _pooling(setting: Setting) -> str:
    return {"avg": "average", "max": "max"}.get(setting.pooling, setting.pooling)


def _network(setting: Setting) -> str:
    return f"{words.neuron(setting)}, {_pooling(setting)}-pooling"


def _has_default_neuron(setting: Setting) -> bool:
    return (setting.neuron, setting.init_tau) == (Setting("").neuron, Setting("").init_tau)


def _has_default_pooling(setting: Setting) -> bool:
    return setting.pooling == Setting("").pooling


def _is_default(setting: Setting) -> bool:
    return _has_default_neuron(setting) and _has_default_pooling(setting)


_TABLE_2 = {Setting(data_set): accuracy for data_set, accuracy in paper.TABLE_2.items()}
_TABLE_S2 = {Setting(data_set): accuracy for data_set, accuracy in paper.TABLE_S2.items()}
_COMPARISONS = {
    comparison.name: comparison
    for comparison in (
        _Comparison("2", "Accuracy of the six data sets", "A", "network", _TABLE_2, _is_default, _network, True),
        _Comparison("4", "PLIF and LIF neurons", "A", "neuron", paper.TABLE_4, _has_default_pooling, words.neuron),
        _Comparison("5", "Average and max-pooling", "A", "pooling", paper.TABLE_5, _has_default_neuron, _pooling),
        _Comparison(
            *("S2", "Accuracy with a validation part held out", "B", "network", _TABLE_S2, _is_default, _network, True),
            beside=(("paper, A", _TABLE_2),),
        ),
    )
}


def networks_table() -> Table:
    """Table 1, from the six configurations."""
    rows = []
    for name, (shape, _) in configs.INPUTS.items():
        blocks, title = _configured(name)
        numbers = [by_numbers(blocks["model"])[key] for key in ("n_conv", "n_down", "n_fc", "channels")]
        rows.append(
            [title, *map(str, numbers), "x".join(map(str, shape)), str(blocks["data"]["init_args"]["time_steps"])]
        )
    head = ["data set", "N_conv", "N_down", "N_fc", "channels", "input", "T"]
    return Table("1", "Networks of the configurations", head, rows)


def structures_table() -> Table:
    """Table S1, from the networks of the six configurations, built without memory for weights."""
    import torch

    rows = []
    for name in configs.INPUTS:
        with torch.device("meta"):
            net = configs.network_of(name)
        rows.append([_configured(name)[1], str(net.structure), f"{sum(p.numel() for p in net.parameters()):,}"])
    return Table("S1", "Their structure", ["data set", "structure", "learned values"], rows)


def time_steps_table(runs: Sequence[Run]) -> Table:
    """Table 3, and T of the configurations and of the runs."""
    rows = []
    for name in configs.INPUTS:
        blocks, title = _configured(name)
        data_set = blocks["data"]["class_path"].rsplit(".", 1)[-1]
        work, theirs, steps_of_paper = paper.TABLE_3[data_set]
        seen = {str(run.setting("data.time_steps", "?")) for run in runs if run.data_set == data_set}
        steps = str(blocks["data"]["init_args"]["time_steps"])
        rows.append([title, work, theirs, str(steps_of_paper), steps, ", ".join(sorted(seen, key=real))])
    head = ["data set", "best earlier work", "its T", "paper's T", "T of the configuration", "T of the runs"]
    return Table("3", "Time-steps", head, rows)


def _configured(name: str) -> tuple[dict[str, Any], str]:
    """A shipped configuration and the title of its data set."""
    blocks = configs.shipped_settings()[name]
    return blocks, paper.TITLES[blocks["data"]["class_path"].rsplit(".", 1)[-1]]


# The paper's tables by their numbers, in its order, each from the runs.
PAPER_TABLES: dict[str, Callable[[Sequence[Run]], Table]] = {
    "1": lambda runs: networks_table(),
    "2": _COMPARISONS["2"].with_runs,
    "2b": lambda runs: earlier_work(),
    "3": time_steps_table,
    "4": _COMPARISONS["4"].with_runs,
    "5": _COMPARISONS["5"].with_runs,
    "S1": lambda runs: structures_table(),
    "S2": _COMPARISONS["S2"].with_runs,
    "tau": tau_table,
}


def problems_of(runs: Sequence[Run]) -> list[str]:
    """Every problem of the runs, with the names of its runs."""
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for problem in run.problems:
            names[problem].append(run.name)
    return [f"{', '.join(having)}: {problem}" for problem, having in names.items()]


_NUMERIC = {"paper", "paper, A", "ours", "difference", "seeds", "epochs", "T", "learned values", "accuracy [%]"}


_UNNUMBERED = ("", "runs", "layers", "tau", "leaderboard", "gains")


def heading(table: Table) -> str:
    """Its number in the paper, if any, and its title."""
    return f"Table {table.name}. {table.title}" if table.name not in _UNNUMBERED else table.title


def print_tables(tables: Sequence[Table], runs: Sequence[Run]) -> None:
    """Prints them; columns that are empty in all rows are left out."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in tables:
        if table.rows:
            _print_table(table.without_empty_columns, console)
    for problem in problems_of(runs):
        console.print(f"[yellow]note[/]: {escape(problem)}")


def _print_table(table: Table, console: Console) -> None:
    printed = RichTable(title=escape(heading(table)), title_justify="left")
    for name in table.columns:
        printed.add_column(escape(name), justify="right" if name in _NUMERIC else "left", overflow="fold")
    for row in table.rows:
        printed.add_row(*map(escape, row))
    console.print(printed)
    for note in table.notes:
        console.print(escape(note), style="dim")
    console.print()


def markdown(table: Table) -> str:
    """Columns and rows as Markdown; columns that are empty in all rows are left out."""
    frame = table.without_empty_columns.frame.replace(r"\|", r"\\|", regex=True)
    return frame.to_markdown(index=False, disable_numparse=True)


def _latex(table: Table) -> str:
    """The table for a paper; needs the package booktabs."""
    frame = table.without_empty_columns.frame
    aligned = "".join("r" if name in _NUMERIC else "l" for name in frame.columns)
    style = frame.style.hide(axis="index").format(escape="latex").format_index(axis=1, escape="latex")
    text = style.to_latex(column_format=aligned, hrules=True)
    text = text.replace(r"tau\_0", r"$\tau_0$").replace("tau =", r"$\tau$ =").replace(" - ", "--")
    return "\n".join([f"% {heading(table)}", text, *(f"% {note}" for note in table.notes), ""])


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Writes `tables.md`, and for each table a csv and a LaTeX file."""
    paths = [folder / "tables.md"]
    with atomic_write(paths[0]) as file:
        file.write("\n".join(f"## {heading(t)}\n\n{markdown(t)}\n" + "\n".join(["", *t.notes, ""]) for t in tables))
    for table in tables:
        path = folder / (f"table{table.name}.csv" if table.name else "results.csv")
        with atomic_write(path) as file:
            file.write(table.with_its_runs.frame.to_csv(index=False))
        with atomic_write(path.with_suffix(".tex")) as file:
            file.write(_latex(table))
        paths += [path, path.with_suffix(".tex")]
    return paths
