"""A W&B sweep file run without a server: a grid of runs in processes of their own."""

import contextlib
import io
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plif_lightning import configs
from plif_lightning.cli.checkpoint import expand, model_defaults
from plif_lightning.cli.parser import PlainParser
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.process import in_use
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.settings import identity, without_order
from plif_lightning.runtime import program
from plif_lightning.runtime.console import Console
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.locks import file_lock, is_about_locks
from plif_lightning.runtime.signals import on_termination

_PROGRAMS = ("main.py", "plif-lightning")
_KNOWN = {"program", "method", "project", "entity", "name", "description", "metric", "command", "parameters"}


@dataclass(frozen=True)
class Sweep:
    """A grid.

    Attributes:
        name: of the sweep.
        arguments: of main.py, the same in every run.
        parameters: name and values of each dimension of the grid.
        metric: by which its runs are ranked.
        maximise: whether the highest is the best.
    """

    name: str
    arguments: list[str]
    parameters: dict[str, list[Any]]
    metric: str = "val/acc"
    maximise: bool = True

    def points(self) -> list[dict[str, Any]]:
        """All combinations, the last parameter changing first."""
        return [
            dict(zip(self.parameters, values, strict=True)) for values in itertools.product(*self.parameters.values())
        ]


def read_sweep(path: Path) -> Sweep:
    """The grid of a W&B sweep file; of its `command`, what stands after the program, but not W&B's variant.

    Raises:
        UserError: the file is no sweep file, or not a grid.
    """
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"the sweep file {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the sweep file {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("parameters"), dict) or not loaded["parameters"]:
        raise UserError(f"{path} is not a sweep file: it has no `parameters`. See configs/sweeps/table4.yaml.")
    if unknown := sorted(map(str, loaded.keys() - _KNOWN)):
        raise UserError(f"{path} has {', '.join(unknown)}, which only W&B's own agent knows: use `wandb sweep` for it.")
    if loaded.get("method") != "grid":
        raise UserError(
            f"method must be grid, got {loaded.get('method')!r} in {path}: use `wandb sweep` for random or bayes."
        )
    called = loaded.get("program", _PROGRAMS[0])
    if Path(str(called)).name not in _PROGRAMS:
        raise UserError(
            f"{path} is of the program {called}, but `sweep` runs {_PROGRAMS[0]}: use `wandb agent` for it."
        )
    name = str(loaded.get("name") or path.stem)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"name of {path} must be that of a folder in runs/, got {name!r}.")
    parameters = {}
    for key, given in loaded["parameters"].items():
        if isinstance(given, dict) and given.keys() == {"value"}:
            parameters[str(key)] = [given["value"]]
        elif isinstance(given, dict) and given.keys() == {"values"} and isinstance(given["values"], list):
            parameters[str(key)] = given["values"]
        else:
            raise UserError(f"parameter {key} of {path} must have `value` or a list of `values`, got {given!r}.")
        if not parameters[str(key)]:
            raise UserError(f"parameter {key} of {path} has no values.")
    metric = loaded.get("metric") or {}
    if not isinstance(metric, dict) or metric.get("goal", "minimize") not in ("maximize", "minimize"):
        raise UserError(f"metric of {path} must have a name, and a goal, maximize or minimize; got {metric!r}.")
    made = Sweep(name, _arguments(path, loaded.get("command")), parameters)
    if "name" in metric:
        made = replace(made, metric=str(metric["name"]), maximise=metric.get("goal") == "maximize")
    return made


def _arguments(path: Path, command: Any) -> list[str]:
    if command is None:
        return ["fit"]
    command = [str(part) for part in command] if isinstance(command, list) else []
    rest = command[command.index("${program}") + 1 :] if "${program}" in command else []
    if "${args}" not in rest or any(part.startswith("${") and part != "${args}" for part in rest):
        raise UserError(
            f"command of {path} must be a list with ${{program}} and, after it, ${{args}}, and nothing else in "
            "braces there: use `wandb agent` for other forms."
        )
    rest = [part for part in rest if part != "${args}"]
    kept: list[str] = []
    for part in rest:
        if Path(part.removeprefix("--config=")).name == "wandb.yaml":
            if kept and kept[-1] in ("--config", "-c"):
                kept.pop()
        else:
            kept.append(part)
    return kept


def replaced(sweep: Sweep, changes: Sequence[str]) -> Sweep:
    """The sweep with other values of some parameters, or more parameters: `KEY=VALUE,VALUE`.

    Raises:
        UserError: a change is not of that form.
    """
    parameters = dict(sweep.parameters)
    for change in changes:
        key, _, values = change.partition("=")
        if not key or not values:
            raise UserError(f"--grid must be KEY=VALUE,VALUE,..., got {change!r}.")
        try:
            parsed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise UserError(f"the values of --grid {change} are not YAML: {' '.join(str(error).split())}.") from error
        if not parsed or (key == "config" and any(value in ("", None) for value in parsed)):
            raise UserError(f"--grid {change!r} gives {key} no value.")
        parameters[key] = parsed
    return replace(sweep, parameters=parameters)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list, dict)) or value is None else str(value)


def run_name(point: dict[str, Any]) -> str:
    """Name of a run's folder: its configuration's name, and every other parameter."""
    parts = []
    for key, value in sorted(point.items(), key=lambda item: item[0] != "config"):
        text = Path(str(value)).stem if key == "config" else f"{key.rsplit('.', 1)[-1]}-{_text(value)}"
        parts.append(re.sub(r"[^\w.+-]+", "-", text))
    return "_".join(parts)


def _file(value: str) -> str:
    """A configuration's whole path: a sweep may be called again from elsewhere."""
    try:
        return str(configs.resolve(value).absolute())
    except UserError:  # the run will say so, and the others are made
        return value


def point_arguments(sweep: Sweep, point: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Arguments of main.py for one run: the configuration first, which the others change; overrides count last."""
    point = dict(sorted(point.items(), key=lambda item: item[0] != "config"))
    given = [f"--{key}={_file(str(value)) if key == 'config' else _text(value)}" for key, value in point.items()]
    return [*sweep.arguments, *given, *overrides]


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
        """What is to be called now: the run from its start, or its resumption."""
        arguments = [*self.arguments, f"--run_folder={self.folder.path}"]
        if self.folder.last.is_file() and self.folder.config.is_file():
            arguments = ["fit", f"--config={self.folder.config}", "--ckpt_path", "last"]
        return [*program.command(), *arguments]


def _shown(command: Sequence[str]) -> str:
    return f"{program.shown()} {shlex.join(command[len(program.command()) :])}"


def _comparable(arguments: Sequence[str]) -> list[str]:
    """Without the run's folder, and with whole paths: a sweep may be called again from elsewhere."""
    return [
        f"--config={Path(a.removeprefix('--config=')).resolve()}" if a.startswith("--config=") else a
        for a in arguments
        if not a.startswith("--run_folder=")
    ]


def _comparable_settings(config: dict[str, Any]) -> str:
    """What tells the run of a configuration from others while it is planned."""
    # What an older run does not name had its default then.
    found = identity({**config, "model": {**model_defaults(), **config["model"]}}, planned=True)
    found |= {name: config.get(name) for name in ("seed_everything", "test_after_fit")}
    if found.get("data.validation") == "holdout":  # on the test set the rule for ties decides nothing
        found["best_of_ties"] = config.get("best_of_ties", "first") or "last"
    return json.dumps(sorted(found.items(), key=without_order), default=str)


def _whole_settings(arguments: Sequence[str]) -> str | None:
    """`_comparable_settings` of a fit's arguments, as its own parser understands them; None where it refuses them."""
    from plif_lightning.cli.lightning import place_absolutely, run  # which loads Lightning

    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            run(expand([*arguments, "--print_config"]))
    except UserError:
        return None  # the run will say so itself
    except SystemExit as stop:
        if stop.code not in (0, None):
            return None
    config = yaml.safe_load(out.getvalue())
    place_absolutely(config["data"]["init_args"])  # as in the configuration that a run keeps
    return _comparable_settings(config)


def _finished_beside(root: Path) -> dict[str, Path]:
    """Finished runs in the folders beside a sweep's, such as `runs/table4` beside `runs/table5`, by their settings.

    Their configurations count, not the commands that began them: a run may have gone on with other arguments.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.parent.glob(f"*/*/{RunFolder(Path()).result.name}")):
        run = read_run(path.parent)
        if path.parent.parent != root and run.status == "finished":
            with contextlib.suppress(KeyError, TypeError, AttributeError):  # a configuration of something else
                found.setdefault(_comparable_settings(run.config), path.parent)
    return found


def _require_free(job: _Job) -> None:
    """Refuses a folder that is not a run's, or whose run may be running."""
    folder = job.folder
    if not folder.path.is_dir() or folder.path.is_symlink():
        raise UserError(f"{folder.path} is not a folder: move it away, or pass another --runs.")
    if not (folder.config.is_file() or folder.command.is_file()) and set(folder.path.iterdir()) - {folder.lock}:
        raise UserError(f"{folder.path} is no run's folder, and not empty: move it away, or pass another --runs.")
    if in_use(folder):
        raise UserError(f"{folder.path} is being trained by another process: wait for it, or end it first.")


def share(text: str, points: int) -> slice:
    """Which points of a sweep `--index I` (one of them) or `--index I/N` (every N-th from the I-th) means.

    Raises:
        UserError: it is not of that form, or names none.
    """
    found = re.fullmatch(r"(\d+)(?:/(\d+))?", text)
    if not found:
        raise UserError(f"--index must be I, or I/N for every N-th run from the I-th, counted from 0, got {text!r}.")
    index, step = int(found[1]), int(found[2] or points)
    if not step:
        raise UserError(f"--index must be I/N with at least one share, got {text}.")
    if index >= step:
        raise UserError(f"--index must be from 0 to {step - 1} for {step} shares, got {text}.")
    return slice(index, None, step)  # where there are more shares than runs, the last ones are empty


def _plan(sweep: Sweep, root: Path, overrides: Sequence[str], of: slice) -> tuple[list[_Job], list[_Job]]:
    """Runs that are still to be made, and those that are finished; of the latter some elsewhere."""
    jobs: list[_Job] = []
    finished: list[_Job] = []
    elsewhere = _finished_beside(root)
    points = sweep.points()
    names = [run_name(point) for point in points]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two runs of the sweep have the same name {twice}: give each value once.")
    for name, point in zip(names[of], points[of], strict=True):
        if not re.search(r"\w", name):
            raise UserError(f"the values {list(point.values())} give a run no name: pass others.")
        job = _Job(name, RunFolder(root / name), point_arguments(sweep, point, overrides), root / f"{name}.log")
        if not job.folder.path.exists():
            job.served_by = elsewhere.get(_whole_settings(job.arguments) or "") if elsewhere else None
            (jobs if job.served_by is None else finished).append(job)
            continue
        _require_free(job)
        run = read_run(job.folder.path)
        own = [a for a in run.command if not a.startswith("--run_folder=")]
        if run.command and _comparable(own) != _comparable(job.arguments):
            raise UserError(
                f"{job.folder.path} holds a run of another command: {shlex.join(own)}. "
                f"Now it would be: {shlex.join(job.arguments)}. Pass another --runs, or move that folder away."
            )
        (finished if run.status == "finished" else jobs).append(job)
    return jobs, finished


def run_sweep(
    sweep: Sweep,
    root: Path,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    index: str | None = None,
) -> int:
    """Makes all runs of a grid, or a share of them, that are not finished yet; unfinished ones are resumed.

    Args:
        sweep: the grid.
        root: folder of all its runs.
        jobs: processes at a time; each gets its share of the cores.
        overrides: arguments of main.py for all runs.
        dry_run: say what would be called, and call nothing.
        index: which of them, as `share` reads it; others may be made at the same time.

    Returns:
        Exit status: 1 where a run failed.

    Raises:
        UserError: a run's folder holds another run, or is in use.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}.")
    root = root.absolute()
    console = Console()
    of = slice(None) if index is None else share(index, len(sweep.points()))
    if dry_run:
        return _run(sweep, root, jobs, overrides, console, of, dry_run=True)
    root.mkdir(parents=True, exist_ok=True)
    with on_termination(_interrupt), contextlib.ExitStack() as held:
        if index is None:
            try:
                held.enter_context(file_lock(root / ".sweep.lock", blocking=False))
            except Timeout:
                raise UserError(f"another sweep is running in {root}: wait for it, or pass another --runs.") from None
            except (OSError, NotImplementedError) as error:
                if not is_about_locks(error):
                    raise
                console.print(f"{root} is on storage without locks: start no second sweep in it.")
        return _run(sweep, root, jobs, overrides, console, of)


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def _run(
    sweep: Sweep, root: Path, jobs: int, overrides: Sequence[str], console: Console, of: slice, dry_run: bool = False
) -> int:
    waiting, finished = _plan(sweep, root, overrides, of)
    total = len(waiting) + len(finished)
    shown = escape(relative(root))
    console.print(f"[bold]{escape(sweep.name)}[/]: {total} runs in {shown}, {len(finished)} finished", soft_wrap=True)
    for job in finished:
        if job.served_by is not None:
            path = os.path.relpath(job.served_by)
            console.print(f"{job.name} is {path}: the same settings", markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        for job in waiting:
            console.print(_shown(job.command), soft_wrap=True, markup=False, highlight=False)
        return 0
    runner = _Runner(jobs)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("all runs", total=total, completed=len(finished))
        with ThreadPoolExecutor(jobs) as pool:
            calls = {pool.submit(runner.run, job): job for job in waiting}
            try:
                for done, call in enumerate(as_completed(calls), start=len(finished) + 1):
                    job = calls[call]
                    call.result()
                    said = f": {_shown_score(sweep, job.folder)}" if job.state == "finished" else ""
                    text = f"[{done}/{total}] {job.name} {job.state} after {job.seconds:.0f} s{said}"
                    failed_now = job.state == "failed"
                    console.print(
                        text, style="red" if failed_now else "", markup=False, highlight=False, soft_wrap=True
                    )
                    if failed_now:  # now, not when all others have run
                        _print_failure(console, job)
                    progress.advance(bar)
            except KeyboardInterrupt:
                runner.stop()
                console.print("interrupted: the same command resumes the runs.")
                return 130
    _print_ranking(console, sweep, [*finished, *(job for job in waiting if job.state == "finished")])
    failed = [job for job in waiting if job.state == "failed"]
    for job in failed:
        console.print(
            f"failed: {job.name}  again: {_shown(job.command)}", soft_wrap=True, markup=False, highlight=False
        )
    if not failed:
        below = root.parent if any(job.served_by is not None for job in finished) else root
        what = f"All {total} runs" if of == slice(None) else f"This share's {total} runs"
        command = f"{program.shown()} tables --runs {shlex.quote(relative(below))}"
        console.print(f"{what} are finished: {command}", soft_wrap=True, markup=False, highlight=False)
    return 1 if failed else 0


def _print_failure(console: Console, job: _Job) -> None:
    for line in [job.error] if job.error else _last_lines(job.output):
        console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def score(sweep: Sweep, folder: RunFolder) -> tuple[str, float | None]:
    """A finished run's value of the sweep's metric, and the metric's name; None where it has none.

    Of a validation accuracy it is the best epoch's (of protocol A it is called test_as_val/acc, of B val/acc), of
    test/acc that of the one test, of other metrics the last.
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
    """The runs in the order of the sweep's metric, best first."""
    scores = [(*score(sweep, RunFolder(job.served_by or job.folder.path)), job) for job in jobs]
    known = [(name, value, job) for name, value, job in scores if value is not None]
    if len(known) < 2:
        return
    names = " and ".join(sorted({name for name, _, _ in known}))
    console.print(f"\n{names}, {'highest' if sweep.maximise else 'lowest'} first:", highlight=False)
    for name, value, job in sorted(known, key=lambda found: (-found[1] if sweep.maximise else found[1], found[2].name)):
        console.print(f"  {_in_words(name, value):>9}  {job.name}", soft_wrap=True, markup=False, highlight=False)


def _last_lines(path: Path, most: int = 12) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"no output: {error.strerror}"]
    return [line for line in lines if line.strip()][-most:]


def _put_aside(folder: Path) -> None:
    """Moves a run's folder to `.broken` beside it: nothing is thrown away."""
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
        """Makes one run; whatever goes wrong is the job's failure, and the others go on."""
        try:
            self._run(job)
        except (UserError, OSError) as error:
            job.state, job.error = "failed", str(error)

    def _run(self, job: _Job) -> None:
        if self.stopped:
            job.state = "stopped"
            return
        start = time.monotonic()
        if job.folder.path.exists():
            _require_free(job)  # somebody may have begun it since the plan was made
            if not job.folder.last.is_file() and job.folder.path.exists():
                _put_aside(job.folder.path)  # ended before its first epoch: there is nothing to resume
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
        job.seconds = time.monotonic() - start
        job.state = "finished" if status == 0 and job.folder.result.is_file() else "failed"
        if status == 0 and job.state == "failed":
            job.error = (
                f"it ended without an error, but {job.folder.path} holds no result, as after a fast_dev_run. Its "
                f"output is in {job.output}."
            )

    def stop(self) -> None:
        """Ends what is running; what has not begun does not begin."""
        self.stopped = True
        with self._lock:
            for process in self._processes:
                process.terminate()


def parser() -> PlainParser:
    """Of the command."""
    found = PlainParser(
        "sweep",
        "Runs a grid without a server: each run in a process and a folder of its own. Finished runs are skipped, "
        "unfinished ones are resumed, and a finished one in a folder beside serves where its settings are the same. "
        "Arguments after -- go to every run.",
    )
    found.add_argument("file", help="a W&B sweep file with method grid, by path or name, such as table4")
    found.add_argument("--runs", type=Path, help="folder of the runs; runs/NAME of the sweep where it is not given")
    found.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    found.add_argument(
        "--index",
        metavar="I or I/N",
        help="only run I, or every N-th from I, counted from 0: one array task of a cluster's job",
    )
    found.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    found.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="other values for a parameter, or one more parameter, such as seed_everything=1,2,3",
    )
    return found


PARSERS = {"sweep": parser}


def sweep(argv: list[str]) -> int:
    """Makes the runs of a grid."""
    overrides = argv[argv.index("--") + 1 :] if "--" in argv else []
    given = parser().parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    grid = replaced(read_sweep(configs.resolve(given.file, "sweeps")), given.grid)
    return run_sweep(grid, given.runs or Path("runs") / grid.name, given.jobs, overrides, given.dry_run, given.index)
