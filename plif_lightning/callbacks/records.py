"""Record a run's identity, histograms of W_fc / tau, and a few samples."""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.callbacks.logger import is_fast_dev_run, run_folder, writes_files
from plif_lightning.callbacks.wandb import WandbRunLogger
from plif_lightning.data import SpikingDataModule
from plif_lightning.data.loading import BatchRequest, time_first
from plif_lightning.deploy.costs import Cost, cost, mean_cost
from plif_lightning.errors import UserError
from plif_lightning.layers.plan import FCBlock
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.user_networks import neurons_of, record_spikes
from plif_lightning.runs.begin import begin
from plif_lightning.runs.code import file_digest, sources_of
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.histograms import Histogram, append_histograms
from plif_lightning.runs.identity import Identity
from plif_lightning.runs.record import DataRecord, read_record, update
from plif_lightning.runs.samples import RecordedSamples, write_samples
from plif_lightning.runs.settings import Role, is_of, role
from plif_lightning.runtime.batches import has_time
from plif_lightning.runtime.files import relative
from plif_lightning.runtime.process import surroundings
from plif_lightning.structure import NUMBERS, resolve_structure
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)
_BINS = 80
# Limit on all recorded spikes [bits]; a sample with 20 steps of 128 maps of 128 x 128 neurons takes 42 million.
_MAX_SPIKES = 2**29
# Network storage may cache for a while that a folder does not exist [s].
_VISIBILITY_TIMEOUT = 60.0


def _require_seen(trainer: L.Trainer, folder: Path) -> None:
    """Raise on all processes if any cannot see the run's folder, which rank 0 has created."""
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
    """A hash that identifies a training set or test set."""
    return hashlib.blake2b(data.identity(train).encode(), digest_size=8).hexdigest()


def has_local_statistics(net: nn.Module) -> bool:
    """True if BN of each process takes its statistics over its part of a batch alone."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    return not all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


class RunRecord(Callback):
    """Writes settings, machine and data of a run at its start, and the form of each layer, into `run.json`.

    Args:
        arguments: arguments of main.py.
        config: configuration of the run, as plain values.
        begun_from: checkpoint of another run from which training begins.

    Attributes:
        forms: `SpikingNetwork.forms` of training, once its first validation has begun.
    """

    def __init__(self, arguments: list[str], config: Mapping[str, Any], begun_from: str | None = None) -> None:
        self.arguments, self.config, self.begun_from = arguments, config, begun_from
        self.forms: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        if is_fast_dev_run(trainer):
            return
        _require_seen(trainer, folder.path)
        if trainer.is_global_zero and not folder.last.is_file():
            self._write(trainer, pl_module, folder)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over weights alone where a new run has another optimiser or schedule: their states hold old values."""
        changed = Identity.of(self.config).compared_with(Identity(checkpoint.get("settings") or {}))
        optimisation = [n for n, *_ in changed if is_of(n, "model") and role(n) & Role.TRAINING]
        if self.begun_from is not None and optimisation:
            checkpoint |= {"optimizer_states": [], "lr_schedulers": []}
            _log.warning("Optimiser and schedule differ from those of %s and are reinitialised.", self.begun_from)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Only now that the checkpoint has been restored: if that fails, a finished run must stay unchanged.
        folder = run_folder(trainer)
        if writes_files(trainer) and folder.last.is_file():
            self._write(trainer, pl_module, folder, trainer.global_step)

    def _write(
        self, trainer: L.Trainer, pl_module: L.LightningModule, folder: RunFolder, step: int | None = None
    ) -> None:
        device = trainer.strategy.root_device
        used = f"{trainer.world_size} x {torch.cuda.get_device_name(device)}" if device.type == "cuda" else None
        network: SpikingNetwork = pl_module.network  # type: ignore[assignment]
        form = network.backend.chosen(device) if isinstance(network, SpikingNetwork) else "its own"
        environment = surroundings(used) | {"threads": str(torch.get_num_threads()), "form": form}
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        content, test_content = content_of(data), content_of(data, train=False)
        of_data = DataRecord(data.title, data.origin_note, data.is_part, data.sizes(), content, test_content)
        beside: dict[str, Any] = {}
        if trainer.world_size > 1 and has_local_statistics(pl_module):
            beside["trainer.processes"] = trainer.world_size
        if self.begun_from is not None:
            beside |= {"ckpt_path": self.begun_from, "ckpt_path.content": file_digest(Path(self.begun_from))}
        of_config = Identity.of(self.config, trainer.world_size)
        identity = replace(of_config, settings={**of_config.settings, **beside})
        if step is not None:
            record = read_record(folder)
            before = Identity.of_record(record)
            rank_zero_info(f"resumed at step {step}, in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")
            if record.ended is not None:
                _log.warning(
                    "The run had ended: tables and figures will have the longer one in its place. To keep both, begin "
                    "another run from it: --ckpt_path %s with another --run_folder.", relative(folder.last),
                )  # fmt: skip
            now, then = (one.value("data.batch_size") for one in (identity, before if before.settings else identity))
            if now != then:
                message = "Batches of all processes together have %s samples now, %s before; the learning rate stays."
                _log.warning(message, now, then)
        changed = begin(folder, self.arguments, identity, of_data, environment, step, sources_of(self.config))
        update(folder, structure=_structure_of(network))
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                update(folder, wandb=logger.experiment.id)
        if changed & {"threads", "form", "machine", "versions"}:
            _log.warning(
                "The run resumes with different %s (see run.json): floating-point sums run in another order, so its "
                "weights will differ from those of an uninterrupted run.",
                " and ".join(sorted(changed)),
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The forms of the last training step: in validation, where spikes are counted, forms differ.
        network = pl_module.network
        if not self.forms and not trainer.sanity_checking and isinstance(network, SpikingNetwork):
            self.forms = network.forms()
            if writes_files(trainer):
                update(run_folder(trainer), forms=self.forms)


def _structure_of(network: nn.Module) -> str | None:
    """Structure from which a network was built, PLIF standing for `model.neuron`; None for a user-defined network."""
    if not isinstance(network, SpikingNetwork):
        return None
    numbers = {name: network.arguments[name] for name in NUMBERS}
    return str(resolve_structure(network.arguments["structure"], numbers, network.num_classes))


def weight_histogram(layer: str, epoch: int, weight: Tensor, k: Tensor) -> Histogram:
    """Return the histogram of W / tau with equally spaced edges, and its mean and standard deviation."""
    values = (weight.detach() * (k.detach() if k.dim() == 0 else k.detach()[:, None])).float()
    low, high = float(values.min()), float(values.max())
    if not low < high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, _BINS, low, high).long().tolist()
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
            if block.fc.weight.isfinite().all()  # or training ends with this epoch, and says why
        ]
        append_histograms(folder, self.latest)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a resumed run has its line of epoch 0, which a new line would override
            self._write(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, trainer.current_epoch + 1)


def _first_of_each_class(labels: list[int], max_samples: int) -> list[int]:
    first: dict[int, int] = {}
    for i, label in enumerate(labels):
        first.setdefault(label, i)
    return [first[label] for label in sorted(first)][:max_samples]


class SampleRecord(Callback):
    """Writes spikes and votes of the best network for a validation sample per class when a fit ends.

    Spikes and votes go to `samples.npz`, the mean cost of a sample (see `deploy.costs`) to `run.json`.

    Args:
        most: maximum number of samples; 0 records nothing.
    """

    def __init__(self, max_samples: int) -> None:
        self.max_samples = max_samples

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        folder = run_folder(trainer)
        if self.max_samples == 0 or not writes_files(trainer) or data.val_set is None:
            return
        assert isinstance(pl_module, SpikingClassifier)
        if next(neurons_of(pl_module.network), None) is None:
            return  # a user-defined network, without spikes that are known
        network = _with_weights_of(pl_module.network, folder.best)  # which the fit leaves
        chosen = _first_of_each_class(data.val_set.labels().tolist(), self.max_samples)
        samples = record_samples(network, data, chosen, pl_module.device)
        mean_cost_of_samples = _cost_of(network, data, chosen, pl_module.device)
        if samples is not None:
            write_samples(folder, samples)
        if mean_cost_of_samples is not None:
            update(folder, cost=mean_cost_of_samples.summary())


def _with_weights_of(network: nn.Module, checkpoint: Path) -> nn.Module:
    """The network in evaluation mode, with the weights of a checkpoint if it exists."""
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "network."
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network.eval()


@torch.no_grad()
def record_samples(
    network: nn.Module, data: SpikingDataModule, chosen: list[int], device: torch.device
) -> RecordedSamples | None:
    """Record validation samples by their numbers, with the spikes of the first layer and the votes.

    None if a single sample has too many spikes, or is no map, which figures show.
    """
    assert data.val_set is not None
    if len(data.input_shape) != 3:
        return None
    frames, rates, votes = [], [], []
    spikes: list[Tensor] = []
    heard: dict[str, Tensor] = {}
    first = next(name for name, _ in neurons_of(network))
    with record_spikes(network, heard.__setitem__):
        for x in _inputs(network, data, chosen, device):
            votes.append(network(x).cpu())
            fired = heard[first][:, 0].cpu()
            if (len(spikes) + 1) * fired.numel() <= _MAX_SPIKES:
                spikes.append(fired.bool())
            rates.append(fired.float().mean(0))
            frames.append((x if has_time(x, data.input_shape) else x[None]).cpu())
    if not spikes:
        _log.warning(
            "No samples are recorded: one has more than %s neurons and steps in %s.", f"{_MAX_SPIKES:,}", first
        )
        return None
    stacked = torch.cat(frames, 1)
    return RecordedSamples(
        data.val_set.labels()[chosen].numpy(),
        list(data.class_names),
        (stacked if not stacked.is_floating_point() else stacked.half()).numpy(),
        torch.stack(rates).half().numpy(),
        torch.stack(spikes, 1).numpy(),
        torch.cat(votes, 1).half().numpy(),
    )


def _inputs(network: nn.Module, data: SpikingDataModule, chosen: list[int], device: torch.device) -> Iterator[Tensor]:
    """The chosen samples of the validation set, one by one, as network inputs."""
    assert data.val_set is not None
    dtype = next(network.parameters()).dtype
    counts = isinstance(network, SpikingNetwork)  # which takes events as they are stored, one byte for each pixel
    for i in chosen:
        x = data.val_set[BatchRequest(0, torch.tensor([i]))].x.to(device)
        yield time_first(x.to(dtype) if x.is_floating_point() or not counts else x, data.input_shape)


def _cost_of(network: nn.Module, data: SpikingDataModule, chosen: list[int], device: torch.device) -> Cost | None:
    """The mean cost of these samples; None for a user-defined network with operations that cannot be counted."""
    try:
        return mean_cost([cost(network, x) for x in _inputs(network, data, chosen, device)])
    except UserError as error:
        _log.warning("The cost of a sample is not recorded: %s", error)
        return None
