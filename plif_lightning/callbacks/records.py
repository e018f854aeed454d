"""Record a run's command and data, histograms of W_fc / tau, and a few samples."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from plif_lightning.callbacks.checkpoints import best_checkpoint
from plif_lightning.callbacks.logger import is_trial, run_folder, writes_files
from plif_lightning.data import SpikingDataModule
from plif_lightning.data.events import EventDataset
from plif_lightning.data.loading import BatchedDataset, BatchRequest, time_first
from plif_lightning.deploy.costs import Cost, cost, mean_cost
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import FCBlock
from plif_lightning.network.own import listening, neurons_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.histograms import Histogram, append_histograms
from plif_lightning.runs.process import Resumption, write_command
from plif_lightning.runs.result import forget_results, write_cost, write_facts
from plif_lightning.runs.samples import Events, Samples, write_samples
from plif_lightning.runtime.process import surroundings
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)
_BINS = 80
# Limit on all recorded spikes [bits]; a sample with 20 steps of 128 maps of 128 x 128 neurons takes 42 million.
_MAX_SPIKES = 2**29
# Limit on the recorded events of a sample; beyond it, keep every second, third, ... event.
_MAX_EVENTS = 100_000


# Network storage may cache for a while that a folder does not exist [s].
_VISIBILITY_TIMEOUT = 60.0


def _require_seen(trainer: L.Trainer, folder: Path) -> None:
    """Raise on all processes if one of them cannot see the run's folder, which rank 0 has created."""
    until = time.monotonic() + _VISIBILITY_TIMEOUT
    while not (seen := folder.is_dir()) and time.monotonic() < until:
        time.sleep(0.5)
    if not (trainer.strategy.reduce_boolean_decision(seen) if trainer.world_size > 1 else seen):
        who = "another node" if seen else f"node {trainer.node_rank}"
        raise UserError(
            f"{who} does not see the run's folder {folder}, which node 0 has created: pass --run_folder with a folder "
            "on storage that all nodes share."
        )


def content_of(data: SpikingDataModule, train: bool = True) -> str:
    """A hash that tells training sets, or test sets, apart."""
    return hashlib.blake2b(data.identity(train).encode(), digest_size=8).hexdigest()


class CommandRecord(Callback):
    """Writes `command.json` and `data.json` when a fit starts; for a resumed run, when training starts.

    Args:
        arguments: arguments of main.py. A resumed run keeps its original ones.
        changed: new values of settings that a resumed run changes.
        longer: new values of settings that only extend the run.

    Attributes:
        forms: `SpikingNetwork.forms` of training, once its first validation has begun; they stand in `data.json`, too.
    """

    def __init__(
        self, arguments: list[str], changed: Mapping[str, Any] | None = None, longer: Mapping[str, Any] | None = None
    ) -> None:
        self.arguments, self.changed, self.longer = arguments, changed or {}, longer or {}
        self._written = False
        self.forms: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        if is_trial(trainer):
            return
        _require_seen(trainer, folder.path)
        if trainer.is_global_zero and not folder.command.is_file():
            self._write(trainer, pl_module, folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Only now that the checkpoint has been restored: if that fails, a finished run must stay unchanged.
        if writes_files(trainer):
            folder = run_folder(trainer)
            forget_results(folder)
            if not self._written:
                self._write(trainer, pl_module, folder)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, folder: RunFolder) -> None:
        self._written = True
        device = trainer.strategy.root_device
        used = f"{trainer.world_size} x {torch.cuda.get_device_name(device)}" if device.type == "cuda" else None
        resumed = None if trainer.ckpt_path is None else Resumption(trainer.global_step, self.changed, self.longer)
        network: SpikingNetwork = pl_module.network  # type: ignore[assignment]
        form = network.backend.chosen(device) if isinstance(network, SpikingNetwork) else "its own"
        around = surroundings(used) | {"threads": str(torch.get_num_threads()), "form": form}
        changed = write_command(folder, self.arguments, around, resumed)
        if changed & {"threads", "form", "machine", "versions"}:
            _log.warning(
                "The run resumes with different %s (see command.json): floating-point sums run in another order, so "
                "its weights will differ from those of an uninterrupted run.",
                " and ".join(sorted(changed)),
            )
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        facts = {"data": data.title, "origin": data.origin_note, "samples": data.sizes(), "protocol": data.protocol}
        write_facts(folder, {**facts, "content": content_of(data), "test_content": content_of(data, train=False)})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The forms of the last training step: those of the validation, where spikes are counted, are not.
        network = pl_module.network
        if not self.forms and not trainer.sanity_checking and isinstance(network, SpikingNetwork):
            self.forms = network.forms()
            if writes_files(trainer):
                folder = run_folder(trainer)
                write_facts(folder, {**json.loads(folder.data.read_text("utf-8")), "forms": self.forms})


def weight_histogram(layer: str, epoch: int, weight: Tensor, k: Tensor) -> Histogram:
    """Return the histogram of W / tau with equally spaced edges, and its mean and standard deviation."""
    values = (weight.detach() * (k.detach() if k.dim() == 0 else k.detach()[:, None])).float()
    low, high = float(values.min()), float(values.max())
    if not low < high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, _BINS, low, high).long().cpu().numpy()
    return Histogram(layer, epoch, low, high, counts, float(values.mean()), float(values.std(correction=0)))


class WeightRecord(Callback):
    """Writes the histogram of W_fc / tau of each FC layer after each epoch to `weights.jsonl` (Fig. S1).

    Epoch 0 is the state before training. Layers without leak have no tau and no line.

    Attributes:
        latest: histograms of the last epoch, on the process that writes them.
    """

    def __init__(self) -> None:
        self.latest: list[Histogram] = []

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int) -> None:
        folder = run_folder(trainer)
        if not writes_files(trainer):
            return
        assert isinstance(pl_module, SpikingClassifier)
        self.latest = [
            weight_histogram(name.rpartition(".")[2], epoch, block.fc.weight, 1 / block.neuron.learned()["tau"])
            for name, block in pl_module.network.named_modules()
            if isinstance(block, FCBlock) and block.neuron is not None and "tau" in block.neuron.learned()
        ]
        append_histograms(folder, self.latest)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a resumed run has its line of epoch 0, which this one would override
            self._write(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, trainer.current_epoch + 1)


def _one_of_each_class(labels: list[int], most: int) -> list[int]:
    first: dict[int, int] = {}
    for i, label in enumerate(labels):
        first.setdefault(label, i)
    return [first[label] for label in sorted(first)][:most]


class SampleRecord(Callback):
    """Writes what the best network does with one validation sample per class when a fit ends.

    Spikes and votes go to `samples.npz`, the mean cost of a sample (see `deploy.costs`) to `cost.json`.

    Args:
        most: maximum number of samples; 0 records nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        folder = run_folder(trainer)
        if self.most == 0 or not writes_files(trainer) or data.val_set is None:
            return
        assert isinstance(pl_module, SpikingClassifier)
        if next(neurons_of(pl_module.network), None) is None:
            return  # a network of one's own, without spikes that are known
        has_best = best_checkpoint(trainer) is not None and folder.best.is_file()
        with _evaluating(pl_module.network, folder.best if has_best else None) as network:
            samples = record_samples(network, data, self.most, pl_module.device)
            found = _cost_of(network, data, self.most, pl_module.device)
        if samples is not None:
            write_samples(folder, samples)
        if found is not None:
            write_cost(folder, found.summary())


@contextlib.contextmanager
def _evaluating(network: nn.Module, checkpoint: Path | None) -> Iterator[nn.Module]:
    """Put a network in evaluation mode, with the weights of a checkpoint if there is one, and restore it afterwards."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training = network.training
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "network."
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    try:
        yield network.eval()
    finally:
        network.load_state_dict(before)
        network.train(training)


@torch.no_grad()
def record_samples(network: nn.Module, data: SpikingDataModule, most: int, device: torch.device) -> Samples | None:
    """Record one validation sample per class, up to `most`, with the spikes of the first layer and the votes.

    None if the spikes of a single one are too many.
    """
    dataset = data.val_set
    assert dataset is not None
    labels = dataset.labels().tolist()
    frames, rates, votes = [], [], []
    spikes: list[Tensor] = []
    heard: dict[str, Tensor] = {}
    first = next(name for name, _ in neurons_of(network))
    chosen = _one_of_each_class(labels, most)
    with listening(network, heard.__setitem__):
        for x in _inputs(network, dataset, chosen, device):
            votes.append(network(x).cpu())
            fired = heard[first][:, 0].cpu()
            if (len(spikes) + 1) * fired.numel() <= _MAX_SPIKES:
                spikes.append(fired.bool())
            rates.append(fired.float().mean(0))
            frames.append((x if x.dim() == 5 else x[None]).cpu())
    if not spikes:
        _log.info("No samples are recorded: one has more than %s neurons and steps in %s.", f"{_MAX_SPIKES:,}", first)
        return None
    stacked = torch.cat(frames, 1)
    return Samples(
        np.asarray([labels[i] for i in chosen]),
        list(data.class_names),
        (stacked if not stacked.is_floating_point() else stacked.half()).numpy(),
        torch.stack(rates).numpy(),
        torch.stack(spikes, 1).numpy(),
        torch.cat(votes, 1).float().numpy(),
        _events(dataset, chosen) if isinstance(dataset, EventDataset) else None,
    )


def _inputs(network: nn.Module, dataset: BatchedDataset, chosen: list[int], device: torch.device) -> Iterator[Tensor]:
    """The chosen samples, one by one, as the network takes them."""
    dtype = next(network.parameters()).dtype
    counts = isinstance(network, SpikingNetwork)  # which takes events as they are stored, one byte for each pixel
    for i in chosen:
        x = dataset[BatchRequest(0, torch.tensor([i]))].x.to(device)
        yield time_first(x.to(dtype) if x.is_floating_point() or not counts else x)


def _cost_of(network: nn.Module, data: SpikingDataModule, most: int, device: torch.device) -> Cost | None:
    """The mean cost of these samples; None for a network of one's own whose operations cannot be counted."""
    assert data.val_set is not None
    chosen = _one_of_each_class(data.val_set.labels().tolist(), most)
    try:
        return mean_cost([cost(network, x) for x in _inputs(network, data.val_set, chosen, device)])
    except UserError as error:
        _log.info("The cost of a sample is not recorded: %s", error)
        return None


def _events(dataset: EventDataset, chosen: list[int]) -> Events:
    addresses, times, bounds = [], [], []
    for i in chosen:
        address, time = dataset.events_of(i)
        nth = max(1, -(-len(address) // _MAX_EVENTS))
        addresses.append(address[::nth])
        times.append(time[::nth])
        bounds.append(-(-dataset.bounds_of(i) // nth))
    sensor = dataset.sensor
    return Events(
        address=np.concatenate(addresses),
        time=np.concatenate(times),
        offset=np.cumsum([0, *map(len, addresses)]),
        sensor=(sensor.height, sensor.width),
        bounds=np.stack(bounds),
    )
