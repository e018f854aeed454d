"""Search the parameters of a W&B sweep file with method random or bayes, by Optuna, without a server."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from plif_lightning.cli.grid import Sweep, point_arguments, run_name
from plif_lightning.cli.runner import Job, Runner, last_lines, print_line, score, shown
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import value_in_words
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.searches import SearchRecord, ranked, write_search
from plif_lightning.runs.searches import Trial as RecordedTrial
from plif_lightning.runtime import program
from plif_lightning.runtime.console import Console
from plif_lightning.runtime.extras import needed_by
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.locks import file_lock

if TYPE_CHECKING:
    import optuna

# Optuna's journal of a search, in its folder. Several processes may append to it.
JOURNAL = "search.journal"
_NAME = "search"
_STATES = {"COMPLETE": "finished", "PRUNED": "ended", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
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


def distribution(key: str, spec: dict[str, Any]) -> Any:
    """Optuna's distribution for a parameter of W&B's file; a plain value if it is fixed.

    Raises:
        UserError: the specification has another form.

    >>> distribution("lr", {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"})
    FloatDistribution(high=0.1, log=True, low=0.001, step=None)
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = {"value", "values", "min", "max", "distribution", "q"}
    if unknown := sorted(spec.keys() - known):
        raise UserError(f"parameter {key} has {', '.join(unknown)}, which a search here does not know.")
    kind = spec.get("distribution")
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        if kind not in (None, "categorical") or not isinstance(spec["values"], list) or not spec["values"]:
            raise UserError(f"parameter {key} must have a list of `values`, got {spec}.")
        # Optuna's choices are numbers and texts; others go by their JSON.
        return CategoricalDistribution([json.dumps(value) for value in spec["values"]])
    low: Any = spec.get("min")
    high: Any = spec.get("max")
    if not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in (low, high)) or not low < high:
        raise UserError(f"parameter {key} must have `value`, `values`, or numbers `min` below `max`, got {spec}.")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = kind or ("int_uniform" if whole else "uniform")
    if "log" in kind and low <= 0:
        raise UserError(f"parameter {key} has {kind}, which needs `min` above 0, got {low}.")
    if kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "q_uniform":
        return FloatDistribution(low, high, step=spec.get("q", 1))
    if kind == "log_uniform_values":
        return FloatDistribution(low, high, log=True)
    raise UserError(
        f"parameter {key} has the distribution {kind}; known are categorical, int_uniform, uniform, q_uniform and "
        "log_uniform_values."
    )


def _pruner(sweep: Sweep) -> Any:
    """W&B's hyperband as Optuna's successive halving, which looks at the same epochs; none without it."""
    optuna = _optuna()
    given = sweep.early_terminate
    if given is None:
        return optuna.pruners.NopPruner()
    known = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
    if not isinstance(given, dict) or given.get("type") != "hyperband" or given.keys() - known:
        raise UserError(f"early_terminate must be of type hyperband, with {', '.join(sorted(known))}; got {given}.")
    eta = given.get("eta", 3)
    first = given.get("min_iter") or (given["max_iter"] // eta ** given.get("s", 1) if "max_iter" in given else None)
    if not isinstance(eta, int) or eta < 2 or not isinstance(first, int) or first < 1:
        raise UserError(f"early_terminate needs min_iter, or max_iter and s, and eta of at least 2; got {given}.")
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=eta)


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
        sampler = optuna.samplers.RandomSampler(seed)
        if sweep.method == "bayes":
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(root / JOURNAL)))
        self.study: Any = optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=_pruner(sweep),
            study_name=_NAME,
            direction="maximize" if sweep.maximise else "minimize",
            load_if_exists=True,
        )
        plan = json.dumps([sweep.arguments, sweep.space, sweep.metric, self.overrides], sort_keys=True, default=str)
        before = self.study.user_attrs.get("plan", plan)
        if before != plan:
            raise UserError(f"{root} holds another search: pass another --runs, or move that folder away.")
        self.study.set_user_attr("plan", plan)
        self._importance: dict[str, float] = {}

    def claimed(self, cap: int) -> Iterator["optuna.trial.Trial"]:
        """Trials to run, each held by a lock within the loop: those that other processes left, then new ones."""
        from optuna.trial import Trial, TrialState

        while True:
            with contextlib.ExitStack() as held:
                with file_lock(self.root / ".claim.lock"):
                    trials = self.study.get_trials(deepcopy=False)
                    trial = None
                    for old in trials:
                        if old.state == TrialState.RUNNING and self._hold(held, old.number):
                            trial = Trial(self.study, old._trial_id)
                            break
                    if trial is None:
                        if len(trials) >= cap:  # failed ones count, too: a search of mistakes ends
                            return
                        trial = self.study.ask(self.free)
                        self._hold(held, trial.number)
                yield trial

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
        name = f"{trial.number:04d}_{run_name(short)}"[:_LONGEST]
        arguments = point_arguments(self.sweep, point, self.overrides)
        return Job(name, RunFolder(self.root / name), arguments, self.root / f"{name}.log")

    def should_end(self, trial: Any, job: Job) -> bool:
        """Report the epochs that are new, and say if the run should end early."""
        run = read_run(job.folder.path)
        name = run.val_key if self.sweep.metric in ("val/acc", "test_as_val/acc") else self.sweep.metric
        epochs, values = run.curve(name)
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for epoch, value in zip(epochs, values, strict=True):
            if int(epoch) + 1 not in known:
                trial.report(value, int(epoch) + 1)
                if trial.should_prune():
                    return True
        return False

    def tell(self, trial: Any, job: Job) -> float | None:
        """Record the result of a run; None if it has none."""
        from optuna.trial import TrialState

        if job.state == "stopped":
            return None  # it is resumed with the search
        if job.state == "ended":
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        _, value = score(self.sweep, job.folder) if job.state == "finished" else ("", None)
        self.study.tell(trial, value, state=None if value is not None else TrialState.FAIL)
        return value

    def write(self, last: bool = False) -> SearchRecord:
        """Write what the search has found so far, in all processes that share it, beside the runs, and return it."""
        with file_lock(self.root / ".claim.lock"):
            found = self._record(last)
            write_search(self.root, found)
        return found

    def _record(self, last: bool) -> SearchRecord:
        known = self.study.get_trials(deepcopy=False)
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
        dry_run: print the first commands and run nothing.
        cap: number of runs; None for the file's `run_cap`.
        seed: of the sampler.

    Returns:
        Exit status: 1 if a run failed, 130 if the search was interrupted.
    """
    cap = cap or sweep.run_cap
    if cap is None:
        raise UserError("a search has no end by itself: pass --cap, or give the sweep file a run_cap.")
    root = root.absolute()
    console = Console()
    if dry_run:
        for key, spec in sweep.space.items():
            print_line(console, f"{key}: {distribution(key, spec)}")
        return 0
    root.mkdir(parents=True, exist_ok=True)
    search = Search(sweep, root, overrides, seed)
    console.print(f"[bold]{sweep.name}[/]: {cap} runs by {sweep.method} search in {relative(root)}", soft_wrap=True)
    failed = _run_all(console, search, cap, jobs)
    if failed is None:
        console.print("interrupted: the same command continues the search.")
        return 130
    print_ranking(console, search)
    return 1 if failed else 0


def _run_all(console: Console, search: Search, cap: int, jobs: int) -> int | None:
    """Run trials in `jobs` threads until there are `cap`: the number of failed ones, or None if interrupted."""
    failed = 0

    def work() -> int:
        bad = 0
        for trial in search.claimed(cap):
            job = search.job(trial)
            runner.run(job, partial(search.should_end, trial))
            value = search.tell(trial, job)
            _print_end(console, search.write(), job, value)
            bad += job.state == "failed"
            if runner.stopped:
                break
        return bad

    with Runner(jobs, warm=True) as runner, ThreadPoolExecutor(jobs) as pool:
        calls = [pool.submit(work) for _ in range(jobs)]
        try:
            for call in calls:
                failed += call.result()
        except KeyboardInterrupt:
            runner.stop()
            return None
    return failed


def _print_end(console: Console, found: SearchRecord, job: Job, value: float | None) -> None:
    """Print the result of a run, its rank so far, and the best one."""
    text = f"{job.name} {job.state} after {job.seconds:.0f} s"
    if value is not None:
        (best, highest), *_ = found.ranking
        rank = [trial.run for trial, _ in found.ranking].index(job.name) + 1
        text += f": {value_in_words(found.metric, value)}, rank {rank} of {len(found.ranking)}"
        if rank > 1:
            text += f" (best {value_in_words(found.metric, highest)}: {best.run})"
    print_line(console, text, "red" if job.state == "failed" else "")
    if job.state == "failed":
        for line in [job.error] if job.error else last_lines(job.output):
            print_line(console, f"  {line}")


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

    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with contextlib.suppress(ValueError, RuntimeError, ImportError):
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {}
