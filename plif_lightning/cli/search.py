"""Runs that Optuna asks for: a random or Bayesian search by W&B's sweep file."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout

from plif_lightning.cli.job import Job, job_of, run_name, score
from plif_lightning.cli.sweep_file import Sweep
from plif_lightning.errors import UserError
from plif_lightning.runs.run import read_run
from plif_lightning.runtime.files import file_lock
from plif_lightning.runtime.program import needed_by


def distribution(name: str, spec: dict[str, Any]) -> Any:
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
        f"parameter {name} must have `value`, `values`, or numbers `min` and `max` with the distribution uniform, "
        f"int_uniform, q_uniform or log_uniform_values, got {spec}."
    )


class Search:
    """A search in a folder, shared by any number of processes and continued by later calls.

    Args:
        sweep: with method random or bayes.
        root: folder of its runs and of Optuna's journal.
        overrides: arguments of main.py for all runs.
        cap: number of runs.
        seed: of the sampler; None draws a new one at each call.
    """

    def __init__(self, sweep: Sweep, root: Path, overrides: Sequence[str], cap: int, seed: int | None = None) -> None:
        with needed_by("a search"):
            import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        root.mkdir(parents=True, exist_ok=True)
        self.sweep, self.root, self.overrides, self.cap, self.seed = sweep, root, overrides, cap, seed
        self.space = {name: distribution(name, spec) for name, spec in sweep.parameters.items()}
        pruner: Any = optuna.pruners.NopPruner()
        if (early := sweep.early_terminate) is not None:
            min_epochs, max_epochs, eta = early.get("min_iter", 1), early.get("max_iter", "auto"), early.get("eta", 3)
            pruner = optuna.pruners.HyperbandPruner(min_epochs, max_epochs, eta)
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
        recorded = json.loads(json.dumps(described))
        if self.study.user_attrs.get("sweep", recorded) != recorded:
            raise UserError(
                f"{root} holds a search with another metric, other parameters or arguments: pass another --runs, or "
                "move that folder away."
            )
        self.study.set_user_attr("sweep", recorded)
        self._trials: dict[str, Any] = {}  # by the name of their run
        self._begun: list[Job] = []
        self._skipped: set[int] = set()  # trials that another process trains

    def jobs(self) -> Iterator[Job]:
        """The runs of trials, each held by a lock within the loop: trials left by killed processes, then new trials."""
        import optuna

        while True:
            with contextlib.ExitStack() as lock_stack:
                with file_lock(self.root / ".claim.lock"):
                    trials = self.study.get_trials(deepcopy=False)
                    running = {
                        trial_of_study.number for trial_of_study in trials if trial_of_study.state.name == "RUNNING"
                    } - self._skipped
                    left = next((number for number in sorted(running) if self._hold(lock_stack, number)), None)
                    if left is None and len(trials) >= self.cap:
                        return
                    self.study.sampler = self._sampler(len(trials) if left is None else left)
                    if left is None:
                        trial = self.study.ask(self.space)
                        self._hold(lock_stack, trial.number)
                    else:
                        trial = optuna.trial.Trial(self.study, trials[left]._trial_id)
                        for name, space in self.space.items():  # parameters not drawn by the killed process
                            trial._suggest(name, space)
                job = self._job(trial)
                self._trials[job.name] = trial
                self._begun.append(job)
                yield job

    def _sampler(self, number: int) -> Any:
        """The sampler of a trial: seeded by the trial's number, whichever process asks."""
        import optuna

        seed = None if self.seed is None else (self.seed * 10**6 + number) % 2**32
        if self.sweep.method == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _hold(self, lock_stack: contextlib.ExitStack, number: int) -> bool:
        """Hold a trial until `lock_stack` ends; False if another process or thread does."""
        try:
            lock_stack.enter_context(file_lock(self.root / f".{number:04d}.lock", blocking=False))
        except Timeout:
            return False
        return True

    def _job(self, trial: Any) -> Job:
        """The run of a trial."""
        point = {name: self._value(name, value) for name, value in trial.params.items()}
        free = {name: value for name, value in point.items() if "value" not in self.sweep.parameters[name]}
        short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in free.items()}
        return job_of(self.sweep, self.root, point, self.overrides, f"{trial.number:04d}_{run_name(short)}"[:100])

    def _value(self, name: str, value: Any) -> Any:
        return json.loads(value) if hasattr(self.space[name], "choices") else value

    def should_end(self, job: Job) -> bool:
        """Report the epochs that are new, and say if the pruner ends the run."""
        run, trial = read_run(job.folder.path), self._trials[job.name]
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        metric = run.val_key if self.sweep.metric in ("val/acc", "test_as_val/acc") else self.sweep.metric
        for epoch, value in zip(*run.curve(metric), strict=True):
            if int(epoch) not in reported and math.isfinite(value):
                trial.report(value, int(epoch))
                if trial.should_prune():
                    return run.epochs != run.setting("trainer.max_epochs")
        return False

    def record_end(self, job: Job) -> str:
        from optuna.trial import TrialState

        trial = self._trials[job.name]
        if job.state == "in use":
            self._skipped.add(trial.number)
            return ""
        value = score(self.sweep, job)
        if job.state == "finished" and value is None:
            job.state = "failed"  # without the sweep's metric
        state = {"ended": TrialState.PRUNED, "failed": TrialState.FAIL}.get(job.state)
        self.study.tell(trial, value, state=state)
        return f"[{trial.number + 1}/{self.cap}]"

    def every(self) -> list[Job]:
        """The runs of this call, and runs that earlier calls or other processes finished."""
        finished = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        earlier = [job for job in map(self._job, finished) if job.name not in self._trials]
        for job in earlier:
            job.state = "finished"
        return [*earlier, *self._begun]
