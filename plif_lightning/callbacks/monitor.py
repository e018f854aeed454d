"""Log time constants, firing rates, learning rate and speed of each epoch."""

import logging
import math
import time
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from plif_lightning.callbacks.averaging import averaging
from plif_lightning.callbacks.logger import run_folder
from plif_lightning.data.loading import as_batch
from plif_lightning.network.user_networks import learned_by_layers, record_spikes
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)

_SILENT = (
    "%s did not fire at all in this evaluation, so the layers after it get no input. If this persists, try a lower "
    "model.v_threshold, a smaller time constant (model.init_tau, where the neurons have it) or a larger learning rate."
)
_SATURATED = (
    "%s fired at every step of this evaluation, so its output carries no information. If this persists, try a higher "
    "model.v_threshold or a smaller learning rate."
)

# Approximate number of evaluation batches in which spikes are counted.
_COUNTED_BATCHES = 8


class LayerMonitor(Callback):
    """Logs in each epoch: tau or delay, and firing rate, of each layer, learning rate, speed and seconds of the fit.

    Firing rates (spikes per neuron and time-step) are measured in validation and test on about 8 evenly spaced
    batches, because counting spikes prevents fusing a neuron with BN and pooling. With one tau or delay per channel,
    the mean of the layer is logged; a layer without leak has no tau. If averaged weights are validated, their tau is
    logged. The first time that a layer never fires or fires at every step, a warning names it. Seconds include
    validation and accumulate when a run is resumed.
    """

    def __init__(self) -> None:
        self._listening = ExitStack()
        self._sums: dict[str, Tensor] = {}
        self._samples = 0
        self._seconds = 0.0
        # None outside training batches. Not set at the epoch's start: a run resumed within an epoch skips that hook.
        self._since: float | None = None
        self._lr: float | None = None
        self._validated: dict[str, float] = {}
        self._earlier = 0.0
        self._warned: set[str] = set()
        self._began: float | None = None

    def _fitted_for(self) -> float:
        return self._earlier + (0.0 if self._began is None else time.perf_counter() - self._began)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._fitted_for()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["seconds"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        run_folder(trainer)  # whose first call all processes must make

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._samples, self._seconds = 0, 0.0
        self._validated = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Read it before each batch: after the last batch the scheduler has already set the next epoch's rate.
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(as_batch(batch).label) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Validation runs within the training epoch and must not count as training time.
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        self._stop_clock()
        values = {"seconds": self._fitted_for()} | ({} if self._lr is None else {"lr": self._lr})
        if self._samples:
            values["train/samples_per_second"] = self._samples / self._seconds
        # Averaged weights are at hand in a validation only. An epoch without validation then has no values: values of
        # the weights in training would share a curve with values of the average.
        averages = averaging(trainer) and any(trainer.num_val_batches)
        values |= self._validated if averages else self._learned_values(pl_module)
        for key, value in values.items():
            pl_module.log(key, value, sync_dist=True)

    @staticmethod
    def _learned_values(pl_module: SpikingClassifier) -> dict[str, float]:
        return {
            f"{kind}/{name}": value.mean().item()
            for name, values in learned_by_layers(pl_module.network)
            for kind, value in values.items()
        }

    def _start_counting(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)

        def count(name: str, spikes: Tensor) -> None:
            if not pl_module.is_tried:  # the task tries it on two samples, with louder inputs
                return
            # [sum of mean rate x samples over batches, samples], so that a short last batch weighs less
            n = spikes.shape[1]
            update = torch.stack([spikes.mean(dtype=torch.float32) * n, torch.tensor(n, device=spikes.device)])
            self._sums[name] = self._sums[name] + update if name in self._sums else update

        self._listening.enter_context(record_spikes(pl_module.network, count))

    def _listen(self, pl_module: L.LightningModule, batch_idx: int, batches: Any) -> None:
        """Count spikes in this batch if it is among the evenly spaced batches."""
        count = batches[0] if isinstance(batches, list) else batches
        every = max(1, int(count) // _COUNTED_BATCHES) if math.isfinite(count) else 1
        self._listening.close()
        if batch_idx % every == 0:
            self._start_counting(pl_module)

    def _stop_counting(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listening.close()
        for name, total in self._sums.items():
            total = trainer.strategy.reduce(total, reduce_op="sum")
            rate = total[0] / total[1]
            pl_module.log(f"rate/{name}", rate, sync_dist=True)
            if trainer.is_global_zero and not trainer.sanity_checking and not 0 < rate < 1 and name not in self._warned:
                self._warned.add(name)
                _log.warning(_SATURATED if rate > 0 else _SILENT, name)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        self._sums = {}
        self._validated = self._learned_values(pl_module)  # of the averaged weights, if weights are averaged

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        sanity = trainer.sanity_checking
        self._listen(pl_module, batch_idx, trainer.num_sanity_val_batches if sanity else trainer.num_val_batches)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_counting(trainer, pl_module)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = {}

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._listen(pl_module, batch_idx, trainer.num_test_batches)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_counting(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._listening.close()
