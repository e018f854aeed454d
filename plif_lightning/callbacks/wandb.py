"""Log runs to Weights & Biases in addition to their own files.

Its package is imported on use, because it would add a third of a second to every start.
"""

import json
import os
from typing import Any, Literal

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from plif_lightning.callbacks.logger import run_folder, writes_files
from plif_lightning.errors import UserError
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.wandb import read_identity, write_identity
from plif_lightning.runtime.program import needed_by


class WandbRunLogger(WandbLogger):
    """Logs a run to Weights & Biases; a resumed run continues its W&B run.

    Args:
        project: of the run; ignored in a sweep, which has its own.
        name: of the run; by default W&B generates one.
        group: of related runs; by default WANDB_RUN_GROUP.
        tags: of the run; by default WANDB_TAGS.
        entity: user or team; by default that of the login.
        offline: log to this machine only, for `wandb sync` later, as WANDB_MODE=offline does.
        save_dir: folder for W&B's own files.
        checkpoints: upload checkpoints as artifacts: false, best (when the run ends) or all (each when written).
    """

    def __init__(
        self,
        project: str = "plif_lightning",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        offline: bool = False,
        save_dir: str = "runs",
        checkpoints: Literal[False, "best", "all"] = False,
    ) -> None:
        super().__init__(
            name=name,
            save_dir=save_dir,
            offline=offline,
            project=project,
            log_model="all" if checkpoints == "all" else checkpoints == "best",
            group=group,
            tags=tags,
            entity=entity,
            resume="allow",
        )
        self._wandb_init.pop("anonymous", None)  # deprecated: has no effect but a warning
        if "WANDB_SWEEP_ID" in os.environ:
            self._wandb_init["project"] = None  # W&B would ignore it with a warning

    def resume(self, folder: RunFolder) -> None:
        """Continue the W&B run of the run in a folder, if it has one."""
        known = read_identity(folder)
        if known is not None:
            self._id = self._wandb_init["id"] = known

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            with needed_by("a record in Weights & Biases"):
                import wandb

            try:
                return super().experiment
            except (wandb.errors.UsageError, wandb.errors.AuthenticationError, wandb.errors.CommError) as error:
                raise UserError(
                    f"Weights & Biases cannot be used: {' '.join(str(error).split()).rstrip('.')}. Run `wandb login`, "
                    "or set WANDB_MODE=offline to keep the record on this machine, or leave out variants/wandb.yaml."
                ) from error
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        # A sweep locks its settings, and W&B warns if they are set again, even to the same values.
        known = dict(self.experiment.config)
        super().log_hyperparams({k: v for k, v in params.items() if k not in known or known[k] != v})


class WandbRecord(Callback):
    """Writes the id of the W&B run into the run's folder, and facts of the data and the result into W&B's."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        for run in self._runs(trainer):
            write_identity(folder, run)
            if folder.data.is_file():
                run.config.update({"facts": json.loads(folder.data.read_text("utf-8"))}, allow_val_change=True)

    def _runs(self, trainer: L.Trainer) -> list[Any]:
        if not writes_files(trainer):
            return []
        return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbRunLogger)]
