"""What a run records beside its metrics: layers, checkpoints, plots, predictions, and a summary at its end."""

import csv
import math
import os
import time
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor, nn

from plif_lightning.analysis.curves import plot_learning_curve, plot_tau_curve
from plif_lightning.analysis.runs import RunFolder, read_metrics
from plif_lightning.errors import UserError
from plif_lightning.files import written_whole
from plif_lightning.task import SpikingClassifier


def is_trial(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


_folders: WeakKeyDictionary[L.Trainer, RunFolder] = WeakKeyDictionary()


def run_folder(trainer: L.Trainer) -> RunFolder:
    """The folder of this run, the same on every process.

    The first call asks the other processes, so all of them must make it: `LayerMonitor.setup` does.
    """
    if trainer not in _folders:
        _folders[trainer] = RunFolder(Path(trainer.log_dir or trainer.default_root_dir))
    return _folders[trainer]


# Batches of an evaluation in which spikes are counted, about.
_LISTENED = 8


class LayerMonitor(Callback):
    """Logs each epoch: tau and firing rate of each layer, learning rate, training samples per second.

    Firing rates (spikes per neuron and time-step) are measured in validation and test, on about 8 of the
    batches, evenly spaced over all: a neuron that is listened to is called by itself, not together with
    BN and pool. With one tau per channel, a layer's mean is logged. A layer without leak has none.
    """

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self._sums: dict[str, Tensor] = {}
        self._samples = 0
        self._seconds = 0.0
        # None while no training batch runs. A run that is resumed within an epoch never sees its start.
        self._since: float | None = None
        self._lr: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        run_folder(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._samples, self._seconds = 0, 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not after the last batch: by then the scheduler has set the next epoch's rate.
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch.label) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Validation runs inside the training epoch: its time is not the training's.
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        self._stop_clock()
        values = {} if self._lr is None else {"lr": self._lr}
        if self._samples:
            values["train/samples_per_second"] = self._samples / self._seconds
        for name, neuron in pl_module.network.neurons():
            tau = neuron.tau.mean().item()
            if math.isfinite(tau):
                values[f"tau/{name}"] = tau
        for key, value in values.items():
            pl_module.log(key, value, sync_dist=True)

    def _start_counting(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)

        def count(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
                # [sum of the batches' mean rates x samples, samples], so that a short last batch counts less
                n = spikes.shape[1]
                update = torch.stack([spikes.mean(dtype=torch.float32) * n, torch.tensor(n, device=spikes.device)])
                self._sums[name] = self._sums[name] + update if name in self._sums else update

            return hook

        self._hooks = [neuron.register_forward_hook(count(name)) for name, neuron in pl_module.network.neurons()]

    def _listen(self, pl_module: L.LightningModule, batch_idx: int, batches: Any) -> None:
        """Counts spikes in this batch, or not."""
        count = batches[0] if isinstance(batches, list) else batches
        every = max(1, int(count) // _LISTENED) if math.isfinite(count) else 1
        self._remove_hooks()
        if batch_idx % every == 0:
            self._start_counting(pl_module)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _stop_counting(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove_hooks()
        for name, total in self._sums.items():
            total = trainer.strategy.reduce(total, reduce_op="sum")
            pl_module.log(f"rate/{name}", total[0] / total[1], sync_dist=True)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = {}

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
        self._remove_hooks()


class ProgressBar(RichProgressBar):
    """Lightning's, with epochs counted from 1, as everywhere else, and without the run's number.

    Args:
        leave: keep each epoch's bar, with its loss and accuracy, on the screen.
    """

    def __init__(self, leave: bool = True) -> None:
        super().__init__(leave=leave, theme=RichProgressBarTheme(metrics="", metrics_text_delimiter="  "))

    def _get_train_description(self, current_epoch: int) -> str:
        of = f"/{self.trainer.max_epochs}" if self.trainer.max_epochs not in (None, -1) else ""
        return f"Epoch {current_epoch + 1}{of}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the epoch with the highest accuracy of the run's protocol."""

    def __init__(self) -> None:
        # After each validation, so that what `last.ckpt` remembers of the best is up to date when it is written.
        super().__init__(
            filename="best", mode="max", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=False
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        self.monitor = f"{pl_module.val_name}/acc"
        self.dirpath = os.fspath(run_folder(trainer).checkpoints)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # ModelCheckpoint would forget the best accuracy so far if the folder's path reads otherwise than
        # before (relative, moved), and let a worse epoch take its place. A run that starts in a new folder
        # has no best.ckpt yet, and its own to find.
        path = RunFolder(Path(self.dirpath or "").parent).best
        score = state_dict["best_model_score"]
        if path.is_file() and score is not None:
            here = os.fspath(path)
            paths = {"dirpath": self.dirpath, "best_model_path": here, "kth_best_model_path": here}
            super().load_state_dict({**state_dict, **paths, "best_k_models": {here: score}})

    @property
    def state_key(self) -> str:
        # Not ModelCheckpoint's: it holds the monitor, which is not known when a checkpoint is read.
        return type(self).__name__


def best_checkpoint(trainer: L.Trainer) -> BestCheckpoint | None:
    """The callback that keeps this run's best checkpoint, where there is one."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, from which a killed run goes on.

    Args:
        every_n_batches: write it every so many training batches too, not only after each epoch: what a
            killed run loses at most. Where gradients are being accumulated or a validation comes next, it
            waits for the next batch at which the run can be taken up again exactly.
    """

    def __init__(self, every_n_batches: int | None = None) -> None:
        if every_n_batches is not None and every_n_batches < 1:
            raise UserError(f"checkpoint.every_n_batches must be at least 1, got {every_n_batches}.")
        self.every_n_batches = every_n_batches
        self._due = False
        self.last_model_path = ""

    def _save(self, trainer: L.Trainer) -> None:
        self._due = False
        if not is_trial(trainer):
            path = run_folder(trainer).last
            trainer.save_checkpoint(path, weights_only=False)
            self.last_model_path = os.fspath(path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_batches is None:
            return
        done = batch_idx + 1
        self._due |= done % self.every_n_batches == 0
        validation_next = done % (getattr(trainer, "val_check_batch", None) or math.inf) == 0
        accumulating = done % trainer.accumulate_grad_batches != 0
        if self._due and not (trainer.is_last_batch or validation_next or accumulating):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The progress bar has just asked for the epoch's metrics on the first process alone, which now
        # waits for the others to add theirs. They must do that before anything else that all do together.
        _ = trainer.callback_metrics
        self._save(trainer)


class _Table(ExperimentWriter):
    """A metrics table that goes on where a resumed run stands, instead of deleting what is there."""

    def __init__(self, log_dir: str, keep_before_step: int) -> None:
        super().__init__(log_dir)
        path = RunFolder(Path(log_dir)).metrics
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row.get("step") and int(float(row["step"])) < keep_before_step]
            self.metrics_keys = list(reader.fieldnames or [])
        if not rows:
            self.metrics_keys = []
            path.unlink()
            return
        with written_whole(path) as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)

    def _check_log_dir_exists(self) -> None:
        """Nothing: the folder is meant to exist."""

    def save(self) -> None:
        # Without the parent's hparams.yaml: config.yaml holds everything.
        super(ExperimentWriter, self).save()


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into the run's folder, `save_dir/name/version_N`.

    Args:
        save_dir: folder of all runs.
        name: folder of this configuration's runs; the configuration's name where it is not given.
        version: N; the next free one where it is not given.
    """

    def __init__(self, save_dir: str = "runs", name: str | None = None, version: int | str | None = None) -> None:
        super().__init__(save_dir, name or "", version)
        self._keep_before_step = 0

    def place(self, folder: Path, keep_before_step: int = 0) -> None:
        """Writes into `folder`, after those rows of its metrics that lie before a step."""
        self._root_dir = self._save_dir = os.fspath(folder.parent)
        self._name, self._version = "", folder.name
        self._keep_before_step = keep_before_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Table(self.log_dir, self._keep_before_step)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: the run's config.yaml holds everything."""


class CurvePlots(Callback):
    """Writes the learning curve and the tau curve beside the metrics, when a fit ends or breaks off."""

    @rank_zero_only
    def _plot(self, trainer: L.Trainer) -> None:
        # Not run_folder(): where a run ends before its start, nobody else is there to be asked.
        folder = _folders.get(trainer)
        if folder is None or is_trial(trainer) or not folder.metrics.is_file():
            return
        metrics = read_metrics(folder.metrics)
        title = getattr(getattr(trainer, "datamodule", None), "title", "")
        if metrics:
            plot_learning_curve(metrics, folder.learning_curve, title)
            plot_tau_curve(metrics, folder.tau_curve, title)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plot(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            for logger in trainer.loggers:
                logger.save()
            self._plot(trainer)


def _class_names(trainer: L.Trainer, num_classes: int) -> list[str]:
    """The data's names of its classes, or their numbers where it has none."""
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return list(names or map(str, range(num_classes)))


class ConfusionMatrix(Callback):
    """Writes the test's confusion matrix into the run's folder, as csv and png."""

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if not trainer.is_global_zero or is_trial(trainer):
            return
        counts = pl_module.confusion_matrix.cpu()
        names = _class_names(trainer, len(counts))
        folder = run_folder(trainer).path
        with written_whole(folder / "confusion_matrix.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *names])
            writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        figure = Figure(figsize=(6.0, 5.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        share = counts / counts.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(share.numpy(), cmap="Greys", vmin=0, vmax=1)
        long = max(map(len, names)) > 3
        axes.set_xticks(range(len(names)), names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        for i, row in enumerate(counts.tolist()):
            for j, count in enumerate(row):
                if count:
                    axes.text(j, i, count, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
        figure.savefig(folder / "confusion_matrix.png")


class PredictionWriter(Callback):
    """Writes `predictions.csv`: sample, label, prediction and the votes of each class, in the data's order."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []
        self.path: Path | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batches.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        gathered = [self._batches]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self._batches)
        self._batches = []
        folder = run_folder(trainer).path
        if not trainer.is_global_zero or is_trial(trainer):
            return
        batches = [batch for of_rank in gathered for batch in of_rank]
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        order = columns["sample"].argsort().tolist()
        names = _class_names(trainer, columns["votes"].shape[1])
        self.path = folder / "predictions.csv"
        with written_whole(self.path) as file:
            writer = csv.writer(file)
            writer.writerow(["sample", "label", "prediction", *(f"votes {name}" for name in names)])
            for i in order:
                votes = [f"{vote:.6g}" for vote in columns["votes"][i].tolist()]
                writer.writerow([*(columns[key][i].item() for key in ("sample", "label", "prediction")), *votes])
