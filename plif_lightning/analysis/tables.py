"""The paper's tables, with this project's runs beside the paper's numbers. What was not run stays empty."""

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from scipy import special

from plif_lightning.analysis import paper
from plif_lightning.analysis.paper import Setting
from plif_lightning.analysis.settings import (
    differences,
    experiment,
    is_limited,
    neuron_in_words,
    one_per_seed,
    real,
    setting_of,
    unusual,
)
from plif_lightning.runs.run import Run
from plif_lightning.runtime.files import written_whole


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        name: its number in the paper; empty for one that is not of the paper.
        title: what it shows.
        columns: heads.
        rows: cells; empty where there is nothing to say.
        notes: sentences below it.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def trimmed(self) -> "Table":
        """The table without the columns that are empty in all rows; the first two always stay."""
        kept = [i for i in range(len(self.columns)) if i < 2 or any(row[i] for row in self.rows)]
        columns, *rows = ([cells[i] for i in kept] for cells in (self.columns, *self.rows))
        return replace(self, columns=columns, rows=rows)


def numbers_in_words(numbers: Iterable[int]) -> str:
    """`3`, or `3 to 5` for several different ones."""
    found = sorted({*numbers})
    return " to ".join(map(str, dict.fromkeys((found[0], found[-1]))))


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but their seed.

    Attributes:
        setting: what the paper's tables tell apart.
        runs: one for each seed.
        accuracy: their mean [%].
        low: end of the 95 % interval [%].
        high: the other end.
    """

    setting: Setting
    runs: list[Run]
    accuracy: float
    low: float
    high: float

    @property
    def protocol(self) -> str:
        return self.runs[0].protocol

    @property
    def epochs(self) -> str:
        """Number of epochs: `9 to 12` where seeds ended after different ones."""
        return numbers_in_words([run.epochs for run in self.runs])

    @property
    def is_whole(self) -> bool:
        """True if the runs saw all of the paper's data set."""
        run = self.runs[0]
        return _samples(run) == paper.SAMPLES.get(self.setting.data_set) and not is_limited(run)

    @property
    def is_usual(self) -> bool:
        """True if all settings but the table's own are those of the shipped configuration."""
        return not unusual(self.runs[0])


def _samples(run: Run) -> tuple[int, int] | None:
    """Training samples, those held out included, and samples of the test set."""
    counts = run.facts.get("samples")
    tested = run.tested_samples
    if not isinstance(counts, dict) or not isinstance(counts.get("training"), int) or tested is None:
        return None
    held_out = counts.get("val", 0)
    return counts["training"] + (held_out if isinstance(held_out, int) else 0), tested


def interval(accuracies: Sequence[float], tested: int | None) -> tuple[float, float]:
    """The 95 % interval of accuracies, as shares.

    Of the mean over seeds by Student's t; of one run, and of seeds that all reached the same, by Wilson's binomial
    interval, over the test samples of one. NaN where neither is known.
    """
    n = len(accuracies)
    if len(set(accuracies)) > 1:
        mean = statistics.fmean(accuracies)
        half = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(accuracies) / math.sqrt(n)
        return mean - half, mean + half
    if tested is None or tested < 1:
        return math.nan, math.nan
    share, z = round(accuracies[0] * tested) / tested, float(special.ndtri(0.975))
    centre = share + z * z / (2 * tested)
    half = z * math.sqrt(share * (1 - share) / tested + z * z / (4 * tested * tested))
    return (centre - half) / (1 + z * z / tested), (centre + half) / (1 + z * z / tested)


def cells(runs: Sequence[Run]) -> list[Cell]:
    """Finished runs, those that differ in nothing but their seed together; of one seed the latest."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.status == "finished" and run.accuracy is not None and 0 <= run.accuracy <= 1:
            groups[experiment(run)].append(run)
    found = []
    for comparable in (part for group in groups.values() for part in _by_test_set(group)):
        of_seeds = one_per_seed(comparable)
        shares = [run.accuracy for run in of_seeds if run.accuracy is not None]
        low, high = interval(shares, None if is_limited(of_seeds[0]) else of_seeds[0].tested_samples)
        mean = 100 * statistics.fmean(shares)
        found.append(Cell(setting_of(of_seeds[0]), of_seeds, mean, 100 * max(low, 0.0), 100 * min(high, 1.0)))
    return found


def _by_test_set(group: Sequence[Run]) -> list[list[Run]]:
    """The runs that were tested on the same samples together; all, if not more than one test set is known."""
    found: dict[Any, list[Run]] = defaultdict(list)
    for run in group:
        found[run.facts.get("test_content")].append(run)
    return [*found.values()] if len(found.keys() - {None}) > 1 else [[*group]]


def runs_without_a_test(runs: Sequence[Run]) -> list[Run]:
    """Finished runs of protocol B whose best checkpoint nobody tested, so that they have no accuracy."""
    return [run for run in runs if run.status == "finished" and run.protocol == "B" and run.test is None]


def source(run: Run) -> str:
    """Origin of a run's data and number of samples; for a part of the data also the whole number."""
    samples = _samples(run)
    origin = run.facts.get("origin")
    parts = [str(origin)] if origin else []
    if samples is not None:
        parts.append(f"{samples[0]:,} / {samples[1]:,} samples")
        whole = paper.SAMPLES.get(setting_of(run).data_set)
        if whole is not None and samples != whole and "PART" not in "".join(parts):
            parts.append(f"of {whole[0]:,} / {whole[1]:,}")
    if is_limited(run):
        parts.append("a part of them by the trainer's limits")
    return ", ".join(parts)


_RESULT_COLUMNS = [
    *("paper", "ours", "difference", "95 % interval", "seeds", "epochs", "T", "protocol", "data", "other settings"),
]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _result(cell: Cell | None, known: float | None, protocol: str, others: str = "") -> list[str]:
    """Return the cells below _RESULT_COLUMNS."""
    if cell is None:
        return [_number(known), *[""] * (len(_RESULT_COLUMNS) - 1)]
    comparable = cell.protocol == protocol and cell.is_whole and cell.is_usual
    return [
        _number(known),
        f"{cell.accuracy:.2f}",
        f"{cell.accuracy - known:+.2f}" if known is not None and comparable else "",
        "" if math.isnan(cell.low) else f"{cell.low:.2f} - {cell.high:.2f}",
        str(len(cell.runs)),
        cell.epochs,
        str(cell.runs[0].setting("data.time_steps", "")),
        cell.protocol,
        source(cell.runs[0]),
        others,
    ]


def _told(found: Sequence[Cell]) -> list[tuple[Cell, str]]:
    """Cells, those of a data set together, and what each was told that the others of its data set were not."""
    by_data: dict[str, list[Cell]] = defaultdict(list)
    for cell in found:
        by_data[cell.setting.data_set].append(cell)
    return [
        pair
        for same_data in by_data.values()
        for pair in zip(same_data, differences([cell.runs[0] for cell in same_data]), strict=True)
    ]


class _Comparison(NamedTuple):
    """A table of the paper with accuracies.

    Attributes:
        name: its number in the paper.
        title: what it shows.
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
    known: Mapping[Setting, float]
    wanted: Callable[[Setting], bool]
    describe: Callable[[Setting], str]
    only_protocol: bool = False
    beside: tuple[tuple[str, Mapping[Setting, float]], ...] = ()

    def with_runs(self, runs: Sequence[Run]) -> Table:
        """Return the table: each setting of the paper with its runs, if any, then runs of other settings."""
        by_setting: dict[Setting, list[tuple[Cell | None, str]]] = defaultdict(list)
        for cell, told in _told([cell for cell in cells(runs) if self.shows(cell)]):
            by_setting[cell.setting].append((cell, told))
        rows = [
            self._row(setting, cell, told)
            for setting in [*self.known, *sorted((s for s in by_setting if s not in self.known), key=_order)]
            for cell, told in by_setting.get(setting, [(None, "")])
        ]
        notes = _left_out([run for run in runs if self.wanted(setting_of(run))])
        notes.append(
            f"Accuracy {self.protocol} [%] in the paper; the authors' logs have {paper.EPOCHS} epochs. "
            "Ours: the mean over seeds with Student's 95 % interval, or Wilson's of one run and of seeds that all "
            "reached the same; a difference only where protocol and data are the paper's and all else is as shipped."
        )
        heads = [head for head, _ in self.beside]
        return Table(self.name, self.title, ["data set", self.label, *heads, *_RESULT_COLUMNS], rows, notes)

    def shows(self, cell: Cell) -> bool:
        """True if the table has a row of these runs."""
        is_comparable = not self.only_protocol or cell.protocol == self.protocol
        return is_comparable and self.wanted(cell.setting) and cell.setting.data_set in paper.TITLES

    def _row(self, setting: Setting, cell: Cell | None, told: str) -> list[str]:
        others = [_number(values.get(setting)) for _, values in self.beside]
        result = _result(cell, self.known.get(setting), self.protocol, told)
        return [paper.TITLES[setting.data_set], self.describe(setting), *others, *result]


def _left_out(runs: Sequence[Run]) -> list[str]:
    """Name the runs that have no accuracy, and why."""
    notes = []
    if unended := [run for run in runs if run.status in ("running", "unfinished") and run.metrics]:
        names = ", ".join(f"{run.name} ({run.status}, epoch {run.epochs})" for run in unended)
        notes.append(f"Left out, because they have not come to their end: {names}.")
    if untested := runs_without_a_test(runs):
        names = ", ".join(run.name for run in untested)
        notes.append(f"Left out, because their test set was never measured (test --ckpt_path RUN/...): {names}.")
    if unknown := [run for run in runs if run.status == "finished" and run.accuracy is None and run not in untested]:
        names = ", ".join(run.name for run in unknown)
        notes.append(f"Left out, because no accuracy was measured: {names}.")
    return notes


def _order(setting: Setting) -> tuple[Any, ...]:
    return setting.data_set, setting.neuron != "plif", setting.init_tau, setting.pooling


def _others(runs: Sequence[Run], comparisons: Sequence[_Comparison]) -> Table:
    """Runs that no table of the paper has: on other data, or of other settings."""
    found = _told([cell for cell in cells(runs) if not any(one.shows(cell) for one in comparisons)])
    rows = []
    for cell, told in sorted(found, key=lambda pair: _order(pair[0].setting)):
        data = cell.setting.data_set
        rows.append([paper.TITLES.get(data, data), _network(cell.setting), *_result(cell, None, "", told)[1:]])
    heads = [name for name in _RESULT_COLUMNS if name != "paper"]
    title = "Data sets and settings that are not in the paper's tables"
    return Table("other", title, ["data set", "network", *heads], rows, _left_out(runs))


def earlier_work() -> Table:
    """The other methods of the paper's Table 2."""
    rows = [[work, method, *accuracies] for work, method, accuracies in paper.EARLIER]
    rows.append(["the paper", "Spike-based BP", *(f"{paper.TABLE_2[data_set]:.2f}" for data_set in paper.TITLES)])
    notes = ["Accuracy [%] as the paper's Table 2 gives it; [21] is of 10 of the 11 classes of DVS128 Gesture."]
    return Table("2b", "Earlier work beside it", ["work", "method", *paper.TITLES.values()], rows, notes)


def tau_table(runs: Sequence[Run]) -> Table:
    """Accuracy and tau of each layer (Figure 7) beside the authors' after the same epochs, where there are any."""
    found = [c for c in cells(runs) if c.protocol == "A" and c.setting in paper.TAU]
    found = [c for c in found if len(c.runs[0].layers("tau")) == len(paper.TAU[c.setting][0])]  # the paper's network
    layers = max((len(paper.TAU[cell.setting][0]) for cell in found), default=0)
    heads = [f"tau({i}), ours / authors'" for i in range(layers)]
    columns = ["data set", "network", "T", "data", "seeds", "epoch", "accuracy", "authors'", *heads]
    rows = [[*row, *[""] * (len(columns) - len(row))] for cell, told in _told(found) for row in _tau_rows(cell, told)]
    notes = ["Layers counted from 0 at the input. The authors' are of one run each; Fashion-MNIST and CIFAR-10 only."]
    return Table("tau", "Time constants beside the authors' (Figure 7)", columns, rows, notes)


def _tau_rows(cell: Cell, told: str) -> Iterator[list[str]]:
    """Yield a row of `tau_table` for each of the authors' epochs that all runs of a cell have reached."""
    first = cell.runs[0]
    accuracies = dict(zip(paper.CURVE_EPOCHS, paper.CURVES.get(cell.setting, ()), strict=False))
    network = ", ".join(filter(None, (_network(cell.setting), told)))
    for epoch, known in zip(paper.TAU_EPOCHS, paper.TAU[cell.setting], strict=True):
        at = [row for run in cell.runs for row in run.metrics if row["epoch"] + 1 == epoch]
        if len(at) != len(cell.runs):
            continue
        ours = [row[first.val_key] for row in at if first.val_key in row]
        yield [
            *(paper.TITLES[cell.setting.data_set], network, str(first.setting("data.time_steps", "")), source(first)),
            *(str(len(at)), f"{epoch} of {cell.epochs}"),
            *(_number(100 * statistics.fmean(ours) if ours else None), _number(accuracies.get(epoch))),
            *(_tau_beside(cell, name, tau, at) for name, tau in zip(first.layers("tau"), known, strict=True)),
        ]


def _tau_beside(cell: Cell, layer: str, theirs: float, at: Sequence[Mapping[str, float]]) -> str:
    """Return the mean tau of a layer and the authors', with the difference if the runs saw all of the data."""
    mean = statistics.fmean(row.get(f"tau/{layer}", math.nan) for row in at)
    apart = f" ({100 * (mean / theirs - 1):+.1f} %)" if cell.is_whole else ""
    return f"{mean:.3f} / {theirs:.3f}{apart}"


def _pooling(setting: Setting) -> str:
    return {"avg": "average", "max": "max"}.get(setting.pooling, setting.pooling)


def _network(setting: Setting) -> str:
    return f"{neuron_in_words(setting)}, {_pooling(setting)}-pooling"


def result_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables 2, 4, 5 and S2, and the time constants."""
    usual = Setting("")
    table_2 = {Setting(d): accuracy for d, accuracy in paper.TABLE_2.items()}
    table_s2 = {Setting(d): accuracy for d, accuracy in paper.TABLE_S2.items()}

    def has_usual_neuron(s: Setting) -> bool:
        return (s.neuron, s.init_tau) == (usual.neuron, usual.init_tau)

    def has_usual_pooling(s: Setting) -> bool:
        return s.pooling == usual.pooling

    def is_usual(s: Setting) -> bool:
        return has_usual_neuron(s) and has_usual_pooling(s)

    comparisons = (
        _Comparison("2", "Accuracy of the six data sets", "A", "network", table_2, is_usual, _network, True),
        _Comparison("4", "PLIF and LIF neurons", "A", "neuron", paper.TABLE_4, has_usual_pooling, neuron_in_words),
        _Comparison("5", "Average and max-pooling", "A", "pooling", paper.TABLE_5, has_usual_neuron, _pooling),
        _Comparison(
            *("S2", "Accuracy with a validation part held out", "B", "network", table_s2, is_usual, _network, True),
            beside=(("paper, A", table_2),),
        ),
    )
    return [*(comparison.with_runs(runs) for comparison in comparisons), tau_table(runs), _others(runs, comparisons)]


@dataclass(frozen=True)
class NetworkFacts:
    """A configuration's network: what Tables 1 and S1 say of it."""

    data_set: str
    n_conv: int
    n_down: int
    n_fc: int
    channels: int
    input_shape: tuple[int, int, int]
    time_steps: int
    structure: str
    parameters: int


def network_tables(networks: Sequence[NetworkFacts], runs: Sequence[Run]) -> list[Table]:
    """Tables 1, S1 and 3, from the configurations and networks themselves."""
    first, structures, steps = [], [], []
    for net in networks:
        title = paper.TITLES[net.data_set]
        shape = "x".join(map(str, net.input_shape))
        numbers = map(str, (net.n_conv, net.n_down, net.n_fc, net.channels, shape, net.time_steps))
        first.append([title, *numbers])
        structures.append([title, net.structure, f"{net.parameters:,}"])
        work, theirs, ours = paper.TABLE_3[net.data_set]
        seen = {str(run.setting("data.time_steps", "?")) for run in runs if run.data_set == net.data_set}
        steps.append([title, work, theirs, str(ours), str(net.time_steps), ", ".join(sorted(seen, key=real))])
    head = ["data set", "N_conv", "N_down", "N_fc", "channels", "input", "T"]
    steps_head = ["data set", "best earlier work", "its T", "paper's T", "T of the configuration", "T of the runs"]
    return [
        Table("1", "Networks of the configurations", head, first),
        Table("S1", "Their structure", ["data set", "structure", "learned values"], structures),
        Table("3", "Time-steps", steps_head, steps),
    ]


def ordered(tables: Sequence[Table]) -> list[Table]:
    """In the paper's order."""
    order = ["1", "2", "2b", "3", "4", "5", "S1", "S2", "tau", "other", "leaderboard", "gains"]
    return sorted(tables, key=lambda table: order.index(table.name))


def problems_of(runs: Sequence[Run]) -> list[str]:
    """Every problem of the runs, with the names of those that have it."""
    names: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for problem in run.problems:
            names[problem].append(run.name)
    return [f"{', '.join(having)}: {problem}" for problem, having in names.items()]


_NUMERIC = {"paper", "paper, A", "ours", "difference", "seeds", "epochs", "T", "learned values"}


_UNNUMBERED = ("", "tau", "other", "leaderboard", "gains")


def heading(table: Table) -> str:
    """Its number in the paper, where it has one, and its title."""
    return f"Table {table.name}. {table.title}" if table.name not in _UNNUMBERED else table.title


def print_tables(tables: Sequence[Table], runs: Sequence[Run]) -> None:
    """Prints them; columns that are empty in all rows are left out."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in tables:
        if table.rows:
            _print_table(table.trimmed, console)
    for problem in problems_of(runs):
        console.print(f"[yellow]note[/]: {escape(problem)}")


def _print_table(table: Table, console: Console) -> None:
    shown = RichTable(title=escape(heading(table)), title_justify="left")
    for name in table.columns:
        shown.add_column(name, justify="right" if name in _NUMERIC else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
    for note in table.notes:
        console.print(escape(note), style="dim")
    console.print()


def markdown(table: Table) -> str:
    """Columns and rows as Markdown; columns that are empty in all rows are left out."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    table = table.trimmed
    return "\n".join([line(table.columns), "|" + "---|" * len(table.columns), *map(line, table.rows)])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def _latex(table: Table) -> str:
    """The table for a paper; needs the package booktabs."""

    def cell(text: str) -> str:
        escaped = "".join(_LATEX.get(c, c) for c in text)
        return escaped.replace(r"tau\_0", r"$\tau_0$").replace("tau =", r"$\tau$ =").replace(" - ", "--")

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(cell, cells)) + r" \\"

    def is_numeric(i: int) -> bool:
        return all(not row[i] or row[i].lstrip("+-").replace(".", "", 1).isdigit() for row in table.rows)

    table = table.trimmed
    aligned = "".join("lr"[is_numeric(i)] for i in range(len(table.columns)))
    lines = [f"% {heading(table)}", rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", line(table.columns), r"\midrule"]
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*lines, *map(line, table.rows), r"\bottomrule", r"\end{tabular}", *notes, ""])


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Writes `tables.md`, and for each table a csv and a LaTeX file."""
    paths = [folder / "tables.md"]
    with written_whole(paths[0]) as file:
        file.write("\n".join(f"## {heading(t)}\n\n{markdown(t)}\n" + "\n".join(["", *t.notes, ""]) for t in tables))
    for table in tables:
        path = folder / (f"table{table.name}.csv" if table.name else "results.csv")
        with written_whole(path) as file:
            csv.writer(file).writerows([table.columns, *table.rows])
        with written_whole(path.with_suffix(".tex")) as file:
            file.write(_latex(table))
        paths += [path, path.with_suffix(".tex")]
    return paths
