"""Run a W&B sweep file without a server: a grid of runs, each in its own process."""

import contextlib
import io
import json
import math
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plif_lightning import configs
from plif_lightning.cli.checkpoint import expand, model_defaults
from plif_lightning.cli.grid import Sweep, point_arguments, read_sweep, replaced, run_name, share
from plif_lightning.cli.parser import PlainParser
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.process import in_use
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import identity, without_order
from plif_lightning.runtime import program
from plif_lightning.runtime.console import Console
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.locks import file_lock, is_about_locks
from plif_lightning.runtime.signals import on_termination


@dataclass
class _Job:
    name: str
    folder: RunFolder
    arguments: list[str]
    output: Path
    state: str = "waiting"
    seconds: float = 0.0
    error: str = ""
    served_by: Path | None = None  # a finished run elsewhere with the same settings

    @property
    def command(self) -> list[str]:
        """Command that starts the run, or resumes it if it has a checkpoint."""
        arguments = [*self.arguments, f"--run_folder={self.folder.path}"]
        if self.folder.last.is_file() and self.folder.config.is_file():
            arguments = ["fit", f"--config={self.folder.config}", "--ckpt_path", "last"]
        return [*program.command(), *arguments]


def _shown(command: Sequence[str]) -> str:
    return f"{program.shown()} {shlex.join(command[len(program.command()) :])}"


def _print(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: not wrapped, and without Rich's markup or highlighting."""
    console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)


def _without_folder(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("--run_folder=")]


def _comparable(arguments: Sequence[str]) -> list[str]:
    """Make the paths of configurations absolute: a sweep can be repeated from another folder."""
    flag = "--config="
    return [
        f"{flag}{Path(argument.removeprefix(flag)).resolve()}" if argument.startswith(flag) else argument
        for argument in _without_folder(arguments)
    ]


def _comparable_settings(config: dict[str, Any]) -> str:
    """Return the settings of a configuration that distinguish a planned run from others."""
    # Settings that an older run does not name had their default then.
    found = identity({**config, "model": {**model_defaults(), **config["model"]}}, planned=True)
    found |= {name: config.get(name) for name in ("seed_everything", "test_after_fit")}
    if found.get("data.validation") == "holdout":  # validated on the test set, a run does not depend on the rule
        found["best_of_ties"] = config.get("best_of_ties", "first") or "last"
    return json.dumps(sorted(found.items(), key=without_order), default=str)


def _whole_settings(arguments: Sequence[str]) -> str | None:
    """Return `_comparable_settings` of the arguments of a fit as its parser reads them; None if it refuses them."""
    from plif_lightning.cli.lightning import place_absolutely, run  # which loads Lightning

    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            run(expand([*arguments, "--print_config"]))
    except UserError:
        return None  # the run reports it
    except SystemExit as stop:
        if stop.code not in (0, None):
            return None
    config = yaml.safe_load(out.getvalue())
    place_absolutely(config["data"]["init_args"])  # as in the configuration that a run keeps
    return _comparable_settings(config)


def _finished_siblings(root: Path) -> dict[str, Path]:
    """Return finished runs in sibling folders of a sweep, such as `runs/table4` for `runs/table5`, by settings.

    Settings are read from configurations, not commands, because a run may have been resumed with other arguments.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.parent.glob(f"*/*/{RunFolder(Path()).result.name}")):
        run = read_run(path.parent)
        if path.parent.parent != root and run.status == "finished":
            with contextlib.suppress(KeyError, TypeError, AttributeError):  # another program's configuration
                found.setdefault(_comparable_settings(run.config), path.parent)
    return found


def _require_free(job: _Job) -> None:
    """Refuse a folder that does not belong to a run, or whose run may be running."""
    folder = job.folder
    if not folder.path.is_dir() or folder.path.is_symlink():
        raise UserError(f"{folder.path} is not a folder: move it away, or pass another --runs.")
    if not (folder.config.is_file() or folder.command.is_file()) and set(folder.path.iterdir()) - {folder.lock}:
        raise UserError(f"{folder.path} is no run's folder, and not empty: move it away, or pass another --runs.")
    if in_use(folder):
        raise UserError(f"{folder.path} is being trained by another process: wait for it, or end it first.")


def _own_run(job: _Job) -> Run:
    """Read the run in a job's folder.

    Raises:
        UserError: the folder is in use, or holds anything but this run.
    """
    _require_free(job)
    run = read_run(job.folder.path)
    if run.command and _comparable(run.command) != _comparable(job.arguments):
        raise UserError(
            f"{job.folder.path} holds a run of another command: {shlex.join(_without_folder(run.command))}. "
            f"Now it would be: {shlex.join(job.arguments)}. Pass another --runs, or move that folder away."
        )
    return run


def _jobs(sweep: Sweep, root: Path, overrides: Sequence[str], of: slice) -> list[_Job]:
    """Return a job for each selected run of a grid.

    Raises:
        UserError: two runs have the same name, or one has none.
    """
    points = sweep.points()
    names = [run_name(point) for point in points]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two runs of the sweep have the same name {twice}: give each value once.")
    jobs = []
    for name, point in zip(names[of], points[of], strict=True):
        if not re.search(r"\w", name):
            raise UserError(f"the values {list(point.values())} give a run no name: pass others.")
        jobs.append(_Job(name, RunFolder(root / name), point_arguments(sweep, point, overrides), root / f"{name}.log"))
    return jobs


def _plan(sweep: Sweep, root: Path, overrides: Sequence[str], of: slice) -> tuple[list[_Job], list[_Job]]:
    """Return the jobs still to run, and those already finished in their own folder or a sibling's."""
    waiting: list[_Job] = []
    finished: list[_Job] = []
    elsewhere = _finished_siblings(root)
    for job in _jobs(sweep, root, overrides, of):
        if job.folder.path.exists():
            is_finished = _own_run(job).status == "finished"
        else:
            job.served_by = elsewhere.get(_whole_settings(job.arguments) or "") if elsewhere else None
            is_finished = job.served_by is not None
        (finished if is_finished else waiting).append(job)
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
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
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
    waiting, finished = _plan(sweep, root, overrides, of)
    _print_plan(console, sweep, root, waiting, finished)
    if dry_run:
        for job in waiting:
            _print(console, _shown(job.command))
        return 0
    if not _run_all(console, sweep, waiting, len(finished), jobs):
        return 130
    _print_ranking(console, sweep, [*finished, *(job for job in waiting if job.state == "finished")])
    failed = [job for job in waiting if job.state == "failed"]
    for job in failed:
        _print(console, f"failed: {job.name}  again: {_shown(job.command)}")
    if failed:
        return 1
    _print_next(console, root, [*waiting, *finished], whole=of == slice(None))
    return 0


def _print_plan(console: Console, sweep: Sweep, root: Path, waiting: Sequence[_Job], finished: Sequence[_Job]) -> None:
    """Print the number of runs, and the finished runs that are in other folders."""
    shown, total = escape(relative(root)), len(waiting) + len(finished)
    console.print(f"[bold]{escape(sweep.name)}[/]: {total} runs in {shown}, {len(finished)} finished", soft_wrap=True)
    for job in finished:
        if job.served_by is not None:
            _print(console, f"{job.name} is {os.path.relpath(job.served_by)}: the same settings")


def _run_all(console: Console, sweep: Sweep, waiting: Sequence[_Job], finished: int, jobs: int) -> bool:
    """Run all waiting jobs, print each result as soon as it is known, and return False if interrupted."""
    runner, total = _Runner(jobs), finished + len(waiting)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
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


def _print_end(console: Console, sweep: Sweep, job: _Job, count: str) -> None:
    """Print the result of a job that has ended; of a failed one, its error or the end of its output."""
    text = f"{count} {job.name} {job.state} after {job.seconds:.0f} s"
    if job.state == "finished":
        text += f": {_shown_score(sweep, job.folder)}"
    failed = job.state == "failed"
    _print(console, text, "red" if failed else "")
    if failed:
        for line in [job.error] if job.error else _last_lines(job.output):
            _print(console, f"  {line}")


def _print_next(console: Console, root: Path, jobs: Sequence[_Job], whole: bool) -> None:
    """Print the command that shows the tables of finished runs."""
    below = root.parent if any(job.served_by is not None for job in jobs) else root
    runs = f"All {len(jobs)} runs" if whole else f"This share's {len(jobs)} runs"
    _print(console, f"{runs} are finished: {program.shown()} tables --runs {shlex.quote(relative(below))}")


def score(sweep: Sweep, folder: RunFolder) -> tuple[str, float | None]:
    """Return the name of the sweep's metric in a finished run, and its value; None if the run has none.

    For validation accuracy (val/acc, or test_as_val/acc under protocol A) it is the value of the best epoch, for
    test/acc the result of the test, and for other metrics the last value.
    """
    run, name = read_run(folder.path), sweep.metric
    if name in ("val/acc", "test_as_val/acc"):
        name, found = run.val_key, run.best[1] if run.best else None
    elif name == "test/acc":
        found = run.test
    else:
        found = next(reversed(run.curve(name)[1]), None)
    return name, found if found is not None and math.isfinite(found) else None


def _in_words(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name.endswith("acc") else f"{value:.5g}"


def _shown_score(sweep: Sweep, folder: RunFolder) -> str:
    name, found = score(sweep, folder)
    return f"no {name}" if found is None else f"{name} {_in_words(name, found)}"


def _print_ranking(console: Console, sweep: Sweep, jobs: Sequence[_Job]) -> None:
    """Print the runs by the sweep's metric, best first; nothing for fewer than two values."""
    scores = [(*score(sweep, RunFolder(job.served_by or job.folder.path)), job) for job in jobs]
    known = [(name, value, job) for name, value, job in scores if value is not None]
    if len(known) < 2:
        return
    names = " and ".join(sorted({name for name, _, _ in known}))
    console.print(f"\n{names}, {'highest' if sweep.maximise else 'lowest'} first:", highlight=False)
    for name, value, job in sorted(known, key=lambda found: (-found[1] if sweep.maximise else found[1], found[2].name)):
        _print(console, f"  {_in_words(name, value):>9}  {job.name}")


def _last_lines(path: Path, most: int = 12) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"no output: {error.strerror}"]
    return [line for line in lines if line.strip()][-most:]


def _put_aside(folder: Path) -> None:
    """Move a run's folder into `.broken` beside it, so that nothing is lost."""
    aside = folder.parent / ".broken"
    aside.mkdir(exist_ok=True)
    i = 0
    while (aside / f"{folder.name}-{i}").exists():
        i += 1
    folder.rename(aside / f"{folder.name}-{i}")


class _Runner:
    def __init__(self, jobs: int) -> None:
        self.environment = dict(os.environ)
        if jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        self.stopped = False
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, job: _Job) -> None:
        """Run one job; an error fails the job, and the others continue."""
        try:
            self._run(job)
        except (UserError, OSError) as error:
            job.state, job.error = "failed", str(error)

    def _run(self, job: _Job) -> None:
        if self.stopped:
            job.state = "stopped"
            return
        start = time.monotonic()
        self._clear(job)
        status = self._call(job)
        job.seconds = time.monotonic() - start
        job.state = "finished" if status == 0 and job.folder.result.is_file() else "failed"
        if status == 0 and job.state == "failed":
            job.error = (
                f"it ended without an error, but {job.folder.path} holds no result, as after a fast_dev_run. Its "
                f"output is in {job.output}."
            )

    def _clear(self, job: _Job) -> None:
        """Put the folder of a run without a checkpoint aside: it cannot be resumed."""
        if not job.folder.path.exists():
            return
        _require_free(job)  # another process may have started it since the plan
        if not job.folder.last.is_file() and job.folder.path.exists():
            _put_aside(job.folder.path)

    def _call(self, job: _Job) -> int:
        """Run the command of a job, append its output to the job's log, and return its exit status."""
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("ab") as output:
            output.write(f"$ {_shown(job.command)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                job.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment
            )
            with self._lock:
                self._processes.add(process)
                if self.stopped:
                    process.terminate()
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        return status

    def stop(self) -> None:
        """Terminate running processes and start no more."""
        self.stopped = True
        with self._lock:
            for process in self._processes:
                process.terminate()


def parser() -> PlainParser:
    """Return the parser of the command."""
    found = PlainParser(
        "sweep",
        "Run a parameter grid without a server, one process and one folder per run. Finished runs are skipped, also "
        "those with the same settings in a sibling of --runs; unfinished runs are resumed. Arguments after -- are "
        "passed to every run.",
    )
    found.add_argument("file", help="a W&B sweep file with method grid, by path or name, such as table4")
    found.add_argument("--runs", type=Path, help="folder of the runs (default: runs/NAME of the sweep)")
    found.add_argument("--jobs", type=int, default=1, help="concurrent runs, each with an equal share of the cores")
    found.add_argument(
        "--index",
        metavar="I or I/N",
        help="only run I, or every N-th from I, counted from 0: one task of a cluster's job array",
    )
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
    grid = replaced(read_sweep(configs.resolve(given.file, "sweeps")), given.grid)
    return run_sweep(grid, given.runs or Path("runs") / grid.name, given.jobs, overrides, given.dry_run, given.index)
