"""Run a W&B sweep file without a server: a grid, or a search by Optuna; each run is a call of `fit --run_folder`."""

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from rich.console import Console

from plif_lightning import configs
from plif_lightning.cli.parser import PlainParser, option_names
from plif_lightning.cli.sweep_file import ARGS, Sweep, read_sweep
from plif_lightning.errors import UserError, require_count
from plif_lightning.runs.code import PACKAGE, hashes_of, sources_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.lock import InUseError, locked
from plif_lightning.runs.metrics import value_in_words
from plif_lightning.runs.run import Run, read_run
from plif_lightning.runtime import program
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.process import on_termination

# Longest name of a run's folder: file systems end at 255 bytes, and there is a log of the same name.
_LONGEST = 200


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list, dict)) or value is None else str(value)


def _config_first(point: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return names and values of a point, its configuration first: later arguments override it."""
    return sorted(point.items(), key=lambda item: item[0] != "config")


def run_name(point: dict[str, Any]) -> str:
    """Return the folder name of a run: the name of its configuration, then all other parameters."""
    parts = [
        Path(str(value)).stem if key == "config" else f"{key.rsplit('.', 1)[-1]}-{_text(value)}"
        for key, value in _config_first(point)
    ]
    name = "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts)
    return name[:_LONGEST]


def _file(value: str) -> str:
    """Return the absolute path of a configuration, so that the sweep can be repeated from another folder."""
    try:
        return str(configs.resolve(value).absolute())
    except UserError:  # the run reports it, without stopping the other runs
        return value


@dataclass
class Job:
    """A run of a sweep.

    Attributes:
        name: name of its folder.
        folder: its folder, which a call of `fit` makes finished.
        arguments: of main.py.
        state: finished, failed or ended early, once it is known.
    """

    name: str
    folder: RunFolder
    arguments: list[str]
    state: str = field(default="waiting")

    @property
    def command(self) -> list[str]:
        """Command that starts the run, or resumes it; safe to repeat."""
        return [*program.command(), *self.arguments, f"--run_folder={self.folder.path}"]

    @property
    def output(self) -> Path:
        return self.folder.path.with_name(f"{self.name}.log")


def job_of(sweep: Sweep, root: Path, point: dict[str, Any], overrides: Sequence[str], name: str = "") -> Job:
    """Return the run of a point; overrides come last, so they win."""
    name = name or run_name(point)
    given = [f"--{key}={_file(str(value)) if key == 'config' else _text(value)}" for key, value in _config_first(point)]
    place = sweep.arguments.index(ARGS)
    arguments = [*sweep.arguments[:place], *given, *sweep.arguments[place + 1 :], *overrides]
    return Job(name, RunFolder(root / name), arguments)


def share(text: str, points: int) -> slice:
    """Return the points that `--index I` (only the I-th) or `--index I/N` (every N-th from the I-th) selects.

    Raises:
        UserError: the text has another form, or I is out of range.
    """
    index, _, step = text.partition("/")
    if not index.isdecimal() or not (step or str(points)).isdecimal() or int(index) >= int(step or points):
        raise UserError(f"--index must be I or I/N, counted from 0, for {points} runs, got {text}.")
    return slice(int(index), None, int(step or points))


class Runner:
    """Runs jobs, each in a process of its own.

    Args:
        processes: that run at a time; each gets an equal share of the cores.

    Attributes:
        stopped: set where no further run is to begin, and those that have begun are to stop.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._environment = dict(os.environ)
        if processes > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self._environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
        self.stopped = Event()

    def run(self, job: Job, should_end: Callable[[], bool] = lambda: False) -> None:
        """Make a run finished, and set the job's state.

        Args:
            job: the run.
            should_end: called every second; the run is ended early when it returns True.
        """
        run = read_run(job.folder.path)
        if run.status == "finished":
            if run.arguments[: len(job.arguments)] != job.arguments:
                raise UserError(
                    f"{job.folder.path} is finished, with other arguments: {shlex.join(run.arguments)}. Pass another "
                    "--runs, or move that folder away."
                )
            job.state = "finished"
            if edited := edited_modules(run):
                before = f"{job.name} is finished, with {', '.join(edited)} as before the last edit"
                _print(f"{before}: pass another --runs to run it anew.")
            return
        if _is_taken(job):
            return
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("ab", buffering=0) as output:
            output.write(f"$ {shown(job.command)}\n".encode())
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=self._environment
            )
        job.state = "running"
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            if process.poll() is None and job.state == "running" and (self.stopped.is_set() or should_end()):
                job.state = "stopped" if self.stopped.is_set() else "ended"
                process.terminate()
        if process.returncode == 0 and read_run(job.folder.path).status == "finished":
            job.state = "finished"  # perhaps just before it was to stop
        elif job.state == "running" and not _is_taken(job):  # by a process that started a moment before
            # A signal to all processes reaches the run, too.
            job.state = "stopped" if self.stopped.wait(1.0) else "failed"


def _is_taken(job: Job) -> bool:
    """True if another process trains a run, as one that a killed sweep left; says so, and sets the state."""
    try:
        with locked(job.folder):
            return False
    except InUseError as error:
        job.state = "in use"
        _print(f"{error} The others are run.")
        return True


def edited_modules(run: Run) -> list[str]:
    """The user's modules that are not as when a run was made."""
    known, now = run.part("code"), hashes_of(sources_of(run.config))
    return sorted(name for name in {*known} & {*now} if name != PACKAGE and known[name] != now[name])


def shown(command: Sequence[str]) -> str:
    return f"{program.shown()} {shlex.join(command[len(program.command()) :])}"


def _print(text: str) -> None:
    """Print a line as it is: not wrapped, and without Rich's markup or highlighting."""
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


def score(sweep: Sweep, folder: RunFolder) -> float | None:
    """Return the sweep's metric of a run; None if it has none.

    For validation accuracy (val/acc, or test_as_val/acc under protocol A) it is the value of the best epoch, for
    test/acc the result of the test, and for other metrics the last value.
    """
    run = read_run(folder.path)
    if sweep.metric in ("val/acc", "test_as_val/acc"):
        found = run.best[1] if run.best else None
    elif sweep.metric == "test/acc":
        found = run.test
    else:
        found = next(reversed(run.curve(sweep.metric)[1]), None)
    return found if found is not None and math.isfinite(found) else None


def _print_end(sweep: Sweep, job: Job, count: str) -> None:
    """Print the result of a job that has ended; of a failed one the end of its output."""
    value = score(sweep, job.folder) if job.state == "finished" else None
    _print(f"{count} {job.name} {job.state}" + ("" if value is None else f": {value_in_words(sweep.metric, value)}"))
    if job.state == "failed":
        lines = job.output.read_text(errors="replace").splitlines()
        _print("\n".join(f"  {line}" for line in lines[-12:] if line.strip()))


def _finish(sweep: Sweep, root: Path, jobs: Sequence[Job]) -> int:
    """Print the runs by the sweep's metric, best first, and means over seeds, and return the exit status."""
    from plif_lightning.analysis.leaderboard import comparison_table
    from plif_lightning.analysis.tables import print_tables

    scores = [(score(sweep, job.folder), job) for job in jobs if job.state == "finished"]
    known = [(value, job) for value, job in scores if value is not None]
    if len(known) > 1:
        _print(f"\n{sweep.metric}, {'highest' if sweep.maximise else 'lowest'} first:")
        for value, job in sorted(known, key=lambda one: (-one[0] if sweep.maximise else one[0], one[1].name)):
            _print(f"  {value_in_words(sweep.metric, value):>9}  {job.name}")
        _print("")
        print_tables([comparison_table([read_run(job.folder.path, root) for _, job in known])], [])
    left = [job for job in jobs if job.state not in ("finished", "ended")]
    for job in left:
        _print(f"{job.state}: {job.name}  again: {shown(job.command)}")
    if not left:
        _print(f"{len(jobs)} runs are done: {program.shown()} report --runs {shlex.quote(relative(root))}")
    return 1 if left else 0


class Runs(Protocol):
    """The runs of a sweep: those of a grid, or those that a search asks for."""

    def jobs(self) -> Iterator[Job]:
        """The next runs for a thread; each is that thread's alone until it asks for another one."""

    def should_end(self, job: Job) -> bool:
        """True if a run is to be ended early."""

    def ended(self, job: Job) -> str:
        """Take note of a run that has ended, and return its place, such as `[3/8]`; empty for one in use."""

    def every(self) -> list[Job]:
        """All runs so far."""


def make_finished(sweep: Sweep, root: Path, runs: Runs, runner: Runner) -> int:
    """Make the runs of a sweep finished, several at a time, and return the exit status.

    It is 1 if a run failed, and 130 if interrupted: then running processes are ended, as they are where a thread
    raises.
    """

    def work() -> None:
        for job in runs.jobs():
            runner.run(job, partial(runs.should_end, job))
            if job.state != "stopped" and (place := runs.ended(job)):
                _print_end(sweep, job, place)
            if runner.stopped.is_set():
                return

    with ThreadPoolExecutor(runner.processes) as pool:
        calls = [pool.submit(work) for _ in range(runner.processes)]
        try:
            for call in as_completed(calls):
                call.result()
        except BaseException as error:
            runner.stopped.set()
            if not isinstance(error, KeyboardInterrupt):
                raise
            _print("interrupted: the same command resumes the runs.")
    return 130 if runner.stopped.is_set() else _finish(sweep, root, runs.every())


class Grid:
    """Runs that are known at the beginning.

    Args:
        jobs: its runs.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs, self._waiting, self._again = jobs, deque(jobs), deque[Job]()
        self._in_use: set[str] = set()
        self._numbers = itertools.count(1)

    def jobs(self) -> Iterator[Job]:
        while self._waiting or self._again:  # those in use once more: another process may have ended meanwhile
            try:
                job = (self._waiting or self._again).popleft()
            except IndexError:  # another thread has taken the last one
                return
            yield job

    def should_end(self, job: Job) -> bool:
        return False

    def ended(self, job: Job) -> str:
        if job.state == "in use" and job.name not in self._in_use:
            self._in_use.add(job.name)
            self._again.append(job)
            return ""
        return f"[{next(self._numbers)}/{len(self._jobs)}]"

    def every(self) -> list[Job]:
        return [*self._jobs]


def grid_of(sweep: Sweep, root: Path, overrides: Sequence[str], index: str | None) -> list[Job]:
    """The runs of a grid, or a share of them.

    Raises:
        UserError: two of them would have one folder.
    """
    every = [job_of(sweep, root, point, overrides) for point in sweep.points()]
    if len({job.name for job in every}) < len(every):
        raise UserError("two runs of the sweep have the same name: give each value once, and shorter ones.")
    return every[share(index, len(every))] if index else every


def parser() -> PlainParser:
    """Return the parser of the command."""
    found = PlainParser(
        "sweep",
        "Run a parameter grid or a search without a server, one process and one folder per run. Finished runs are "
        "skipped, unfinished ones resumed. Arguments after -- are passed to every run.",
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


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def sweep(argv: list[str]) -> int:
    """Run a sweep and return the exit status."""
    at = argv.index("--") if "--" in argv else len(argv)
    given, overrides = parser().parse_args(argv[:at]), argv[at + 1 :]
    require_count("--jobs", given.jobs)
    read = read_sweep(configs.resolve(given.file, "sweeps"), given.grid)
    if twice := sorted({f"--{name}" for name in read.parameters} & option_names(overrides)):
        raise UserError(f"{', '.join(twice)} is swept: behind -- it would replace every value of {given.file}.")
    root = (given.runs or Path("runs") / read.name).absolute()
    for_other = ("cap", "seed") if read.method == "grid" else ("index", "grid")
    if any(getattr(given, option) for option in for_other):
        raise UserError(f"--{' and --'.join(for_other)} are not for method {read.method}.")
    runs: Runs
    if read.method == "grid":
        jobs = grid_of(read, root, overrides, given.index)
        if given.dry_run:
            _print("\n".join(shown(job.command) for job in jobs))
            return 0
        runs, what = Grid(jobs), f"{len(jobs)} runs"
    else:
        from plif_lightning.cli.search import Search, distribution

        if given.dry_run:
            _print("\n".join(f"{key}: {distribution(key, spec)}" for key, spec in read.parameters.items()))
            return 0
        cap: Any = read.run_cap if given.cap is None else given.cap
        require_count("a search has no end by itself: run_cap, or --cap,", cap)
        runs, what = Search(read, root, overrides, cap, given.seed), f"{cap} runs by {read.method} search"
    _print(f"{read.name}: {what} in {relative(root)}")
    with on_termination(_interrupt):
        return make_finished(read, root, runs, Runner(given.jobs))
