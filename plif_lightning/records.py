"""What a run writes for those who read it later: its command and result, W_fc / tau over time, a few samples."""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from plif_lightning.analysis.runs import Histogram, RunFolder, Samples, process_identity, write_samples
from plif_lightning.callbacks import BestCheckpoint, is_trial, run_folder
from plif_lightning.data import SpikingDataModule
from plif_lightning.data.loading import BatchRequest
from plif_lightning.files import written_whole
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import FCBlock
from plif_lightning.task import SpikingClassifier

_BINS = 80
# Samples whose every spike is kept: a step of 128 maps of 128 x 128 neurons is a quarter of a megabyte.
_PLAYED = 3


class CommandRecord(Callback):
    """Writes `command.json` when a fit starts.

    Args:
        arguments: of main.py. A run that goes on keeps those that started it.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or is_trial(trainer):
            return
        arguments = self.arguments
        if folder.command.is_file() and trainer.ckpt_path is not None:
            with contextlib.suppress(ValueError, KeyError):
                arguments = json.loads(folder.command.read_text())["arguments"]
        folder.result.unlink(missing_ok=True)
        with written_whole(folder.command) as file:
            json.dump({"arguments": arguments, "started": time.time(), **process_identity()}, file, indent=2)


def write_result(folder: RunFolder, test: Mapping[str, float] | None, samples: dict[str, int]) -> None:
    """Says that the run came to its end.

    Args:
        folder: of the run.
        test: what its one test measured, where there was one.
        samples: of each part of the data that was read.
    """
    accuracy = None if test is None else test["test/acc"]
    with written_whole(folder.result) as file:
        json.dump({"ended": time.time(), "test": accuracy, "samples": samples}, file, indent=2)


def write_test_result(folder: RunFolder, metrics: Mapping[str, Any], samples: dict[str, int]) -> None:
    """Keeps what a `test` of the run's best checkpoint measured on the whole test set."""
    with written_whole(folder.test_result) as file:
        json.dump({"test": float(metrics["test/acc"]), "samples": samples.get("test")}, file, indent=2)


def weight_histogram(layer: str, epoch: int, weight: Tensor, k: Tensor) -> Histogram:
    """Counts of W / tau between equally spaced edges."""
    values = (weight.detach() * (k.detach() if k.dim() == 0 else k.detach()[:, None])).float()
    low, high = float(values.min()), float(values.max())
    if not low < high:
        low, high = low - 0.5, high + 0.5
    return Histogram(layer, epoch, low, high, torch.histc(values, _BINS, low, high).long().cpu().numpy())


class WeightRecord(Callback):
    """Writes the distribution of W_fc / tau of each FC layer after each epoch into `weights.jsonl` (Fig. S1).

    The line of epoch 0 is that before training. Layers without leak have no tau and no line.

    Attributes:
        latest: those of the last epoch, on the process that writes them.
    """

    def __init__(self) -> None:
        self.latest: list[Histogram] = []

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or is_trial(trainer):
            return
        assert isinstance(pl_module, SpikingClassifier)
        self.latest = [
            weight_histogram(name, epoch, block.fc.weight, block.neuron.k)
            for name, block in pl_module.network.classifier.named_children()
            if isinstance(block, FCBlock) and block.neuron.k is not None
        ]
        with folder.weights.open("a") as file:
            file.writelines(f"{json.dumps({**asdict(row), 'counts': row.counts.tolist()})}\n" for row in self.latest)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a line that a run writes again counts instead of the first
            self._write(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, trainer.current_epoch + 1)


def _one_of_each_class(labels: list[int], most: int) -> list[int]:
    first: dict[int, int] = {}
    for i, label in enumerate(labels):
        first.setdefault(label, i)
    return [first[label] for label in sorted(first)][:most]


class SampleRecord(Callback):
    """Writes what the best network does with one sample of each class into `samples.npz`, when a fit has ended.

    Args:
        most: samples at most; 0 records nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        folder = run_folder(trainer)
        if self.most == 0 or not trainer.is_global_zero or is_trial(trainer) or data.val_set is None:
            return
        assert isinstance(pl_module, SpikingClassifier)
        network = pl_module.network
        before = {name: value.clone() for name, value in network.state_dict().items()}
        training = network.training
        if any(isinstance(c, BestCheckpoint) for c in trainer.checkpoint_callbacks) and folder.best.is_file():
            state = torch.load(folder.best, map_location="cpu", weights_only=True)["state_dict"]
            prefix = "network."
            network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        try:
            samples = record_samples(network.eval(), data, self.most, pl_module.device)
        finally:
            network.load_state_dict(before)
            network.train(training)
        with written_whole(folder.samples, "wb") as file:
            write_samples(folder, samples, file)


@torch.no_grad()
def record_samples(network: SpikingNetwork, data: SpikingDataModule, most: int, device: torch.device) -> Samples:
    """One validation sample of each class, up to `most`, and the network's first layer and votes."""
    dataset = data.val_set
    assert dataset is not None
    seen = min(len(dataset), 50 * len(data.class_names))
    labels = [dataset[BatchRequest(0, torch.tensor([i]))].label.item() for i in range(seen)]
    frames, rates, votes = [], [], []
    spikes: list[Tensor] = []
    first_spikes: list[Tensor] = []
    _, neuron = next(network.neurons())
    hook = neuron.register_forward_hook(lambda module, inputs, out: first_spikes.append(out))
    dtype = next(network.parameters()).dtype
    chosen = _one_of_each_class([int(label) for label in labels], most)
    try:
        for i in chosen:
            x = dataset[BatchRequest(0, torch.tensor([i]))].x.to(device).transpose(0, 1)
            x = x.to(dtype) if x.is_floating_point() else x
            votes.append(network(x).cpu())
            fired = first_spikes.pop()[:, 0].cpu()
            if len(spikes) < _PLAYED:
                spikes.append(fired.bool())
            rates.append(fired.float().mean(0))
            frames.append(x.cpu())
    finally:
        hook.remove()
    stacked = torch.cat(frames, 1)
    return Samples(
        np.asarray([labels[i] for i in chosen]),
        list(data.class_names),
        (stacked if not stacked.is_floating_point() else stacked.half()).numpy(),
        torch.stack(rates).numpy(),
        torch.stack(spikes, 1).numpy(),
        torch.cat(votes, 1).float().numpy(),
    )
