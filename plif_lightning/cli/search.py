"""Search the parameters of a W&B sweep file with method random or bayes, by Optuna, without a server."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from rich.console import Console

from plif_lightning.cli.arguments import joined
from plif_lightning.cli.grid import Sweep, point_arguments, require_no_conflict, run_name
from plif_lightning.cli.planned import Watched, require_unedited
from plif_lightning.cli.runner import Job, Runner, metric_name, print_job, print_line, score, shown
from plif_lightning.errors import UserError, require_count
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import value_in_words
from plif_lightning.runs.process import in_use
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.searches import SearchRecord, ranked, write_search
from plif_lightning.runs.searches import Trial as RecordedTrial
from plif_lightning.runtime import program
from plif_lightning.runtime.files import file_lock, is_about_locks, relative
from plif_lightning.runtime.program import needed_by

if TYPE_CHECKING:
    import optuna

# Optuna's journal of a search, in its folder. Several processes may append to it.
JOURNAL = "search.journal"
_NAME = "search"
# Names of the parts of a plan, which the journal holds as a list.
_PLAN = ("arguments", "parameters", "metric", "arguments", "goal", "method", "early termination")
# Attributes with which Optuna's pruner keeps what it has looked at.
_RUNG = "completed_rung_"
# Attribute of a trial: the number of the trial whose run it tries once more.
_RUN = "run"
_STATES = {"COMPLETE": "finished", "PRUNED": "ended", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
# Largest number of a distribution: beyond it floats do not tell whole numbers apart.
_LARGEST = 2**53
# Fewest runs whose parameters have an importance.
_FEWEST = 4
# How often a run that another process trains is looked at [s].
_INTERVAL = 2.0
# Longest name of a run's folder.
_LONGEST = 100


def _optuna() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    with needed_by("a search"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _changed(before: str, now: str) -> list[str]:
    """Names of the parts in which a plan from a journal differs from the present one.

    Raises:
        ValueError, TypeError, AttributeError: the former is no plan.
    """
    parts = zip(_PLAN, json.loads(before), json.loads(now), strict=True)
    # Older versions stored arguments as they were given.
    compared = ((name, joined(old) if name == "arguments" else old, new) for name, old, new in parts)
    return list(dict.fromkeys(name for name, old, new in compared if old != new))


def distribution(key: str, spec: dict[str, Any]) -> Any:
    """Optuna's distribution for a parameter of W&B's file; a plain value if it is fixed.

    Raises:
        UserError: the specification has another form.

    >>> distribution("lr", {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"})
    FloatDistribution(high=0.1, log=True, low=0.001, step=None)
    """
    distributions = _optuna().distributions
    known = {"value", "values", "min", "max", "distribution", "q"}
    if unknown := sorted(map(str, spec.keys() - known)):
        raise UserError(f"parameter {key} has {', '.join(unknown)}, which a search here does not know.")
    kinds = [name for name in ("value", "values", "min") if name in spec]
    if len(kinds) != 1 or ("max" in spec) != ("min" in spec):
        raise UserError(f"parameter {key} must have one of `value`, `values`, or `min` and `max`, got {spec}.")
    kind = spec.get("distribution")
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        if kind not in (None, "categorical") or not isinstance(spec["values"], list) or not spec["values"]:
            raise UserError(f"parameter {key} must have a list of `values`, got {spec}.")
        try:
            # Optuna's choices are numbers and texts; others go by their JSON.
            return distributions.CategoricalDistribution([json.dumps(value) for value in spec["values"]])
        except TypeError as error:
            raise UserError(f"parameter {key} has a value that is no number, text, list or mapping: {error}.") from None
    low, high = (_number(key, spec, side) for side in ("min", "max"))
    whole = isinstance(low, int) and isinstance(high, int)
    kind = kind or ("int_uniform" if whole else "uniform")
    if not low < high or kind not in _KINDS:
        known_kinds = ", ".join(sorted({*_KINDS, "categorical"}))
        raise UserError(
            f"parameter {key} must have numbers `min` below `max`, and a distribution of {known_kinds}; got {spec}."
        )
    if "q" in spec and kind != "q_uniform":
        raise UserError(f"parameter {key} has a q, which only the distribution q_uniform uses, got {spec}.")
    if kind == "int_uniform":
        if not whole:
            raise UserError(f"parameter {key} has int_uniform, which needs whole numbers, got {spec}.")
        return distributions.IntDistribution(int(low), int(high))
    if kind == "log_uniform_values":
        if low <= 0:
            raise UserError(f"parameter {key} has {kind}, which needs `min` above 0, got {low}.")
        return distributions.FloatDistribution(low, high, log=True)
    if kind == "q_uniform":
        return _steps(key, low, high, _number(key, {"q": 1, **spec}, "q"))
    return distributions.FloatDistribution(low, high)


_KINDS = ("int_uniform", "uniform", "q_uniform", "log_uniform_values")


def _number(key: str, spec: dict[str, Any], name: str) -> int | float:
    value = spec[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > _LARGEST:
        hint = ""
        with contextlib.suppress(ValueError):
            if isinstance(value, str) and math.isfinite(float(value)):
                number = repr(float(value))  # a text for YAML 1.1, if it has an exponent and no point
                hint = f", which YAML reads as a text: write {number if '.' in number else number.replace('e', '.0e')}"
        raise UserError(f"{name} of parameter {key} must be a number, got {value!r}{hint}.")
    return value


def _steps(key: str, low: float, high: float, q: float) -> Any:
    """The multiples of q between two numbers, which W&B's q_uniform gives; whole if all three are."""
    # As written: in binary 0.3 / 0.1 is less than 3.
    least, most, step = (Decimal(repr(number)) for number in (low, high, q))
    if q <= 0 or (last := math.floor(most / step)) < (first := math.ceil(least / step)):
        raise UserError(f"parameter {key} has no multiple of q = {q:g} between {low:g} and {high:g}.")
    distributions = _optuna().distributions
    if all(isinstance(number, int) for number in (low, high, q)):
        return distributions.IntDistribution(int(first * q), int(last * q), step=int(q))
    return distributions.FloatDistribution(float(first * step), float(last * step), step=q)


def _pruner(sweep: Sweep) -> Any:
    """W&B's hyperband as Optuna's successive halving, which first looks at the same epoch; none without it.

    W&B's rungs are min_iter, min_iter eta, ..., or max_iter / eta^s, ..., max_iter / eta. Optuna has those above, too;
    a run that has trained its last epoch, by max_epochs or max_steps, is never ended.
    """
    optuna = _optuna()
    given = sweep.early_terminate
    if given is None:
        return optuna.pruners.NopPruner()
    if sweep.metric.startswith("test/"):
        raise UserError(
            f"early_terminate needs a metric of every epoch, such as val/acc: {sweep.metric} is measured once."
        )
    known = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
    if not isinstance(given, dict) or given.get("type") != "hyperband" or set(map(str, given)) - known:
        raise UserError(f"early_terminate must be of type hyperband, with {', '.join(sorted(known))}; got {given}.")
    if given.get("strict"):
        raise UserError("early_terminate has strict: true, which a search here does not know.")
    numbers = {name: given[name] for name in ("min_iter", "max_iter", "s", "eta") if name in given}
    wrong = [name for name, value in numbers.items() if not isinstance(value, int) or isinstance(value, bool)]
    eta = numbers.get("eta", 3)
    if wrong or eta < 2 or min(numbers.values(), default=1) < 1 or not {"min_iter", "max_iter"} & numbers.keys():
        raise UserError(
            "early_terminate needs min_iter, or max_iter and s, as whole numbers above 0, and eta of at least 2; "
            f"got {given}."
        )
    first = numbers.get("min_iter") or max(1, numbers["max_iter"] // eta ** numbers.get("s", 1))
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=eta)


def _run_of(trial: Any) -> int:
    """The number of a trial's run: its own, but of one that is tried once more that of the first try."""
    return int(trial.user_attrs.get(_RUN, trial.number))


def _is_whole(journal: Path) -> bool:
    """True if a journal ends with a line; another process may be writing one for a moment."""
    for _ in range(10):
        if journal.read_bytes()[-1:] in (b"", b"\n"):
            return True
        time.sleep(0.1)
    return False


class Search:
    """A search in a folder, which other processes may share and continue.

    Args:
        sweep: with method random or bayes.
        root: folder of its runs.
        overrides: arguments of main.py for all runs.
        seed: of the sampler.

    Raises:
        UserError: the folder holds another search, or a parameter has an unknown form.
    """

    def __init__(self, sweep: Sweep, root: Path, overrides: Sequence[str], seed: int | None = None) -> None:
        optuna = _optuna()
        self.sweep, self.root, self.overrides = sweep, root, list(overrides)
        self.space = {key: distribution(key, spec) for key, spec in sweep.space.items()}
        self.free = {
            key: one for key, one in self.space.items() if isinstance(one, optuna.distributions.BaseDistribution)
        }
        if not self.free:
            raise UserError(f"{sweep.name} has no parameter to search: give one `values`, or `min` and `max`.")
        self._seed = seed
        self._require_locks()
        pruner = _pruner(sweep)
        plan = json.dumps(
            (
                *(joined(sweep.arguments), sweep.space, sweep.metric, joined(self.overrides)),
                *(sweep.maximise, sweep.method, sweep.early_terminate),
            ),
            sort_keys=True,
            default=str,
        )
        journal = root / JOURNAL
        try:
            if journal.is_file() and not _is_whole(journal):
                raise ValueError("its last line is incomplete")
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
            self.study: Any = optuna.create_study(
                storage=storage,
                pruner=pruner,
                study_name=_NAME,
                direction="maximize" if sweep.maximise else "minimize",
                load_if_exists=True,
            )
            changed = _changed(self.study.user_attrs.get("plan", plan), plan)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:  # half a line, another file
            raise UserError(
                f"{journal} is damaged ({' '.join(str(error).split())[:100]}). If its last line is incomplete, delete "
                "that line; otherwise pass another --runs."
            ) from error
        if changed:
            raise UserError(
                f"{root} holds another search, with other {' and '.join(changed)}: pass another --runs, or move that "
                "folder away."
            )
        self.study.set_user_attr("plan", plan)
        self._importance: dict[str, float] = {}
        jobs = (self.job(trial) for trial in self._drawn())
        require_unedited((job, read_run(job.folder.path)) for job in jobs if job.folder.config.is_file())
        self._queue_failed()

    def _drawn(self) -> list[Any]:
        """The last trial of each run, without runs that wait to be tried once more: these have no parameters yet.

        A try whose process was killed while it drew its parameters was none.
        """
        trials = self.study.get_trials(deepcopy=False)
        latest = {_run_of(one): one for one in trials if one.state.name == "WAITING" or self._is_drawn(one)}
        return [trial for trial in latest.values() if self._is_drawn(trial)]

    def _is_drawn(self, trial: Any) -> bool:
        return self.free.keys() <= trial.params.keys()

    def _queue_failed(self) -> None:
        """Let the runs that have failed so far be tried once more, from their checkpoints, as those of a grid are."""
        with file_lock(self.root / ".claim.lock"):
            for trial in self._drawn():
                if trial.state.name == "FAIL":
                    self.study.enqueue_trial(trial.params, user_attrs={_RUN: _run_of(trial)})

    def _require_locks(self) -> None:
        try:
            with file_lock(self.root / ".claim.lock"):
                pass
        except (OSError, NotImplementedError) as error:
            if not is_about_locks(error):
                raise
            raise UserError(
                f"{self.root} is on storage without locks, which a search needs: pass --runs with another folder."
            ) from error

    def _sampler(self, number: int) -> Any:
        """The sampler of a trial: with a seed, of every trial another one, whichever process asks."""
        samplers = _optuna().samplers
        seed = None if self._seed is None else hash((self._seed, number)) % 2**32
        if self.sweep.method == "bayes":
            return samplers.TPESampler(seed=seed, constant_liar=True)
        return samplers.RandomSampler(seed)

    def claimed(self, cap: int) -> Iterator["optuna.trial.Trial"]:
        """Trials to run, each held by a lock within the loop: left by other processes, failed before, then new ones."""
        from optuna.trial import Trial, TrialState

        while True:
            with contextlib.ExitStack() as held:
                with file_lock(self.root / ".claim.lock"):
                    known = self.study.get_trials(deepcopy=False)
                    trials = self._without_half_drawn(known)
                    trial = None
                    for old in trials:
                        if old.state == TrialState.RUNNING and self._hold(held, old.number):
                            trial = Trial(self.study, old._trial_id)
                            break
                    if trial is None:
                        waiting = any(old.state == TrialState.WAITING for old in trials)
                        # Failed ones count, too: a search of mistakes ends.
                        if self._reached(trials) or (not waiting and len({*map(_run_of, trials)}) >= cap):
                            return
                        self.study.sampler = self._sampler(len(known))
                        trial = self.study.ask(self.free)
                        self._hold(held, trial.number)
                        self._take_over(trial, known)
                yield trial

    def _without_half_drawn(self, trials: Sequence[Any]) -> list[Any]:
        """Leave out trials whose process was killed while it drew their parameters, and record that they failed."""
        found = []
        for trial in trials:
            if trial.state.name == "WAITING" or self._is_drawn(trial):
                found.append(trial)
            elif trial.state.name == "RUNNING":
                self.study.tell(trial.number, state=_optuna().trial.TrialState.FAIL)
        return found

    def _take_over(self, trial: Any, trials: Sequence[Any]) -> None:
        """Give a run that is tried once more the reported epochs and the pruner's state of the try before."""
        before = [one for one in trials[: trial.number] if _run_of(one) == _run_of(trial)]
        if not before:
            return
        for epoch, value in before[-1].intermediate_values.items():
            trial.report(value, epoch)
        for name, value in before[-1].system_attrs.items():
            if name.startswith(_RUNG):
                trial.storage.set_trial_system_attr(trial._trial_id, name, value)

    def _reached(self, trials: Sequence[Any]) -> bool:
        """True if a run has reached the metric's target, where the file has one."""
        target, values = self.sweep.target, [one.value for one in trials if one.state.name == "COMPLETE"]
        if target is None or not values:
            return False
        return bool(max(values) >= target if self.sweep.maximise else min(values) <= target)

    def _hold(self, held: contextlib.ExitStack, number: int) -> bool:
        """Hold a trial until `held` ends; False if another process or thread does."""
        lock = file_lock(self.root / f".{number:04d}.lock", blocking=False)
        try:
            held.enter_context(lock)
        except Timeout:
            return False
        return True

    def job(self, trial: Any) -> Job:
        """The run of a trial."""
        point = {key: self.value(trial, key) if key in self.free else one for key, one in self.space.items()}
        short = {key: f"{point[key]:.4g}" if isinstance(point[key], float) else point[key] for key in self.free}
        name = f"{_run_of(trial):04d}_{run_name(short)}"[:_LONGEST]
        arguments = point_arguments(self.sweep, point, self.overrides)
        return Job(name, RunFolder(self.root / name), arguments, self.root / f"{name}.log")

    def is_done(self, job: Job, stopped: Callable[[], bool]) -> bool:
        """Wait for a run that outlived the search that started it, and say if it has finished."""
        while in_use(job.folder) and not stopped():
            time.sleep(_INTERVAL)
        return job.folder.path.is_dir() and read_run(job.folder.path).status == "finished"

    def should_end(self, trial: Any, job: Job) -> bool:
        """Report the epochs that are new, and say if the run should end early; the search records that it does."""
        from optuna.trial import TrialState

        run = read_run(job.folder.path)
        if run.status == "finished":
            return False
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for epoch, value in zip(*run.curve(metric_name(self.sweep, run)), strict=True):
            if int(epoch) not in known and int(epoch) <= run.whole_epochs and math.isfinite(value):
                trial.report(value, int(epoch))
                if trial.should_prune() and not run.is_trained:
                    self.study.tell(trial, state=TrialState.PRUNED)  # now: it stays so if the search is killed
                    return True
        return False

    def tell(self, trial: Any, job: Job) -> float | None:
        """Record the result of a run; None if it has none."""
        from optuna.trial import TrialState

        if job.state == "stopped":
            return None  # it is resumed with the search
        if job.state == "ended":
            return None  # as `should_end` has recorded
        name, value = score(self.sweep, job.folder) if job.state == "finished" else ("", None)
        if job.state == "finished" and value is None:
            job.state, job.error = "failed", f"it has no {name}, the sweep's metric."
        self.study.tell(trial, value, state=None if value is not None else TrialState.FAIL)
        return value

    def failed(self) -> list[Job]:
        """The runs that failed, in all processes that share the search."""
        return [self.job(trial) for trial in self._drawn() if trial.state.name == "FAIL"]

    def arguments(self) -> list[list[str]]:
        """Those of a run for each configuration that the search tries."""
        spec = self.sweep.space.get("config", {})
        values = spec.get("values", [spec["value"]] if "value" in spec else [])
        points = [{"config": value} for value in values] or [{}]
        return [point_arguments(self.sweep, point, self.overrides) for point in points]

    def write(self, last: bool = False) -> SearchRecord:
        """Write what the search has found so far, in all processes that share it, beside the runs, and return it."""
        with file_lock(self.root / ".claim.lock"):
            found = self._record(last)
            write_search(self.root, found)
        return found

    def _record(self, last: bool) -> SearchRecord:
        known = self._drawn()
        done = [one for one in known if one.state.name == "COMPLETE"]
        if last or len(done) % max(1, len(known) // 10) == 0:  # it takes a second, too long after each of many runs
            self._importance = importances(self.study)
        trials = ranked([self._told(one) for one in known], self.sweep.maximise)
        best = next((one for one in done if self.job(one).name == trials[0].run), None)
        return SearchRecord(
            self.sweep.name,
            self.sweep.method,
            self.sweep.metric,
            self.sweep.maximise,
            trials,
            [key for key, one in self.free.items() if getattr(one, "log", False)],
            self._importance,
            shown([*program.command(), *self.job(best).arguments]) if best is not None else "",
        )

    def _told(self, trial: Any) -> RecordedTrial:
        values = {key: self.value(trial, key) for key in self.free if key in trial.params}
        done = trial.state.name == "COMPLETE"
        return RecordedTrial(self.job(trial).name, _STATES[trial.state.name], trial.value if done else None, values)

    def value(self, trial: Any, key: str) -> Any:
        """A searched value as the run takes it."""
        value = trial.params[key]
        return json.loads(value) if hasattr(self.free[key], "choices") else value


def run_search(
    sweep: Sweep,
    root: Path,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    cap: int | None = None,
    seed: int | None = None,
) -> int:
    """Run a search to its number of runs, and print its ranking and the importance of its parameters.

    Args:
        sweep: with method random or bayes.
        root: folder of all its runs and of the journal, which other processes may share.
        jobs: number of concurrent processes, each with an equal share of the cores.
        overrides: arguments of main.py for all runs.
        dry_run: print the parameters' distributions and run nothing.
        cap: number of runs; None for the file's `run_cap`.
        seed: of the sampler.

    Returns:
        Exit status: 1 if a run failed, 130 if the search was interrupted.
    """
    cap = sweep.run_cap if cap is None else cap
    if cap is None:
        raise UserError("a search has no end by itself: pass --cap, or give the sweep file a run_cap.")
    for option, number in (("cap", cap), ("jobs", jobs)):
        require_count(f"--{option}", number)
    require_no_conflict(sweep, overrides)
    root = root.absolute()
    console = Console()
    if dry_run:
        _pruner(sweep)
        for key, spec in sweep.space.items():
            print_line(console, f"{key}: {distribution(key, spec)}")
        return 0
    root.mkdir(parents=True, exist_ok=True)
    search = Search(sweep, root, overrides, seed)
    console.print(f"[bold]{sweep.name}[/]: {cap} runs by {sweep.method} search in {relative(root)}", soft_wrap=True)
    watched = Watched(search.arguments())
    if not _run_all(console, search, cap, jobs):
        console.print("interrupted: the same command continues the search.")
        return 130
    if warning := watched.warning():
        print_line(console, warning)
    print_ranking(console, search)
    failed = search.failed()
    for job in failed:
        print_line(console, f"failed: {job.name}  output: {relative(job.output)}")
    if failed:
        print_line(console, "The same command tries failed runs again.")
    return 1 if failed else 0


def _run_all(console: Console, search: Search, cap: int, jobs: int) -> bool:
    """Run trials in `jobs` threads until there are `cap`, and return False if interrupted."""

    def work() -> None:
        for trial in search.claimed(cap):
            job = search.job(trial)
            if search.is_done(job, lambda: runner.stopped):
                job.state = "finished"
            else:
                runner.run(job, partial(search.should_end, trial))
            value = search.tell(trial, job)
            _print_end(console, search.write(), job, value)
            if runner.stopped:
                break

    with Runner(jobs, warm=True) as runner, ThreadPoolExecutor(jobs) as pool:
        calls = [pool.submit(work) for _ in range(jobs)]
        try:
            for call in calls:
                call.result()
        except KeyboardInterrupt:
            runner.stop()
            return False
    return True


def _print_end(console: Console, found: SearchRecord, job: Job, value: float | None) -> None:
    """Print the result of a run, its rank so far, and the best one."""
    text = f"{job.name} {job.state} after {job.seconds:.0f} s"
    if value is not None:
        (best, highest), *_ = found.ranking
        rank = [trial.run for trial, _ in found.ranking].index(job.name) + 1
        text += f": {value_in_words(found.metric, value)}, rank {rank} of {len(found.ranking)}"
        if rank > 1:
            text += f" (best {value_in_words(found.metric, highest)}: {best.run})"
    print_job(console, job, text)


def print_ranking(console: Console, search: Search) -> None:
    """Print the runs, best first, what each parameter matters, and the best run's command."""
    found = search.write(last=True)
    if not found.ranking:
        return
    console.print(f"\n{found.metric}, {'highest' if found.maximise else 'lowest'} first:", highlight=False)
    for trial, value in found.ranking:
        print_line(console, f"  {value_in_words(found.metric, value):>9}  {trial.run}")
    if found.importance:
        shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in found.importance.items())
        print_line(console, f"what matters (fANOVA over {len(found.ranking)} runs): {shares}")
    print_line(console, f"best: {found.command}")


def importances(study: "optuna.Study") -> dict[str, float]:
    """Share of the metric's variance that each parameter explains; empty for few runs, or equal ones."""
    import optuna

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < _FEWEST:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with contextlib.suppress(ValueError, RuntimeError, ImportError):
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {}
