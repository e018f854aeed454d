"""One static HTML page with settings, figures, runs and tables; it loads nothing from a server."""

import base64
import html
import io
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from plif_lightning.analysis import words
from plif_lightning.analysis.figures import FIGURES, NoDataError, drawn
from plif_lightning.analysis.layers import layer_table
from plif_lightning.analysis.leaderboard import comparison_table
from plif_lightning.analysis.select import data_title
from plif_lightning.analysis.tables import PAPER_TABLES, Table, heading, problems_of
from plif_lightning.runs.command import commands
from plif_lightning.runs.run import Run
from plif_lightning.runtime import program
from plif_lightning.runtime.files import atomic_write

_COLUMNS = ["data set", "setting", "seed", "accuracy [%]", "best epoch", "epochs", "status"]
# Of single neurons, without runs.
_WITHOUT_RUNS = ("1b", "2", "5b")


def _runs_table(runs: Sequence[Run]) -> Table:
    """All runs, best first within a data set."""
    rows, names = [], []
    for title in sorted({data_title(run) for run in runs}):
        of_data = [run for run in runs if data_title(run) == title]
        named = words.labels(of_data)
        for label, run in sorted(
            zip(named.each, of_data, strict=True), key=lambda labelled: -(labelled[1].accuracy or 0.0)
        ):
            accuracy = "" if run.accuracy is None else f"{100 * run.accuracy:.2f}"
            best, seed = "" if run.best is None else str(run.best[0]), str(run.setting("seed_everything", ""))
            setting = ", ".join(filter(None, (label, named.shared)))
            rows.append([title, setting, seed, accuracy, best, str(run.epochs), run.status])
            names.append([run.name])
    return Table("", "Runs", _COLUMNS, rows, runs=names)


def _table(table: Table, anchors: Mapping[str, str], title: str = "") -> str:
    """A table with its notes and links to the runs of each row; the column of this project's accuracies stands out.

    Args:
        table: to write.
        anchors: of the runs' details, by the runs' names.
        title: above it; empty for none.
    """
    frame = table.without_empty_columns.frame.map(html.escape)
    for name in {"ours", "accuracy [%]"} & {*frame.columns}:
        frame[name] = "<b>" + frame[name] + "</b>"
    if table.runs:
        frame["runs"] = [" ".join(_links(names, anchors)) for names in table.runs]
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in table.notes)
    return (
        (f"<h3>{html.escape(title)}</h3>" if title else "")
        + f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(title or table.title)}">'
        + f"{frame.to_html(index=False, escape=False, border=0)}</div>{notes}"
    )


def _links(names: Sequence[str], anchors: Mapping[str, str]) -> Iterator[str]:
    """Links to the details of runs: a single run by its name, more by their numbers."""
    for number, name in enumerate(names, start=1):
        text = name if len(names) == 1 else str(number)
        yield f'<a href="#{anchors[name]}" title="{html.escape(name)}">{html.escape(text)}</a>'


def _figures(runs: Sequence[Run], problems: list[str]) -> str:
    figures = []
    for name in FIGURES:
        if name in _WITHOUT_RUNS:
            continue
        try:
            figure, caption = drawn(name, runs)
        except NoDataError as error:
            problems.append(f"figure {name} is left out: {error}")
            continue
        figures.append(_figure(figure, f"Figure {name}. {caption}"))
    return "".join(figures)


def _figure(figure: Figure, caption: str) -> str:
    width, height = (round(96 * side) for side in figure.get_size_inches())
    file, text = io.BytesIO(), html.escape(caption)
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode()
    # With width and height the layout does not move while images load, so links to sections below stay right.
    return (
        f'<figure><img loading="lazy" width="{width}" height="{height}" alt="{text}" '
        f'src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def _details(run: Run, anchor: str) -> str:
    """Command and configuration of a run, to unfold."""
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    calls = "\n".join(f"{program.program_name()} {shlex.join(call)}" for call in commands(run))
    changes = "".join(f"# {change}\n" for change in words.changes(run))
    text = html.escape(f"{calls}\n{changes}\n{config}")
    # A link opens the details that its target lies in.
    return f'<details><summary>{html.escape(run.name)}</summary><pre id="{anchor}">{text}</pre></details>'


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write the page; tables of the paper without a run are left out.

    Args:
        runs: to show.
        path: of the HTML file.
    """
    problems = problems_of(runs)
    anchors = {run.name: f"run-{number}" for number, run in enumerate(runs, 1)}
    tables = [make(runs) for make in PAPER_TABLES.values()]
    layers = _table(layer_table(runs), anchors)
    parts = {
        "SETTINGS": _table(comparison_table(runs), anchors),
        "LAYERS": f"<details><summary>Each layer in the best epoch</summary>{layers}</details>",
        "RUNS": _table(_runs_table(runs), anchors),
        "TABLES": "".join(_table(table, anchors, heading(table)) for table in tables if table.has_runs)
        or '<p class="soft">No run has a setting of these tables.</p>',
        "FIGURES": _figures(runs, problems),
        "DETAILS": "".join(_details(run, anchors[run.name]) for run in runs),
        "PROBLEMS": "".join(f'<p class="soft">{html.escape(problem)}</p>' for problem in problems),
    }
    page = (resources.files("plif_lightning.analysis") / "report.html").read_text(encoding="utf-8")
    head, *rest = page.split("<!--")
    page = head + "".join(parts[section.split("-->", 1)[0]] + section.split("-->", 1)[1] for section in rest)
    with atomic_write(path, "wb") as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    print(f"{path}: {len(runs)} run{'s' if len(runs) != 1 else ''}, {len(page) / 2**20:.1f} MiB")
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
