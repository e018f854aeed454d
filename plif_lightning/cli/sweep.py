"""Run a W&B sweep file without a server: a grid of runs, each in its own process."""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from filelock import Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plif_lightning import configs
from plif_lightning.cli.arguments import joined
from plif_lightning.cli.grid import Sweep, point_arguments, read_sweep, replaced, require_no_conflict, run_name, share
from plif_lightning.cli.parser import PlainParser
from plif_lightning.cli.planned import Watched, comparable_settings, planned_config, require_unedited
from plif_lightning.cli.runner import Job, Runner, print_job, print_line, require_free, score, shown
from plif_lightning.errors import UserError, require_count
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import value_in_words
from plif_lightning.runs.process import options
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.run import Run
from plif_lightning.runtime import program
from plif_lightning.runtime.files import file_lock, is_about_locks, relative
from plif_lightning.runtime.process import on_termination


def _without_folder(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("--run_folder=")]


def _comparable(arguments: Sequence[str]) -> list[str]:
    """Make arguments comparable: absolute paths of configurations, and each value joined to its option."""
    flag = "--config="
    return [
        f"{flag}{Path(argument.removeprefix(flag)).resolve()}" if argument.startswith(flag) else argument
        for argument in joined(_without_folder(arguments))
    ]


def _finished_siblings(root: Path) -> dict[str, Path]:
    """Return finished runs in sibling folders of a sweep, such as `runs/table4` for `runs/table5`, by settings.

    Settings are read from configurations, not commands, because a run may have been resumed with other arguments.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.parent.glob(f"*/*/{RunFolder(Path()).result.name}")):
        run = read_run(path.parent)
        # One that was resumed with other settings, or begun from other weights, is another experiment.
        is_other = bool(run.changes) or run.begun_from is not None
        if path.parent.parent != root and run.status == "finished" and not is_other:
            with contextlib.suppress(KeyError, TypeError, AttributeError):  # another program's configuration
                found.setdefault(comparable_settings(run.config), path.parent)
    return found


def _sibling(job: Job, elsewhere: dict[str, Path]) -> Path | None:
    """A finished run elsewhere with the settings of a job; none for a job that begins from other weights."""
    if "ckpt_path" in dict(options(job.arguments)):
        return None
    config = planned_config(job.arguments) if elsewhere else None
    return None if config is None else elsewhere.get(comparable_settings(config))


def _own_run(job: Job) -> Run:
    """Read the run in a job's folder.

    Raises:
        UserError: the folder is in use, or holds anything but this run.
    """
    require_free(job)
    run = read_run(job.folder.path)
    if run.command and _comparable(run.command) != _comparable(job.arguments):
        raise UserError(
            f"{job.folder.path} holds a run of another command: {shlex.join(_without_folder(run.command))}. "
            f"Now it would be: {shlex.join(job.arguments)}. Pass another --runs, or move that folder away."
        )
    return run


def _jobs(sweep: Sweep, root: Path, overrides: Sequence[str], of: slice) -> list[Job]:
    """Return a job for each selected run of a grid.

    Raises:
        UserError: two runs have the same name, or one has none.
    """
    points = sweep.points()
    names = [run_name(point) for point in points]
    if len(set(names)) < len(names):
        first, second = [point for name, point in zip(names, points, strict=True) if names.count(name) > 1][:2]
        raise UserError(
            f"two runs of the sweep have the same name {run_name(first)}, that of {first} and that of "
            f"{second}: give each value once, and configurations different file names."
        )
    jobs = []
    for name, point in zip(names[of], points[of], strict=True):
        if not re.search(r"\w", name):
            raise UserError(f"the values {list(point.values())} give a run no name: pass others.")
        jobs.append(Job(name, RunFolder(root / name), point_arguments(sweep, point, overrides), root / f"{name}.log"))
    return jobs


def _plan(sweep: Sweep, root: Path, overrides: Sequence[str], of: slice) -> tuple[list[Job], list[Job]]:
    """Return the jobs still to run, and those already finished in their own folder or a sibling's."""
    waiting: list[Job] = []
    finished: list[Job] = []
    elsewhere = _finished_siblings(root)
    made: list[tuple[Job, Run]] = []
    for job in _jobs(sweep, root, overrides, of):
        if job.folder.path.exists():
            run = _own_run(job)
            made.append((job, run))
            is_finished = run.status == "finished"
        else:
            job.served_by = _sibling(job, elsewhere)
            is_finished = job.served_by is not None
        (finished if is_finished else waiting).append(job)
    require_unedited(made)
    return waiting, finished


def run_sweep(
    sweep: Sweep,
    root: Path,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    index: str | None = None,
) -> int:
    """Run the unfinished runs of a grid or of a share of it, resuming those that have a checkpoint.

    Args:
        sweep: the grid.
        root: folder of all its runs.
        jobs: number of concurrent processes, each with an equal share of the cores.
        overrides: arguments of main.py for all runs.
        dry_run: print the commands without running them.
        index: runs to select, see `share`; other shares may run at the same time.

    Returns:
        Exit status: 1 if a run failed.

    Raises:
        UserError: a run's folder holds another run, or is in use.
    """
    require_count("--jobs", jobs)
    root = root.absolute()
    of = slice(None) if index is None else share(index, len(sweep.points()))
    if dry_run:
        return _run(sweep, root, jobs, overrides, of, dry_run=True)
    root.mkdir(parents=True, exist_ok=True)
    with on_termination(_interrupt), _alone(root) if index is None else contextlib.nullcontext():
        return _run(sweep, root, jobs, overrides, of)


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lock the folder of a sweep within the block.

    Raises:
        UserError: another sweep has locked it.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(root / ".sweep.lock", blocking=False))
        except Timeout:
            raise UserError(f"another sweep is running in {root}: wait for it, or pass another --runs.") from None
        except (OSError, NotImplementedError) as error:
            if not is_about_locks(error):
                raise
            Console().print(f"{root} is on storage without locks: start no second sweep in it.")
        yield


def _run(sweep: Sweep, root: Path, jobs: int, overrides: Sequence[str], of: slice, dry_run: bool = False) -> int:
    """Plan the runs, print the plan, run it unless `dry_run`, and return the exit status."""
    console = Console()
    require_no_conflict(sweep, overrides)
    waiting, finished = _plan(sweep, root, overrides, of)
    _print_plan(console, sweep, root, waiting, finished)
    if dry_run:
        for job in waiting:
            print_line(console, shown(job.command))
        return 0
    watched = Watched(job.arguments for job in waiting)
    if not _run_all(console, sweep, waiting, len(finished), jobs):
        return 130
    if warning := watched.warning():
        print_line(console, warning)
    _print_ranking(console, sweep, [*finished, *(job for job in waiting if job.state == "finished")])
    failed = [job for job in waiting if job.state == "failed"]
    for job in failed:
        print_line(console, f"failed: {job.name}  again: {shown(job.command)}")
    if failed:
        return 1
    _print_next(console, root, [*waiting, *finished], whole=of == slice(None))
    return 0


def _print_plan(console: Console, sweep: Sweep, root: Path, waiting: Sequence[Job], finished: Sequence[Job]) -> None:
    """Print the number of runs, and the finished runs that are in other folders."""
    shown, total = escape(relative(root)), len(waiting) + len(finished)
    console.print(f"[bold]{escape(sweep.name)}[/]: {total} runs in {shown}, {len(finished)} finished", soft_wrap=True)
    for job in finished:
        if job.served_by is not None:
            print_line(console, f"{job.name} is {os.path.relpath(job.served_by)}: the same settings")


def _run_all(console: Console, sweep: Sweep, waiting: Sequence[Job], finished: int, jobs: int) -> bool:
    """Run all waiting jobs, print each result as soon as it is known, and return False if interrupted."""
    runner, total = Runner(jobs, warm=len(waiting) > 1), finished + len(waiting)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with runner, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("all runs", total=total, completed=finished)
        with ThreadPoolExecutor(jobs) as pool:
            calls = {pool.submit(runner.run, job): job for job in waiting}
            try:
                for done, call in enumerate(as_completed(calls), start=finished + 1):
                    call.result()
                    _print_end(console, sweep, calls[call], f"[{done}/{total}]")
                    progress.advance(bar)
            except KeyboardInterrupt:
                runner.stop()
                console.print("interrupted: the same command resumes the runs.")
                return False
    return True


def _print_end(console: Console, sweep: Sweep, job: Job, count: str) -> None:
    """Print the result of a job that has ended; of a failed one, its error or the end of its output."""
    text = f"{count} {job.name} {job.state} after {job.seconds:.0f} s"
    if job.state == "finished":
        text += f": {_shown_score(sweep, job.folder)}"
    print_job(console, job, text)


def _print_next(console: Console, root: Path, jobs: Sequence[Job], whole: bool) -> None:
    """Print the command that shows the tables of finished runs."""
    below = root.parent if any(job.served_by is not None for job in jobs) else root
    runs = f"All {len(jobs)} runs" if whole else f"This share's {len(jobs)} runs"
    print_line(console, f"{runs} are finished: {program.shown()} tables --runs {shlex.quote(relative(below))}")


def _shown_score(sweep: Sweep, folder: RunFolder) -> str:
    name, found = score(sweep, folder)
    return f"no {name}" if found is None else f"{name} {value_in_words(name, found)}"


def _print_ranking(console: Console, sweep: Sweep, jobs: Sequence[Job]) -> None:
    """Print the runs by the sweep's metric, best first; nothing for fewer than two values."""
    scores = [(*score(sweep, RunFolder(job.served_by or job.folder.path)), job) for job in jobs]
    known = [(name, value, job) for name, value, job in scores if value is not None]
    if len(known) < 2:
        return
    names = " and ".join(sorted({name for name, _, _ in known}))
    console.print(f"\n{names}, {'highest' if sweep.maximise else 'lowest'} first:", highlight=False)
    for name, value, job in sorted(known, key=lambda found: (-found[1] if sweep.maximise else found[1], found[2].name)):
        print_line(console, f"  {value_in_words(name, value):>9}  {job.name}")


def parser() -> PlainParser:
    """Return the parser of the command."""
    found = PlainParser(
        "sweep",
        "Run a parameter grid or a search without a server, one process and one folder per run. Finished runs are "
        "skipped, in a grid also those with the same settings in a sibling of --runs; unfinished runs are resumed. "
        "Arguments after -- are passed to every run.",
    )
    found.add_argument("file", help="a W&B sweep file, by path or name, such as table4")
    found.add_argument("--runs", type=Path, help="folder of the runs (default: runs/NAME of the sweep)")
    found.add_argument("--jobs", type=int, default=1, help="concurrent runs, each with an equal share of the cores")
    found.add_argument(
        "--index",
        metavar="I or I/N",
        help="only run I, or every N-th from I, counted from 0: one task of a cluster's job array",
    )
    found.add_argument("--cap", type=int, help="number of runs of a random or bayes search (default: its run_cap)")
    found.add_argument("--seed", type=int, help="seed of a random or bayes search")
    found.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    found.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="replace the values of a parameter, or add one, such as seed_everything=1,2,3",
    )
    return found


PARSERS = {"sweep": parser}


def sweep(argv: list[str]) -> int:
    """Run a parameter grid and return the exit status."""
    overrides = argv[argv.index("--") + 1 :] if "--" in argv else []
    given = parser().parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    grid = read_sweep(configs.resolve(given.file, "sweeps"))
    root = given.runs or Path("runs") / grid.name
    if grid.method != "grid":
        for option in ("grid", "index"):
            if getattr(given, option):
                raise UserError(f"--{option} is for method grid: a search is shared by calling it again.")
        from plif_lightning.cli.search import run_search

        with on_termination(_interrupt):
            return run_search(grid, root, given.jobs, overrides, given.dry_run, given.cap, given.seed)
    if given.cap is not None or given.seed is not None:
        raise UserError("--cap and --seed are for the methods random and bayes.")
    grid = replaced(grid, given.grid)
    return run_sweep(grid, root, given.jobs, overrides, given.dry_run, given.index)
