"""The paper's tables, with this project's runs beside the paper's numbers. What was not run stays empty."""

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from plif_lightning.runtime.console import Console
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
    def kept(self) -> list[int]:
        """Columns that are shown: those that are empty in all rows are not."""
        return [i for i in range(len(self.columns)) if i < 2 or any(row[i] for row in self.rows)]


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
    def epochs(self) -> int:
        return self.runs[0].epochs

    @property
    def is_whole(self) -> bool:
        """Whether the runs saw all of the paper's data set."""
        run = self.runs[0]
        return _samples(run) == paper.SAMPLES.get(self.setting.data_set) and not is_limited(run)

    @property
    def is_usual(self) -> bool:
        """Whether everything beside the table's own settings is as the project ships it."""
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
    for group in groups.values():
        of_seeds = one_per_seed(group)
        shares = [run.accuracy for run in of_seeds if run.accuracy is not None]
        low, high = interval(shares, None if is_limited(of_seeds[0]) else of_seeds[0].tested_samples)
        mean = 100 * statistics.fmean(shares)
        found.append(Cell(setting_of(of_seeds[0]), of_seeds, mean, 100 * max(low, 0.0), 100 * min(high, 1.0)))
    return found


def runs_without_a_test(runs: Sequence[Run]) -> list[Run]:
    """Finished runs of protocol B whose best checkpoint nobody tested, so that they have no accuracy."""
    return [run for run in runs if run.status == "finished" and run.protocol == "B" and run.test is None]


def source(run: Run) -> str:
    """Where a run's data are from, and how many samples it saw; of how many, where they are a part."""
    samples = _samples(run)
    parts = [str(run.facts.get("origin") or "")] if run.facts.get("origin") else []
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


def _result(cell: Cell | None, known: float | None, protocol: str, others: str = "") -> list[str]:
    stated = "" if known is None else f"{known:.2f}"
    if cell is None:
        return [stated, *[""] * (len(_RESULT_COLUMNS) - 1)]
    comparable = known is not None and cell.protocol == protocol and cell.is_whole and cell.is_usual
    return [
        stated,
        f"{cell.accuracy:.2f}",
        f"{cell.accuracy - known:+.2f}" if comparable and known is not None else "",
        "" if math.isnan(cell.low) else f"{cell.low:.2f} - {cell.high:.2f}",
        str(len(cell.runs)),
        str(cell.epochs),
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


def _accuracies(
    name: str,
    title: str,
    protocol: str,
    label: str,
    runs: Sequence[Run],
    known: Mapping[Setting, float],
    wanted: Any,
    describe: Any,
    only_protocol: bool = False,
    beside: tuple[str, Mapping[Setting, float]] | None = None,
) -> Table:
    """A table of accuracies: every cell of the paper's, and what was run for it, or without it.

    `beside` are other numbers of the paper, and what they are called.
    """
    found = [c for c in cells(runs) if wanted(c.setting) and (not only_protocol or c.protocol == protocol)]
    found = [c for c in found if c.setting.data_set in paper.TITLES]
    by_setting: dict[Setting, list[tuple[Cell, str]]] = defaultdict(list)
    for cell, told in _told(found):
        by_setting[cell.setting].append((cell, told))
    extra = sorted((s for s in by_setting if s not in known), key=_order)
    rows = []
    for setting in [*known, *extra]:
        data = paper.TITLES.get(setting.data_set, setting.data_set)
        group: list[tuple[Cell | None, str]] = [*by_setting.get(setting, [])] or [(None, "")]
        for one, others in group:
            more = [] if beside is None else [f"{beside[1][setting]:.2f}" if setting in beside[1] else ""]
            rows.append([data, describe(setting), *more, *_result(one, known.get(setting), protocol, others)])
    notes = []
    left_out = [run for run in runs if run.status in ("running", "unfinished") and run.metrics]
    left_out = [run for run in left_out if wanted(setting_of(run))]
    if left_out:
        names = ", ".join(f"{run.name} ({run.status}, epoch {run.epochs})" for run in left_out)
        notes.append(f"Left out, because they have not come to their end: {names}.")
    if untested := [run for run in runs_without_a_test(runs) if wanted(setting_of(run))]:
        names = ", ".join(run.name for run in untested)
        notes.append(f"Left out, because their test set was never measured (test --ckpt_path RUN/...): {names}.")
    notes.append(
        f"Accuracy {protocol} [%] in the paper; the authors' logs have {paper.EPOCHS} epochs. "
        "Ours: the mean over seeds with Student's 95 % interval, or Wilson's of one run and of seeds that all reached "
        "the same; a difference only where "
        "protocol and data are the paper's and all else is as shipped."
    )
    heads = [] if beside is None else [beside[0]]
    return Table(name, title, ["data set", label, *heads, *_RESULT_COLUMNS], rows, notes)


def _order(setting: Setting) -> tuple[Any, ...]:
    return setting.data_set, setting.neuron != "plif", setting.init_tau, setting.pooling


def other_data(runs: Sequence[Run]) -> Table:
    """What was run on data sets that the paper does not have."""
    found = _told([cell for cell in cells(runs) if cell.setting.data_set not in paper.TITLES])
    rows = []
    for cell, told in sorted(found, key=lambda pair: _order(pair[0].setting)):
        rows.append([cell.setting.data_set, _network(cell.setting), *_result(cell, None, "", told)[1:]])
    heads = [name for name in _RESULT_COLUMNS if name != "paper"]
    return Table("other", "Data sets that are not the paper's", ["data set", "network", *heads], rows)


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
    rows: list[list[str]] = []
    layers = max((len(paper.TAU[cell.setting][0]) for cell in found), default=0)
    for cell, told in _told(found):
        first = cell.runs[0]
        accuracies = dict(zip(paper.CURVE_EPOCHS, paper.CURVES.get(cell.setting, ()), strict=False))
        network = ", ".join(part for part in (_network(cell.setting), told) if part)
        for epoch, known in zip(paper.TAU_EPOCHS, paper.TAU[cell.setting], strict=True):
            at = [row for run in cell.runs for row in run.metrics if row["epoch"] + 1 == epoch]
            if len(at) != len(cell.runs):
                continue
            ours = [row[first.val_key] for row in at if first.val_key in row]
            row = [paper.TITLES[cell.setting.data_set], network, str(first.setting("data.time_steps", ""))]
            row += [source(first), str(len(at)), f"{epoch} of {cell.epochs}"]
            row.append(f"{100 * statistics.fmean(ours):.2f}" if ours else "")
            row.append(f"{accuracies[epoch]:.2f}" if epoch in accuracies else "")
            for name, theirs in zip(first.layers("tau"), known, strict=True):
                mean = statistics.fmean(r.get(f"tau/{name}", math.nan) for r in at)
                apart = f" ({100 * (mean / theirs - 1):+.1f} %)" if cell.is_whole else ""
                row.append(f"{mean:.3f} / {theirs:.3f}{apart}")
            rows.append([*row, *[""] * (layers - len(known))])
    heads = [f"tau({i}), ours / authors'" for i in range(layers)]
    return Table(
        "tau",
        "Time constants beside the authors' (Figure 7)",
        ["data set", "network", "T", "data", "seeds", "epoch", "accuracy", "authors'", *heads],
        rows,
        ["Layers counted from 0 at the input. The authors' are of one run each; Fashion-MNIST and CIFAR-10 only."],
    )


def _pooling(setting: Setting) -> str:
    return {"avg": "average", "max": "max"}.get(setting.pooling, setting.pooling)


def _network(setting: Setting) -> str:
    return f"{neuron_in_words(setting)}, {_pooling(setting)}-pooling"


def result_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables 2, 4, 5 and S2, and the time constants."""
    usual = Setting("")

    def is_usual(s: Setting) -> bool:
        return (s.neuron, s.init_tau, s.pooling) == (usual.neuron, usual.init_tau, usual.pooling)

    table_2 = {Setting(d): accuracy for d, accuracy in paper.TABLE_2.items()}
    table_s2 = {Setting(d): accuracy for d, accuracy in paper.TABLE_S2.items()}
    return [
        _accuracies("2", "Accuracy of the six data sets", "A", "network", runs, table_2, is_usual, _network, True),
        _accuracies(
            "4",
            "PLIF and LIF neurons",
            "A",
            "neuron",
            runs,
            paper.TABLE_4,
            lambda s: s.pooling == "max",
            neuron_in_words,
        ),
        _accuracies(
            "5",
            "Average and max-pooling",
            "A",
            "pooling",
            runs,
            paper.TABLE_5,
            lambda s: (s.neuron, s.init_tau) == (usual.neuron, usual.init_tau),
            _pooling,
        ),
        _accuracies(
            "S2",
            "Accuracy with a validation part held out",
            "B",
            "network",
            runs,
            table_s2,
            is_usual,
            _network,
            True,
            ("paper, A", table_2),
        ),
        tau_table(runs),
        other_data(runs),
    ]


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
        first.append(
            [title, str(net.n_conv), str(net.n_down), str(net.n_fc), str(net.channels), shape, str(net.time_steps)]
        )
        structures.append([title, net.structure, f"{net.parameters:,}"])
        work, theirs, ours = paper.TABLE_3[net.data_set]
        seen = sorted(
            {str(run.setting("data.time_steps", "?")) for run in runs if run.data_set == net.data_set}, key=real
        )
        steps.append([title, work, theirs, str(ours), str(net.time_steps), ", ".join(seen)])
    head = ["data set", "N_conv", "N_down", "N_fc", "channels", "input", "T"]
    return [
        Table("1", "Networks of the configurations", head, first),
        Table("S1", "Their structure", ["data set", "structure", "learned values"], structures),
        Table(
            "3",
            "Time-steps",
            ["data set", "best earlier work", "its T", "paper's T", "T of the configuration", "T of the runs"],
            steps,
        ),
    ]


def ordered(tables: Sequence[Table]) -> list[Table]:
    """In the paper's order."""
    order = ["1", "2", "2b", "3", "4", "5", "S1", "S2", "tau", "other"]
    return sorted(tables, key=lambda table: order.index(table.name))


def problems_of(runs: Sequence[Run]) -> list[str]:
    """A sentence for each thing that could not be read."""
    return [f"{run.name}: {problem}" for run in runs for problem in run.problems]


_NUMERIC = {"paper", "paper, A", "ours", "difference", "seeds", "epochs", "T", "learned values"}


def heading(table: Table) -> str:
    """Its number in the paper, where it has one, and its title."""
    return f"Table {table.name}. {table.title}" if table.name not in ("", "tau", "other") else table.title


def print_tables(tables: Sequence[Table], runs: Sequence[Run]) -> None:
    """Prints them; columns that are empty in all rows are left out."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in [table for table in tables if table.rows]:
        shown = RichTable(title=escape(heading(table)), title_justify="left")
        for i in table.kept:
            numeric = table.columns[i] in _NUMERIC
            shown.add_column(table.columns[i], justify="right" if numeric else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*(escape(row[i]) for i in table.kept))
        console.print(shown)
        for note in table.notes:
            console.print(escape(note), style="dim")
        console.print()
    for problem in problems_of(runs):
        console.print(f"[yellow]note[/]: {escape(problem)}")


def markdown(table: Table) -> str:
    """Columns and rows as Markdown; columns that are empty in all rows are left out."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    kept = table.kept
    lines = [line([table.columns[i] for i in kept]), "|" + "---|" * len(kept)]
    return "\n".join([*lines, *(line([row[i] for i in kept]) for row in table.rows)])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def _latex(table: Table) -> str:
    """The table for a paper; needs the package booktabs."""

    def cell(text: str) -> str:
        escaped = "".join(_LATEX.get(c, c) for c in text)
        return escaped.replace(r"tau\_0", r"$\tau_0$").replace("tau =", r"$\tau$ =").replace(" - ", "--")

    kept = table.kept
    numeric = [all(not row[i] or row[i].lstrip("+-").replace(".", "", 1).isdigit() for row in table.rows) for i in kept]
    lines = [f"% {heading(table)}", r"\begin{tabular}{" + "".join("lr"[n] for n in numeric) + "}"]
    lines += [r"\toprule", " & ".join(cell(table.columns[i]) for i in kept) + r" \\", r"\midrule"]
    lines += [" & ".join(cell(row[i]) for i in kept) + r" \\" for row in table.rows]
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, ""])


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
