"""Log runs to Weights & Biases in addition to the run folder.

Its package is imported on use, because it would add a third of a second to every start.
"""

import os
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.record import read_record
from plif_lightning.runtime.program import needed_by


class WandbRunLogger(WandbLogger):
    """Logs a run to Weights & Biases; a resumed run continues its W&B run.

    Args:
        project: of the run; ignored in a sweep, which sets it.
        name: of the run; by default W&B generates one.
        group: of related runs; by default WANDB_RUN_GROUP.
        tags: of the run; by default WANDB_TAGS.
        entity: user or team; by default that of the login.
        offline: log to this machine only, for `wandb sync` later, as WANDB_MODE=offline does.
        checkpoints: upload best.ckpt as an artifact when the run ends.
        preemptible: a W&B sweep requeues the run if its process dies or fails.
    """

    def __init__(
        self,
        project: str = "plif_lightning",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        offline: bool = False,
        checkpoints: bool = False,
        preemptible: bool = False,
    ) -> None:
        super().__init__(
            name=name,
            offline=offline,
            project=project,
            group=group,
            tags=tags,
            entity=entity,
            resume="allow",
        )
        self._wandb_init.pop("anonymous", None)  # deprecated: has no effect but a warning
        if "WANDB_SWEEP_ID" in os.environ:
            self._wandb_init["project"] = None  # W&B would ignore it with a warning
        self._uploads, self._preemptible = checkpoints, preemptible
        self._folder: RunFolder | None = None

    def set_run_folder(self, folder: RunFolder) -> None:
        """Log the run of a folder, with W&B's files in it; continue its W&B run, if any."""
        self._folder, self._save_dir = folder, os.fspath(folder.path)
        self._wandb_init["dir"] = self._save_dir
        run_id = read_record(folder).wandb
        if run_id is not None:
            self._id = self._wandb_init["id"] = run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            with needed_by("a record in Weights & Biases"):
                import wandb

            try:
                run = super().experiment
                if self._preemptible:
                    run.mark_preempting()
                return run
            except (wandb.errors.UsageError, wandb.errors.AuthenticationError, wandb.errors.CommError) as error:
                raise UserError(
                    f"Weights & Biases cannot be used: {' '.join(str(error).split()).rstrip('.')}. Run `wandb login`, "
                    "or set WANDB_MODE=offline to keep the record on this machine, or leave out variants/wandb.yaml."
                ) from error
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        # A sweep locks its settings, and W&B warns if they are set again, even to the same values.
        logged = dict(self.experiment.config)
        super().log_hyperparams({k: v for k, v in params.items() if k not in logged or logged[k] != v})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status == "success" and self._uploads and self._folder is not None and self._folder.best.is_file():
            self.experiment.log_artifact(self._folder.best, name=f"model-{self.experiment.id}", type="model")
            self._uploads = False  # once
        super().finalize(status)
