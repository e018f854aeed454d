"""`tables`, `figures` and `report`: results of runs. None of them loads Lightning."""

import shlex
import sys
from pathlib import Path

from plif_lightning import configs
from plif_lightning.analysis.leaderboard import gains_table, leaderboard_table
from plif_lightning.analysis.published import published_runs
from plif_lightning.analysis.results import read_results, results_table, write_results
from plif_lightning.analysis.tables import (
    NetworkFacts,
    Table,
    earlier_work,
    heading,
    network_tables,
    ordered,
    print_tables,
    problems_of,
    result_tables,
    runs_without_a_test,
    write_tables,
)
from plif_lightning.cli.parser import PlainParser
from plif_lightning.errors import UserError
from plif_lightning.runs.reading import find_runs
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import by_numbers
from plif_lightning.runtime import program

RUNS = "runs"  # default folder of a fit
_TABLE = ", or a table of results such as configs/leaderboard/results.csv"


def _parser(name: str, description: str, place: str = "") -> PlainParser:
    parser = PlainParser(name, description)
    parser.add_argument("--runs", help=f"folder that holds the runs, or wandb:ENTITY/PROJECT{place} (default: runs)")
    return parser


def _tables_parser() -> PlainParser:
    parser = _parser("tables", "Print the paper's tables, with this project's runs beside the paper's numbers.", _TABLE)
    parser.add_argument("--out", type=Path, help="folder for tables.md, and for a csv and a LaTeX file of each table")
    parser.add_argument(
        "--only", help="comma-separated tables: 1, 2, 2b, 3, 4, 5, S1, S2, tau, other, leaderboard or gains"
    )
    parser.add_argument(
        "--results", type=Path, help="table of results, such as configs/results.csv: add a row for each finished run"
    )
    return parser


def _figures_parser() -> PlainParser:
    parser = _parser(
        "figures", "Draw the paper's figures from this project's runs, or a recording, as pdf and png.", _TABLE
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (default: figures)")
    parser.add_argument("--data", help="show runs of this data set only, by its name or class")
    parser.add_argument("--run", help="show this run only, by its folder below --runs")
    parser.add_argument("--class", dest="class_name", help="S2 to S5: the sample of this class first")
    parser.add_argument("--channel", type=int, help="S2 to S5: this channel of the first layer")
    parser.add_argument(
        "--columns", type=int, choices=(1, 2), default=2, help="width of a figure in columns of a page (default: 2)"
    )
    parser.add_argument("--recording", type=Path, help="draw this file of an event camera instead")
    parser.add_argument("--only", help="comma-separated figures: 1b, 2, 5b, 6, 6t, 7, S1 to S5 or leaderboard")
    return parser


def _report_parser() -> PlainParser:
    parser = _parser("report", "Write one self-contained page with tables, figures and all runs.")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    return parser


def describe_networks() -> list[NetworkFacts]:
    """Describe the networks of the paper's six configurations, built without memory for weights."""
    import torch

    found = []
    for name, (shape, _) in configs.INPUTS.items():
        with torch.device("meta"):
            net = configs.network_of(name)
        size, blocks = sum(p.numel() for p in net.parameters()), configs.shipped()[name]
        data_set = blocks["data"]["class_path"].rsplit(".", 1)[-1]
        row = [by_numbers(blocks["model"])[key] for key in ("n_conv", "n_down", "n_fc", "channels")]
        found.append(NetworkFacts(*(data_set, *row, shape, net.time_steps, str(net.structure), size)))
    return found


def all_tables(runs: list[Run]) -> list[Table]:
    """Return every table of the paper, and those of other data and of the leaderboard."""
    networks = network_tables(describe_networks(), runs)
    return ordered([*networks, earlier_work(), *result_tables(runs), leaderboard_table(runs), gains_table(runs)])


def _chosen(only: str, known: list[str], published: Path | None) -> list[str]:
    """Split the names of `--only`; refuse unknown ones."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in known]):
        why = "" if published is None else f" where --runs is a table of results ({published})"
        got = ",".join(unknown) if names else repr(only)
        raise UserError(f"--only must be some of {','.join(known)}{why}, got {got}.")
    return names


def tables(argv: list[str]) -> int:
    """Print the tables, and write them into the files asked for."""
    given = _tables_parser().parse_args(argv)
    published = _table_of_results(given.runs)
    if published is not None and given.results is not None:
        raise UserError(f"--results adds runs to a table, and {published} has none of their folders: leave one out.")
    if published is not None:
        runs = published_runs(published)
        found = [leaderboard_table(runs), gains_table(runs)]
    else:
        runs = _runs(given.runs or RUNS, required=given.runs is not None or given.results is not None)
        found = all_tables(runs)
    if given.only is not None:
        chosen = _chosen(given.only, [table.name for table in found], published)
        found = [table for table in found if table.name in chosen]
        for table in found:
            if not table.rows:
                print(f"note: {heading(table)}: no run belongs to it. {' '.join(table.notes)}", file=sys.stderr)
    elif published is not None:
        found.append(results_table(read_results(published)))
    if given.results is not None:
        found.append(results_table(write_results(given.results, runs)))
        _note_untested(runs)
    print_tables(found, runs)
    if given.out is not None:
        for path in write_tables(found, given.out):
            print(path)
    return 0


def _table_of_results(place: str | None) -> Path | None:
    """Return the file that `--runs` names in place of a folder; None if it names none."""
    return Path(place) if place is not None and Path(place).is_file() else None


def _runs(place: str, required: bool) -> list[Run]:
    """Find the runs; without any, return none unless they are required: the paper's numbers need no runs."""
    try:
        return find_runs(place)
    except UserError:
        if required:
            raise
        return []


def _note_untested(runs: list[Run]) -> None:
    """Print the command that tests each run without a test result."""
    for run in runs_without_a_test(runs):
        print(
            f"note: {run.name} has no row: its test set was never measured. "
            f"{program.shown()} test --ckpt_path {shlex.quote(str(run.folder.best))}",
            file=sys.stderr,
        )


def figures(argv: list[str]) -> int:
    """Draw the figures and return the exit status."""
    from plif_lightning.analysis.figures import FIGURES, Choice, write_figures, write_recording

    given = _figures_parser().parse_args(argv)
    if given.recording is not None:
        if given.only or given.data or given.run:
            raise UserError("--recording draws a file, not runs: leave --only, --data and --run out.")
        write_recording(given.recording, given.out)
        return 0
    published = _table_of_results(given.runs)
    known = [*FIGURES] if published is None else ["leaderboard"]  # the others need more than a row of a table
    names = _chosen(given.only, known, published) if given.only else known
    runs = find_runs(given.runs or RUNS) if published is None else published_runs(published)
    for problem in problems_of([run for run in runs if run.status == "unreadable"]):
        print(f"note: left out: {problem}", file=sys.stderr)
    for option, called in (
        ("data", lambda run: {run.data_set, str(run.facts.get("data"))}),
        ("run", lambda r: {r.name}),
    ):
        wanted = getattr(given, option)
        if wanted is not None:
            there = sorted(set().union(*map(called, runs)))
            runs = [run for run in runs if wanted in called(run)]
            if not runs:
                raise UserError(f"--{option} must be one of {', '.join(there)}, got {wanted}.")
    return write_figures(runs, given.out, names, given.columns, Choice(given.class_name, given.channel))


def report(argv: list[str]) -> int:
    """Write the page."""
    from plif_lightning.analysis.report import write_report

    given = _report_parser().parse_args(argv)
    runs = find_runs(given.runs or RUNS)
    write_report(runs, all_tables(runs), given.out)
    return 0
