"""Run a W&B sweep file without a server: a grid, or a search by Optuna; each run is a call of `fit --run_folder`."""

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from rich.console import Console

from plif_lightning import configs
from plif_lightning.cli.job import Job, job_of, score
from plif_lightning.cli.parser import PlainParser, option_names
from plif_lightning.cli.sweep_file import Sweep, read_sweep
from plif_lightning.errors import UserError, require_count
from plif_lightning.runs.code import PACKAGE, hashes_of, sources_of
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.lock import InUseError, lock_run
from plif_lightning.runs.metrics import value_in_words
from plif_lightning.runs.run import Run, read_run
from plif_lightning.runtime import program
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.process import OF_SCHEDULER, cores, on_termination


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
    """Runs jobs, each in its process.

    Args:
        processes: that run at a time; each gets an equal share of the cores.

    Attributes:
        stopped: if set, no further run begins, and running ones stop.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._environment = dict(os.environ)
        if processes > 1:
            self._environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
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
                _print(
                    f"{job.name} is finished, with {', '.join(edited)} as before the last edit: pass another --runs to "
                    "run the edited code."
                )
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
    """True if another process trains a run, for example after a sweep was killed; prints this, and sets the state."""
    try:
        with lock_run(job.folder):
            return False
    except InUseError as error:
        job.state = "in use"
        _print(f"{error} The others are run.")
        return True


def edited_modules(run: Run) -> list[str]:
    """The user's modules that are not as when a run was made."""
    now = Identity({}, code=hashes_of(sources_of(run.config)))
    return [name for name in now.edited_code(run.identity) if name != PACKAGE]


def shown(command: Sequence[str]) -> str:
    return f"{program.program_name()} {shlex.join(command[len(program.command()) :])}"


def _print(text: str) -> None:
    """Print a line as it is: not wrapped, and without Rich's markup or highlighting."""
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


def _print_end(sweep: Sweep, job: Job, count: str) -> None:
    """Print the result of a job that has ended; for a failed job, the end of its output."""
    value = score(sweep, job)
    _print(
        f"{count} {job.name} {job.state}"
        + ("" if value is None else f": {sweep.metric} {value_in_words(sweep.metric, value)}")
    )
    if job.state == "failed":
        lines = job.output.read_text(errors="replace").splitlines()
        _print("\n".join(f"  {line}" for line in lines[-12:] if line.strip()))


def _finish(sweep: Sweep, root: Path, jobs: Sequence[Job]) -> int:
    """Print the runs by the sweep's metric, best first, and means over seeds, and return the exit status."""
    from plif_lightning.analysis.leaderboard import comparison_table
    from plif_lightning.analysis.tables import print_tables

    scores = [(score(sweep, job), job) for job in jobs]
    scored = [(value, job) for value, job in scores if value is not None]
    if len(scored) > 1:
        _print(f"\n{sweep.metric}, {'highest' if sweep.maximise else 'lowest'} first:")
        for value, job in sorted(
            scored,
            key=lambda value_and_job: (
                -value_and_job[0] if sweep.maximise else value_and_job[0],
                value_and_job[1].name,
            ),
        ):
            _print(f"  {value_in_words(sweep.metric, value):>9}  {job.name}")
        _print("")
        print_tables([comparison_table([read_run(job.folder.path, root) for _, job in scored])], [])
    left = [job for job in jobs if job.state not in ("finished", "ended")]
    for job in left:
        _print(f"{job.state}: {job.name}  again: {shown(job.command)}")
    if not left:
        _print(f"{len(jobs)} runs are done: {program.program_name()} report --runs {shlex.quote(relative(root))}")
    return 1 if left else 0


class Runs(Protocol):
    """The runs of a sweep: points of a grid, or proposed by a search."""

    def jobs(self) -> Iterator[Job]:
        """The next runs for a thread; no other thread gets the same."""

    def should_end(self, job: Job) -> bool:
        """True if a run is to be ended early."""

    def record_end(self, job: Job) -> str:
        """Take note of a run that has ended, and return its place, such as `[3/8]`; empty if in use."""

    def every(self) -> list[Job]:
        """All runs so far."""


def make_finished(sweep: Sweep, root: Path, runs: Runs, runner: Runner) -> int:
    """Make the runs of a sweep finished, in parallel, and return the exit status.

    It is 1 if a run failed, and 128 + the signal's number if interrupted: then running processes are ended, as they
    are where a thread raises.
    """
    number = signal.SIGINT

    def work() -> None:
        for job in runs.jobs():
            runner.run(job, partial(runs.should_end, job))
            if job.state != "stopped" and (position := runs.record_end(job)):
                _print_end(sweep, job, position)
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
            number = error.args[0] if error.args else number
            _print("interrupted: the same command resumes the runs.")
    return 128 + number if runner.stopped.is_set() else _finish(sweep, root, runs.every())


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
        while self._waiting or self._again:  # retry runs in use: another process may have ended meanwhile
            try:
                job = (self._waiting or self._again).popleft()
            except IndexError:  # another thread has taken the last
                return
            yield job

    def should_end(self, job: Job) -> bool:
        return False

    def record_end(self, job: Job) -> str:
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
    sweep_parser = PlainParser(
        "sweep",
        "Run a parameter grid or a search without a server, one process and one folder per run. Finished runs are "
        "skipped, unfinished ones resumed. Arguments after -- are passed to every run.",
    )
    sweep_parser.add_argument("file", help="a W&B sweep file, by path or name, such as table4")
    sweep_parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/NAME of the sweep)")
    sweep_parser.add_argument(
        "--jobs", type=int, default=1, help="concurrent runs, each with an equal share of the cores"
    )
    sweep_parser.add_argument(
        "--index",
        metavar="I or I/N",
        help="only run I, or every N-th from I, counted from 0: one task of a cluster's job array",
    )
    sweep_parser.add_argument(
        "--cap", type=int, help="number of runs of a random or bayes search (default: its run_cap)"
    )
    sweep_parser.add_argument("--seed", type=int, help="seed of a random or bayes search")
    sweep_parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    sweep_parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="replace the values of a parameter, or add one, such as seed_everything=1,2,3",
    )
    return sweep_parser


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(number)


def sweep(argv: list[str]) -> int:
    """Run a sweep and return the exit status."""
    at = argv.index("--") if "--" in argv else len(argv)
    options, overrides = parser().parse_args(argv[:at]), argv[at + 1 :]
    require_count("--jobs", options.jobs)
    read = read_sweep(configs.resolve(options.file, "sweeps"), options.grid)
    if twice := sorted({f"--{name}" for name in read.parameters} & option_names(overrides)):
        raise UserError(f"{', '.join(twice)} is swept: behind -- it would replace every value of {options.file}.")
    root = (options.runs or Path("runs") / read.name).absolute()
    for_other = ("cap", "seed") if read.method == "grid" else ("index", "grid")
    if any(getattr(options, option) for option in for_other):
        raise UserError(f"--{' and --'.join(for_other)} are not for method {read.method}.")
    runs: Runs
    if read.method == "grid":
        jobs = grid_of(read, root, overrides, options.index)
        if options.dry_run:
            _print("\n".join(shown(job.command) for job in jobs))
            return 0
        runs, description = Grid(jobs), f"{len(jobs)} runs"
    else:
        from plif_lightning.cli.search import Search, distribution

        if options.dry_run:
            _print("\n".join(f"{key}: {distribution(key, spec)}" for key, spec in read.parameters.items()))
            return 0
        cap: Any = read.run_cap if options.cap is None else options.cap
        require_count("a search has no end by itself: run_cap, or --cap,", cap)
        runs, description = Search(read, root, overrides, cap, options.seed), f"{cap} runs by {read.method} search"
    _print(f"{read.name}: {description} in {relative(root)}")
    # A job's processes all get the scheduler's signal: without a handler it would end the sweep before its runs save.
    with on_termination(_interrupt, OF_SCHEDULER):
        return make_finished(read, root, runs, Runner(options.jobs))
