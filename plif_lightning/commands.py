"""All of main.py: what trains and evaluates is LightningCLI's, what starts and reads many runs is here."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from plif_lightning.errors import UserError

if TYPE_CHECKING:
    from plif_lightning.analysis.runs import Run
    from plif_lightning.analysis.tables import NetworkFacts, Table


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See main.py {self.prog.split()[-1]} --help.")


def _parser(name: str, description: str) -> _Parser:
    return _Parser(prog=f"main.py {name}", description=description, allow_abbrev=False)


def _sweep(argv: list[str]) -> int:
    from plif_lightning.sweep import read_sweep, replaced, run_sweep

    overrides = argv[argv.index("--") + 1 :] if "--" in argv else []
    argv = argv[: argv.index("--")] if "--" in argv else argv
    parser = _parser(
        "sweep",
        "Runs a grid without a server: each run in a process and a folder of its own. Finished runs are skipped, "
        "broken-off ones go on. Arguments after -- go to every run.",
    )
    parser.add_argument("file", type=Path, help="a W&B sweep file with method grid, such as configs/sweeps/table4.yaml")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/NAME of the sweep where it is not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="other values for a parameter, or one more parameter, such as seed_everything=1,2,3",
    )
    given = parser.parse_args(argv)
    sweep = replaced(read_sweep(given.file), given.grid)
    root = given.runs or Path("runs") / sweep.name
    return run_sweep(sweep, root, given.jobs, overrides, given.dry_run)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", default="runs", help="folder that holds the runs, or wandb:ENTITY/PROJECT (default: runs)"
    )


def describe_networks() -> "list[NetworkFacts]":
    """The networks of the paper's six configurations, made without memory for their weights."""
    import inspect

    import torch

    from plif_lightning import data
    from plif_lightning.analysis.paper import TITLES
    from plif_lightning.analysis.tables import NetworkFacts, shipped
    from plif_lightning.network import SpikingNetwork

    known = inspect.signature(SpikingNetwork).parameters
    found = []
    for name in TITLES:
        blocks = shipped()[name]
        module = getattr(data, name)(**blocks["data"]["init_args"])
        model = {key: value for key, value in blocks["model"].items() if key in known}
        steps = module.time_steps
        with torch.device("meta"):
            net = SpikingNetwork(module.input_shape, module.num_classes, steps, **model)
        s, size = net.structure, sum(p.numel() for p in net.parameters())
        found.append(
            NetworkFacts(
                name, s.n_conv, s.n_down, len(s.fc_features), s.channels, module.input_shape, steps, str(s), size
            )
        )
    return found


def all_tables(runs: "list[Run]") -> "list[Table]":
    """Every table of the paper."""
    from plif_lightning.analysis.tables import network_tables, ordered, result_tables

    return ordered([*network_tables(describe_networks(), runs), *result_tables(runs)])


def _tables(argv: list[str]) -> int:
    from plif_lightning.analysis.runs import find_runs
    from plif_lightning.analysis.tables import print_tables, write_tables

    parser = _parser("tables", "The paper's tables, with this project's runs beside the paper's numbers.")
    _add_runs(parser)
    parser.add_argument("--out", type=Path, help="folder for tables.md and a csv file for each table")
    parser.add_argument("--only", help="some of 1,2,3,4,5,S1,S2, with commas between")
    given = parser.parse_args(argv)
    runs = find_runs(given.runs)
    tables = all_tables(runs)
    if given.only is not None:
        chosen = _chosen(given.only, [table.name for table in tables])
        tables = [table for table in tables if table.name in chosen]
    print_tables(tables, runs)
    if given.out is not None:
        for path in write_tables(tables, given.out):
            print(path)
    return 0


def _chosen(only: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only must be some of {','.join(known)}, got {','.join(unknown)}.")
    return names


def _figures(argv: list[str]) -> int:
    from plif_lightning.analysis.figures import FIGURES, write_figures
    from plif_lightning.analysis.runs import find_runs

    parser = _parser("figures", "The paper's figures from this project's runs, as pdf and png.")
    _add_runs(parser)
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for them (default: figures)")
    parser.add_argument("--only", help=f"some of {','.join(FIGURES)}, with commas between")
    given = parser.parse_args(argv)
    return write_figures(
        find_runs(given.runs), given.out, _chosen(given.only, [*FIGURES]) if given.only else [*FIGURES]
    )


def _report(argv: list[str]) -> int:
    from plif_lightning.analysis.report import write_report
    from plif_lightning.analysis.runs import find_runs

    parser = _parser("report", "One page, complete in itself, with tables, figures and all runs.")
    _add_runs(parser)
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    given = parser.parse_args(argv)
    runs = find_runs(given.runs)
    write_report(runs, all_tables(runs), given.out)
    return 0


_READERS = {"sweep": _sweep, "tables": _tables, "figures": _figures, "report": _report}


def main(args: list[str] | None = None) -> None:
    """Runs the command line; a user's mistake ends it with one sentence and exit status 2."""
    argv = sys.argv[1:] if args is None else args
    if not argv or argv[0] not in _READERS:
        from plif_lightning.cli import main as train_or_evaluate

        train_or_evaluate(args)
        return
    try:
        status = _READERS[argv[0]](argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    raise SystemExit(status)
