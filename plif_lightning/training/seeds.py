"""Random numbers of steps: dropout, pool ties and Poisson input depend on seed and position alone."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from plif_lightning.runtime.randomness import fold_in, run_seed


class StepSeeds(Callback):
    """Seeds each step by its epoch, batch and process, so a run resumed from any checkpoint draws the same numbers.

    Evaluations use a separate random stream and restore the caller's afterwards: otherwise a loader that shuffles would
    start every epoch alike.
    """

    def __init__(self) -> None:
        self._seed: int | None = None
        self._generators: tuple[Tensor, Tensor | None] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seed = run_seed()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._seed is not None
        torch.manual_seed(fold_in(self._seed, "train", pl_module.current_epoch, batch_idx, pl_module.global_rank))

    def _keep_generators(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        cuda = pl_module.device if pl_module.device.type == "cuda" else None
        self._generators = torch.get_rng_state(), None if cuda is None else torch.cuda.get_rng_state(cuda)

    def _restore_generators(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._generators is not None
        here, on_gpu = self._generators
        torch.set_rng_state(here)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, pl_module.device)

    def _seed_evaluation(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        torch.manual_seed(fold_in(run_seed(), "evaluate", batch_idx, pl_module.global_rank))

    on_validation_start = on_test_start = on_predict_start = _keep_generators
    on_validation_end = on_test_end = on_predict_end = _restore_generators
    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _seed_evaluation
