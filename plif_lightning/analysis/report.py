"""One static HTML page with runs, tables, figures and spikes of recorded samples; it loads nothing from a server."""

import base64
import html
import io
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from plif_lightning.analysis.figures import FIGURES, NothingToShowError, drawn
from plif_lightning.analysis.settings import data_title, labels
from plif_lightning.analysis.tables import Table, heading, problems_of
from plif_lightning.errors import UserError
from plif_lightning.runs.run import Run
from plif_lightning.runtime.files import written_whole

# Style of the figures in dark mode.
_DARK: Any = {
    **{f"{part}.facecolor": "#1b1f24" for part in ("figure", "axes", "savefig")},
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#e7e9ec"),
    "grid.color": "#5b636d",
}
_COLUMNS = ("data", "setting", "T", "seed", "protocol", "accuracy [%]", "best epoch", "epochs", "status", "run")


def _rows(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Cells of each run, best first within a data set."""
    by_data: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_data[data_title(run)].append(run)
    rows: list[tuple[str, ...]] = []
    for title, of_data in sorted(by_data.items()):
        named = labels(of_data)
        each = [f"{label}, {named.shared}" if named.shared else label for label in named.each]
        for label, run in sorted(zip(each, of_data, strict=True), key=lambda one: -(one[1].accuracy or 0.0)):
            accuracy = "" if run.accuracy is None else f"{100 * run.accuracy:.2f}"
            best = "" if run.best is None else str(run.best[0])
            steps, seed = (str(run.setting(key, "")) for key in ("data.time_steps", "seed_everything"))
            rows.append(
                (title, label, steps, seed, run.protocol, accuracy, best, str(run.epochs), run.status, run.name)
            )
    return rows


def _cells(tag: str, values: Iterable[str], mine: int | None = None) -> str:
    return "".join(
        f"<{tag}{' class=mine' if i == mine else ''}>{html.escape(value)}</{tag}>" for i, value in enumerate(values)
    )


def _html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], mine: int | None = None) -> str:
    body = "".join(f"<tr>{_cells('td', row, mine)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(title)}"><table><thead><tr>'
        f"{_cells('th', columns)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _table(table: Table) -> str:
    table = table.trimmed
    ours = table.columns.index("ours") if "ours" in table.columns else None
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in table.notes)
    title = heading(table)
    return f"<h3>{html.escape(title)}</h3>{_html_table(title, table.columns, table.rows, ours)}{notes}"


def _figures(runs: Sequence[Run], problems: list[str]) -> str:
    found = []
    for name in FIGURES:
        try:
            figure, caption = drawn(name, runs)
        except NothingToShowError as error:
            problems.append(f"figure {name} is left out: {error}")
            continue
        with rc_context(_DARK):
            dark = drawn(name, runs)[0]
        found.append(_figure(figure, dark, f"Figure {name}. {caption}"))
    return "".join(found)


def _figure(figure: Figure, dark: Figure, caption: str) -> str:
    width, height = (round(96 * side) for side in figure.get_size_inches())
    text = html.escape(caption)
    # With width and height the layout does not move while images load, so links to sections below stay right.
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_image(dark, _DARK)}">'
        f'<img loading="lazy" width="{width}" height="{height}" alt="{text}" src="{_image(figure)}"></picture>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _image(figure: Figure, style: Any = None) -> str:
    file = io.BytesIO()
    with rc_context(style or {}):
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _details(run: Run) -> str:
    """Command and configuration of a run, to unfold."""
    command = "; ".join([shlex.join(["python", "main.py", *run.command]), *run.changes])
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    text = html.escape(f"{command}\n\n{config}")
    return f"<details><summary>{html.escape(run.name)}</summary><pre>{text}</pre></details>"


def write_report(runs: Sequence[Run], tables: Sequence[Table], path: Path) -> None:
    """Write the page.

    Args:
        runs: to show.
        tables: the paper's tables.
        path: of the HTML file.

    Raises:
        UserError: path is a folder.
    """
    if path.is_dir():
        raise UserError(f"--out must be a file, got the folder {path}.")
    problems = problems_of(runs)
    parts = {
        "RUNS": _html_table("Runs", _COLUMNS, _rows(runs), _COLUMNS.index("accuracy [%]")),
        "TABLES": "".join(_table(table) for table in tables if table.rows),
        "FIGURES": _figures(runs, problems),
        "DETAILS": "".join(map(_details, runs)),
        "PROBLEMS": "".join(f'<p class="soft">{html.escape(problem)}</p>' for problem in problems),
    }
    page = (resources.files("plif_lightning.analysis") / "report.html").read_text(encoding="utf-8")
    head, *rest = page.split("<!--")
    page = head + "".join(parts[part.split("-->", 1)[0]] + part.split("-->", 1)[1] for part in rest)
    with written_whole(path, "wb") as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    print(f"{path}: {len(runs)} run{'s' if len(runs) != 1 else ''}, {len(page) / 2**20:.1f} MiB")
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
