"""Run the command line in processes of its own, one for each run of a sweep or a search."""

import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from plif_lightning.cli.grid import Sweep
from plif_lightning.cli.warm import Started, WarmStart
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.process import in_use
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.run import Run
from plif_lightning.runtime import program


@dataclass
class Job:
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


def shown(command: Sequence[str]) -> str:
    return f"{program.shown()} {shlex.join(command[len(program.command()) :])}"


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: not wrapped, and without Rich's markup or highlighting."""
    console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)


def require_free(job: Job) -> None:
    """Refuse a folder that does not belong to a run, or whose run may be running."""
    folder = job.folder
    if not folder.path.is_dir() or folder.path.is_symlink():
        raise UserError(f"{folder.path} is not a folder: move it away, or pass another --runs.")
    if not (folder.config.is_file() or folder.command.is_file()) and set(folder.path.iterdir()) - {folder.lock}:
        raise UserError(f"{folder.path} is no run's folder, and not empty: move it away, or pass another --runs.")
    if in_use(folder):
        raise UserError(f"{folder.path} is being trained by another process: wait for it, or end it first.")


def metric_name(sweep: Sweep, run: Run) -> str:
    """The sweep's metric in a run: validation accuracy has another name under each protocol."""
    return run.val_key if sweep.metric in ("val/acc", "test_as_val/acc") else sweep.metric


def score(sweep: Sweep, folder: RunFolder) -> tuple[str, float | None]:
    """Return the name of the sweep's metric in a finished run, and its value; None if the run has none.

    For validation accuracy (val/acc, or test_as_val/acc under protocol A) it is the value of the best epoch, for
    test/acc the result of the test, and for other metrics the last value.
    """
    run = read_run(folder.path)
    name = metric_name(sweep, run)
    if name == run.val_key:
        found = run.best[1] if run.best else None
    elif name == "test/acc":
        found = run.test
    else:
        found = next(reversed(run.curve(name)[1]), None)
    return name, found if found is not None and math.isfinite(found) else None


def print_job(console: Console, job: Job, text: str) -> None:
    """Print a line on a job that has ended; below it, of a failed one, its error or the end of its output."""
    failed = job.state == "failed"
    print_line(console, text, "red" if failed else "")
    if failed:
        for line in [job.error] if job.error else last_lines(job.output):
            print_line(console, f"  {line}")


def last_lines(path: Path, most: int = 12) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"no output: {error.strerror}"]
    return [line for line in lines if line.strip()][-most:]


def put_aside(folder: Path) -> None:
    """Move a run's folder into `.broken` beside it, so that nothing is lost."""
    aside = folder.parent / ".broken"
    aside.mkdir(exist_ok=True)
    i = 0
    while (aside / f"{folder.name}-{i}").exists():
        i += 1
    folder.rename(aside / f"{folder.name}-{i}")


class Runner:
    """Runs jobs, each in a process of its own.

    Args:
        jobs: number of concurrent processes; each gets an equal share of the cores.
        warm: start them from a process that has imported everything, see `cli.warm`.
    """

    def __init__(self, jobs: int, warm: bool = False) -> None:
        environment = dict(os.environ)
        if jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        self.stopped = False
        self._start = WarmStart(environment, warm)
        self._running: set[Started] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *error: object) -> None:
        self._start.close()

    def run(self, job: Job, ends: Callable[[Job], bool] | None = None) -> None:
        """Run one job; an error fails the job, and the others continue.

        Args:
            job: its state, seconds and error are set.
            ends: called every second; the run is ended early, with the state `ended`, when it returns True.
        """
        try:
            self._run(job, ends)
        except (UserError, OSError) as error:
            job.state, job.error = "failed", str(error)

    def _run(self, job: Job, ends: Callable[[Job], bool] | None) -> None:
        if self.stopped:
            job.state = "stopped"
            return
        start = time.monotonic()
        self._clear(job)
        status, ended = self._call(job, ends)
        job.seconds = time.monotonic() - start
        if self.stopped and status != 0 and not ended:
            job.state = "stopped"
            return
        may_be_whole = status in (0, -signal.SIGKILL)  # killed, or ended after the process that started it was
        job.state = "ended" if ended else "finished" if may_be_whole and job.folder.result.is_file() else "failed"
        if status == 0 and job.state == "failed":
            job.error = (
                f"it ended without an error, but {job.folder.path} holds no result, as after a fast_dev_run. Its "
                f"output is in {job.output}."
            )

    def _clear(self, job: Job) -> None:
        """Put the folder of a run without a checkpoint aside: it cannot be resumed."""
        if not job.folder.path.exists():
            return
        require_free(job)  # another process may have started it since the plan
        if not job.folder.last.is_file() and job.folder.path.exists():
            put_aside(job.folder.path)

    def _call(self, job: Job, ends: Callable[[Job], bool] | None) -> tuple[int, bool]:
        """Run the command of a job, its output appended to the job's log: its exit status, and if `ends` ended it."""
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("ab") as output:
            output.write(f"$ {shown(job.command)}\n".encode())
        started = self._start.start(job.command, job.command[len(program.command()) :], job.output)
        with self._lock:
            self._running.add(started)
            if self.stopped:
                started.terminate()
        ended = False
        while (status := started.wait(None if ends is None or ended else 1.0)) is None:
            if ends is not None and ends(job):
                ended = True
                started.terminate()
        with self._lock:
            self._running.discard(started)
        return status, ended

    def stop(self) -> None:
        """Terminate running processes and start no more."""
        self.stopped = True
        with self._lock:
            for started in self._running:
                started.terminate()
