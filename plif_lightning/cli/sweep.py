"""Run a W&B sweep file without a server: a grid, or a search by Optuna; each run is a call of `fit --run_folder`."""

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from filelock import Timeout
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
from plif_lightning.runtime.files import file_lock, relative
from plif_lightning.runtime.process import on_termination
from plif_lightning.runtime.program import needed_by

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
        jobs: number of concurrent processes; each gets an equal share of the cores.
    """

    def __init__(self, jobs: int) -> None:
        self._environment = dict(os.environ)
        if jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self._environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        self.stopped = Event()

    def run(self, job: Job, should_end: Callable[[], bool] = lambda: False) -> None:
        """Make a run finished, and set the job's state.

        Args:
            job: the run.
            should_end: called every second; the run is ended early when it returns True.
        """
        run = read_run(job.folder.path)
        if run.status == "finished":
            if run.command[: len(job.arguments)] != job.arguments:
                raise UserError(
                    f"{job.folder.path} is finished, with other arguments: {shlex.join(run.command)}. Pass another "
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
        if job.state == "running":
            is_done = process.returncode == 0 and read_run(job.folder.path).status == "finished"
            if is_done or not _is_taken(job):  # by a process that started a moment before
                job.state = "finished" if is_done else "failed"
        if job.state == "failed" and self.stopped.wait(1.0):  # a signal to all processes reaches the run, too
            job.state = "stopped"


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


def _in_threads(runner: Runner, jobs: int, work: Callable[[], None]) -> bool:
    """Call `work` in several threads until it returns; False if interrupted: then running processes are ended.

    So they are where a thread raises.
    """
    with ThreadPoolExecutor(jobs) as pool:
        calls = [pool.submit(work) for _ in range(jobs)]
        try:
            for call in as_completed(calls):
                call.result()
        except BaseException as error:
            runner.stopped.set()
            if not isinstance(error, KeyboardInterrupt):
                raise
            _print("interrupted: the same command resumes the runs.")
    return not runner.stopped.is_set()


def run_grid(sweep: Sweep, root: Path, given: Any, overrides: Sequence[str]) -> int:
    """Run a grid or a share of it, and return the exit status: 1 if a run failed, 130 if interrupted."""
    every = [job_of(sweep, root, point, overrides) for point in sweep.points()]
    if len({job.name for job in every}) < len(every):
        raise UserError("two runs of the sweep have the same name: give each value once, and shorter ones.")
    jobs = every[share(given.index, len(every))] if given.index else every
    if given.dry_run:
        _print("\n".join(shown(job.command) for job in jobs))
        return 0
    _print(f"{sweep.name}: {len(jobs)} runs in {relative(root)}")
    waiting, numbers = iter(jobs), itertools.count(1)
    runner = Runner(given.jobs)

    def work() -> None:
        for job in waiting:
            runner.run(job)
            _print_end(sweep, job, f"[{next(numbers)}/{len(jobs)}]")
            if runner.stopped.is_set():
                return

    if not _in_threads(runner, given.jobs, work):
        return 130
    for job in jobs:
        if job.state == "in use":  # once more: it may have ended meanwhile
            runner.run(job)
    return _finish(sweep, root, jobs)


# --- searches


def distribution(key: str, spec: dict[str, Any]) -> Any:
    """Optuna's distribution for a parameter of W&B's file.

    Raises:
        UserError: the specification has another form.

    >>> distribution("lr", {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"})
    FloatDistribution(high=0.1, log=True, low=0.001, step=None)
    """
    with needed_by("a search"):
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if {"value", "values"} & {*spec}:
        # Optuna's choices are numbers and texts; others go by their JSON.
        return CategoricalDistribution([json.dumps(value) for value in spec.get("values", [spec.get("value")])])
    low, high, kind = (spec.get(name) for name in ("min", "max", "distribution"))
    if isinstance(low, int) and isinstance(high, int) and kind in (None, "int_uniform", "q_uniform"):
        return IntDistribution(low, high, step=spec.get("q", 1))
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        if kind == "q_uniform":
            return FloatDistribution(low, high, step=spec.get("q", 1))
        if kind in (None, "uniform", "log_uniform_values"):
            return FloatDistribution(low, high, log=kind == "log_uniform_values")
    raise UserError(
        f"parameter {key} must have `value`, `values`, or numbers `min` and `max` with the distribution uniform, "
        f"int_uniform, q_uniform or log_uniform_values, got {spec}."
    )


class Search:
    """A search in a folder, which several processes may share, and which a later call continues.

    Args:
        sweep: with method random or bayes.
        root: folder of its runs and of Optuna's journal.
        overrides: arguments of main.py for all runs.
        seed: of the sampler; None for another one at each call.
    """

    def __init__(self, sweep: Sweep, root: Path, overrides: Sequence[str], seed: int | None = None) -> None:
        with needed_by("a search"):
            import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.root, self.overrides, self.seed = sweep, root, overrides, seed
        self.space = {key: distribution(key, spec) for key, spec in sweep.parameters.items()}
        pruner: Any = optuna.pruners.NopPruner()
        if (early := sweep.early_terminate) is not None:
            least, most, eta = early.get("min_iter", 1), early.get("max_iter", "auto"), early.get("eta", 3)
            pruner = optuna.pruners.HyperbandPruner(least, most, eta)
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(root / "search.journal"))),
            study_name="search",
            direction="maximize" if sweep.maximise else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )
        described = {
            "metric": sweep.metric,
            "parameters": sweep.parameters,
            "arguments": [*sweep.arguments, *overrides],
        }
        known = json.loads(json.dumps(described))
        if self.study.user_attrs.get("sweep", known) != known:
            raise UserError(
                f"{root} holds a search with another metric, other parameters or arguments: pass another --runs, or "
                "move that folder away."
            )
        self.study.set_user_attr("sweep", known)
        self.skipped: set[int] = set()  # trials whose run another process trains

    def claimed(self, cap: int) -> Iterator[Any]:
        """Trials to run, each held by a lock within the loop: those that killed processes left, then new ones."""
        import optuna

        while True:
            with contextlib.ExitStack() as held:
                with file_lock(self.root / ".claim.lock"):
                    known = self.study.get_trials(deepcopy=False)
                    running = {one.number for one in known if one.state.name == "RUNNING"} - self.skipped
                    left = next((number for number in sorted(running) if self._hold(held, number)), None)
                    if left is None and len(known) >= cap:
                        return
                    self.study.sampler = self._sampler(len(known) if left is None else left)
                    if left is None:
                        trial = self.study.ask(self.space)
                        self._hold(held, trial.number)
                    else:
                        trial = optuna.trial.Trial(self.study, known[left]._trial_id)
                        for key, space in self.space.items():  # what the killed process had not drawn yet
                            trial._suggest(key, space)
                yield trial

    def _sampler(self, number: int) -> Any:
        """The sampler of a trial: with a seed, of every trial another one, whichever process asks."""
        import optuna

        seed = None if self.seed is None else (self.seed * 10**6 + number) % 2**32
        if self.sweep.method == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _hold(self, held: contextlib.ExitStack, number: int) -> bool:
        """Hold a trial until `held` ends; False if another process or thread does."""
        try:
            held.enter_context(file_lock(self.root / f".{number:04d}.lock", blocking=False))
        except Timeout:
            return False
        return True

    def job(self, trial: Any) -> Job:
        """The run of a trial."""
        point = {key: self._value(key, value) for key, value in trial.params.items()}
        free = {key: value for key, value in point.items() if "value" not in self.sweep.parameters[key]}
        short = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in free.items()}
        return job_of(self.sweep, self.root, point, self.overrides, f"{trial.number:04d}_{run_name(short)}"[:100])

    def _value(self, key: str, value: Any) -> Any:
        return json.loads(value) if hasattr(self.space[key], "choices") else value

    def should_end(self, trial: Any, job: Job) -> bool:
        """Report the epochs that are new, and say if the pruner ends the run."""
        run = read_run(job.folder.path)
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        metric = run.val_key if self.sweep.metric in ("val/acc", "test_as_val/acc") else self.sweep.metric
        for epoch, value in zip(*run.curve(metric), strict=True):
            if int(epoch) not in known and math.isfinite(value):
                trial.report(value, int(epoch))
                if trial.should_prune():
                    return run.epochs != run.setting("trainer.max_epochs")
        return False

    def run(self, runner: Runner, cap: int, done: list[Job]) -> None:
        """Run trials until there are `cap`."""
        from optuna.trial import TrialState

        for trial in self.claimed(cap):
            job = self.job(trial)
            done.append(job)
            runner.run(job, partial(self.should_end, trial, job))
            if job.state == "stopped":
                return  # it is resumed with the search
            if job.state == "in use":
                self.skipped.add(trial.number)
                continue
            value = score(self.sweep, job.folder) if job.state == "finished" else None
            if job.state == "finished" and value is None:
                job.state = "failed"  # without the sweep's metric
            state = {"ended": TrialState.PRUNED, "failed": TrialState.FAIL}.get(job.state)
            self.study.tell(trial, value, state=state)
            _print_end(self.sweep, job, f"[{trial.number + 1}/{cap}]")


def run_search(sweep: Sweep, root: Path, given: Any, overrides: Sequence[str]) -> int:
    """Run a search to its number of runs, and return the exit status: 1 if a run failed, 130 if interrupted."""
    cap: Any = sweep.run_cap if given.cap is None else given.cap
    require_count("a search has no end by itself: run_cap, or --cap,", cap)
    if given.dry_run:
        _print("\n".join(f"{key}: {distribution(key, spec)}" for key, spec in sweep.parameters.items()))
        return 0
    root.mkdir(parents=True, exist_ok=True)
    search, runner = Search(sweep, root, overrides, given.seed), Runner(given.jobs)
    _print(f"{sweep.name}: {cap} runs by {sweep.method} search in {relative(root)}")
    done: list[Job] = []
    if not _in_threads(runner, given.jobs, lambda: search.run(runner, cap, done)):
        return 130
    names = {job.name for job in done}
    finished = [one for one in search.study.get_trials(deepcopy=False) if one.state.name == "COMPLETE"]
    others = [job for job in map(search.job, finished) if job.name not in names]
    for job in others:
        job.state = "finished"
    return _finish(sweep, root, [*others, *done])


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
    with on_termination(_interrupt):
        return (run_grid if read.method == "grid" else run_search)(read, root, given, overrides)
