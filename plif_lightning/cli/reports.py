"""`runs`, `tables`, `figures` and `report`: results of runs. None of them loads Lightning."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from plif_lightning.analysis import paper
from plif_lightning.analysis.frame import write_frame
from plif_lightning.analysis.layers import layer_table
from plif_lightning.analysis.leaderboard import COMPARED, comparison_table, gains_table, leaderboard_table
from plif_lightning.analysis.measured import measured_table
from plif_lightning.analysis.tables import (
    PAPER_TABLES,
    Table,
    heading,
    print_tables,
    problems_of,
    write_tables,
)
from plif_lightning.cli.parser import PlainParser, add_text_options
from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.runs.code import difference, kept_sources
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.published import add_published, runs_in
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import Role, defaults, is_of, role
from plif_lightning.runtime import program

RUNS = "runs"  # default folder of a fit


def _parser(name: str, description: str) -> PlainParser:
    parser = PlainParser(name, description)
    parser.add_argument(
        "--runs",
        help="folder that holds the runs, or a file of published ones such as configs/leaderboard/results.jsonl "
        "(default: runs)",
    )
    return parser


def _tables_parser() -> PlainParser:
    parser = _parser("tables", "Print the paper's tables, with this project's runs beside the paper's numbers.")
    parser.add_argument("--out", type=Path, help="folder for tables.md, and for a csv and a LaTeX file of each table")
    parser.add_argument(
        "--only",
        help="comma-separated tables: runs, layers, 1, 2, 2b, 3, 4, 5, S1, S2, tau, leaderboard or gains (default: "
        "those with a run in them, but for layers; without runs, the paper's)",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        metavar="NAME=VALUE",
        help="a setting, such as model.neuron=lif, of the runs that gains are beside (default: the paper's settings)",
    )
    parser.add_argument("--show_runs", action="store_true", help="name the runs of each row, as csv files do")
    parser.add_argument(
        "--results", type=Path, help="file of published runs, such as configs/results.jsonl: add the finished ones"
    )
    return parser


def _figures_parser() -> PlainParser:
    parser = _parser("figures", "Draw the paper's figures from this project's runs, or a recording, as pdf and png.")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (default: figures)")
    parser.add_argument("--recording", type=Path, help="draw this file of an event camera instead")
    add_text_options(parser)
    parser.add_argument("--only", help="comma-separated figures: 1b, 2, 5b, 6, 7, S1 to S5, layers or leaderboard")
    return parser


def _report_parser() -> PlainParser:
    parser = _parser("report", "Write one self-contained page with tables, figures and all runs.")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    return parser


def _runs_parser() -> PlainParser:
    parser = _parser("runs", "List runs, with the settings in which they differ; or compare some of them.")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="only these, each setting in a line")
    parser.add_argument("--out", type=Path, help="a file for all columns: .csv, .md, .tex or .html")
    return parser


# Columns of the list; the settings that differ follow.
_LISTED = ("status", "data", "seed", "epochs", "accuracy", "minutes")


def runs(argv: list[str]) -> int:
    """List runs, or compare some of them."""
    from plif_lightning.analysis.frame import read_runs

    options = _runs_parser().parse_args(argv)
    root = options.runs or RUNS
    frame = read_runs(root)
    if options.compare:
        # By name, or by any path of the folder, as a shell completes it.
        names = [name if name in frame.index else os.path.relpath(name, root) for name in options.compare]
        if unknown := [n for n, found in zip(options.compare, names, strict=True) if found not in frame.index]:
            raise UserError(f"{', '.join(unknown)} is no run in {root}: it has {', '.join(frame.index)}.")
        frame = frame.loc[names]
    differing = [name for name in frame.columns if frame[name].astype(str).nunique(dropna=False) > 1]
    if options.out is not None:
        write_frame(frame, options.out)
        print(options.out)
    elif options.compare:
        print(frame[differing].T.to_string(na_rep="", float_format=lambda value: f"{value:.10g}"))
        first, *others = names
        sources = {name: kept_sources(RunFolder(Path(root) / name)) for name in names}
        for name in others:
            if edited := difference(sources[first], sources[name], (f"in {first}", f"in {name}")):
                print(f"\n{edited}")
    else:
        listed = [name for name in _LISTED if name in frame.columns]
        blocks = ("data", "task", "model", "trainer", "code", "changes", "left_out")
        listed += [n for n in differing if is_of(n, *blocks) and n not in listed and not role(n) & Role.PLACE]
        listed.sort(key=lambda name: name == "left_out")  # a sentence: last
        print(frame[listed].to_string(na_rep="", float_format=lambda value: f"{value:.4g}"))
    return 0


Baseline = dict[str, Any] | None
# In the order in which they are printed.
TABLES: dict[str, Callable[[list[Run], Baseline], Table]] = {
    "runs": comparison_table,
    "layers": lambda runs, baseline: layer_table(runs),
    **{name: lambda runs, baseline, make=make: make(runs) for name, make in PAPER_TABLES.items()},  # type: ignore[misc]
    "leaderboard": leaderboard_table,
    "gains": gains_table,
}


def _baseline(texts: Sequence[str] | None, runs: Sequence[Run]) -> Baseline:
    """The settings of `--baseline`, which some of the runs may have."""
    if texts is None:
        return None
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--baseline must be NAME=VALUE, such as model.neuron=lif, got {text}.")
        settings[name] = yaml.safe_load(value)
    if others := [name for name in settings if not is_of(name, *COMPARED)]:
        raise UserError(
            f"--baseline takes settings of --model and --data.probe, not {', '.join(others)}: gains are beside runs "
            "that share all others."
        )
    known = {*defaults(), *(name for run in runs for name in run.settings)}
    require_known_arguments("--baseline", settings, known)
    return settings


def _chosen(only: str | None, valid: list[str]) -> list[str]:
    """Split the names of `--only`, by default all; refuse unknown ones."""
    names = valid if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in valid]:
        raise UserError(f"--only must be some of {','.join(valid)}, got {','.join(unknown)}.")
    return names


def _published(file: Path, runs: Sequence[Run]) -> Table:
    """The table of published runs, to which these are added; notes name those whose test is missing."""
    for run in runs:
        if run.lacks_test:
            command = f"{program.program_name()} test --ckpt_path {shlex.quote(str(run.folder.best))}"
            print(f"note: {run.name} has no row: its test set was never measured. {command}", file=sys.stderr)
    return measured_table(add_published(file, runs, [*paper.TITLES.values()]))


def tables(argv: list[str]) -> int:
    """Print the tables, and write them into the files asked for."""
    options = _tables_parser().parse_args(argv)
    root = Path(options.runs or RUNS)
    # Without runs the paper's numbers are shown.
    is_needed = options.runs is not None or options.results is not None
    runs = runs_in(root) if is_needed or root.is_dir() else []
    baseline = _baseline(options.baseline, runs)
    chosen = _chosen(options.only, [*TABLES])
    if options.only is None:
        chosen.remove("layers")  # which is long
    paper_tables = [make(runs, baseline) for name, make in TABLES.items() if name in chosen]
    if options.only is None and runs:  # of runs without any result, the table that says why
        paper_tables = [table for table in paper_tables if table.has_runs] or paper_tables[:1]
    for table in paper_tables if runs or options.only else ():
        if not table.rows:
            print(f"note: {heading(table)}: no run belongs to it. {' '.join(table.notes)}", file=sys.stderr)
    if options.results is not None:
        paper_tables.append(_published(options.results, runs))
    if options.show_runs:
        paper_tables = [table.with_its_runs for table in paper_tables]
    print_tables(paper_tables, runs)
    if options.out is not None:
        for path in write_tables(paper_tables, options.out):
            print(path)
    return 0


def figures(argv: list[str]) -> int:
    """Draw the figures and return the exit status."""
    from plif_lightning.analysis.figures import FIGURES, write_figures, write_recording

    options = _figures_parser().parse_args(argv)
    if options.recording is not None:
        write_recording(options.recording, options.out, options.columns, options.time_unit)
        return 0
    names = _chosen(options.only, [*FIGURES])
    runs = runs_in(options.runs or RUNS)
    for problem in problems_of([run for run in runs if run.status == "unreadable"]):
        print(f"note: left out: {problem}", file=sys.stderr)
    return write_figures(runs, options.out, names)


def report(argv: list[str]) -> int:
    """Write the page."""
    from plif_lightning.analysis.report import write_report

    options = _report_parser().parse_args(argv)
    runs = runs_in(options.runs or RUNS)
    write_report(runs, options.out)
    return 0
