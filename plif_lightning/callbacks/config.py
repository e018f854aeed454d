"""Save a run's configuration in its folder, its checkpoints and other loggers."""

from numbers import Number
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch.cli import SaveConfigCallback

from plif_lightning.callbacks.logger import RunLogger, is_fast_dev_run, run_folder, writes_files
from plif_lightning.data import SpikingDataModule
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.identity import Identity
from plif_lightning.runtime.files import atomic_write

# For StochasticWeightAveraging, as its device would otherwise be dumped as an error text.
register_type(torch.device, str)
# Of torchvision's arguments, such as degrees: jsonargparse has no form for a number of either kind.
register_type(Number, lambda value: value, float)


class SaveConfig(SaveConfigCallback):
    """Writes the full configuration into the run's folder, every checkpoint, and other loggers.

    A resumed run keeps its file until training starts, because restoring the checkpoint may fail.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        # How a run was resumed is not part of its configuration.
        config = self.config.clone()
        config.ckpt_path = config.run_folder = None
        self.text = self.parser.dump(config, skip_none=False, format="yaml")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if not folder.config.is_file() and not is_fast_dev_run(trainer):
            self._write(folder)
        for logger in trainer.loggers:
            if not isinstance(logger, RunLogger):
                logger.log_hyperparams(yaml.safe_load(self.text))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if writes_files(trainer):
            self._write(run_folder(trainer))

    def _write(self, folder: RunFolder) -> None:
        with atomic_write(folder.config) as file:
            file.write(self.text)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["cli_config"] = self.text
        checkpoint["settings"] = Identity.of(yaml.safe_load(self.text)).settings
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint |= {"training_set": data.identity(), "reading": data.reading()}
