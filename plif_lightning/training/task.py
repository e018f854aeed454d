"""The LightningModule: a spiking network, its loss, its metrics and its optimiser."""

import inspect
import logging
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from plif_lightning.data.loading import Batch, as_batch, merge_time_steps, time_first
from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.layers.readout import mean_votes
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.network.inspect import layer_outputs
from plif_lightning.network.network import Keywords, NetworkKeywords, surrogate_name
from plif_lightning.network.over_time import for_time_steps
from plif_lightning.network.storage.fingerprint import fingerprint, require_same
from plif_lightning.network.user_networks import has_votes, require_protocol, user_network
from plif_lightning.neurons import describe_neuron
from plif_lightning.runtime.batches import has_time
from plif_lightning.training.finite import FiniteGuard
from plif_lightning.training.groups import decay_by_depth, group_parameters
from plif_lightning.training.losses import AnyLoss, context_of, loss_named
from plif_lightning.training.online import separable, step_by_step
from plif_lightning.training.schedules import OneCycle, length_of, require_upwards
from plif_lightning.training.seeds import StepSeeds

_log = logging.getLogger(__name__)

# Prefixes that FSDP and activation checkpointing add to the names of parameters.
_WRAPPERS = re.compile(r"_(fsdp|checkpoint)_wrapped_module\.")


class _Mean(MeanMetric):
    """A weighted mean without the check for NaN, which would synchronise with the GPU."""

    def update(self, value: Tensor, weight: float) -> None:  # type: ignore[override]
        self.mean_value += value * weight
        self.weight += weight


def _adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _path_of(object_of_user: Any) -> str:
    """A name as it is; the import path of a function, or of a module's class."""
    if isinstance(object_of_user, str):
        return object_of_user
    kind = object_of_user if inspect.isroutine(object_of_user) else type(object_of_user)
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_portable(value: Any) -> bool:
    """True for what a checkpoint reads back without running code: numbers, texts, tensors, and containers of them."""
    if isinstance(value, Mapping):
        return all(map(_is_portable, value.keys())) and all(map(_is_portable, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_portable, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


class SpikingClassifier(L.LightningModule):
    """Trains and evaluates a `SpikingNetwork`; a subclass's `forward` and `loss` are used in both.

    Args:
        input_shape: (C, H, W), or (F,) of sequences, from the data.
        num_classes: number of classes, from the data.
        time_steps: T, from the data.
        network: a user-defined network, instead of a `SpikingNetwork` of the further arguments: a module from
            [T, N, C, H, W], or images [N, C, H, W], to votes or logits [T, N, num_classes] (`network.user_networks`).
        loss: per_step (the paper), rate (the authors' code), per_step_cross_entropy, cross_entropy (of the rates) or
            tet, which needs a readout without spikes; or a user-defined function of (votes [T, N, num_classes],
            target), and of what else its signature names (`losses.CONTEXT`), a scalar: a module, in Python any
            callable.
        tet_lambda: weight of the second term of tet, lambda; 0.05 if it is not given.
        label_smoothing: share of a label that is spread evenly over all classes, in training.
        optimizer: any torch optimiser.
        lr_scheduler: any torch scheduler, stepped once an epoch; or OneCycle, stepped with the optimiser.
        decay_all: apply weight decay to time constants, thresholds, BN and biases too, not only to the
            weights of convolutions and FC layers.
        parameter_groups: options of the optimiser for parameters whose names match a pattern, such as
            `[{match: "classifier.*", lr: 0.0001}, {match: "*.tau", weight_decay: 0.01}]`; later ones win. A weight
            decay is that of all that match, of time constants, BN and biases too.
        layer_decay: factor of the learning rate, `parameter_groups` included, from each layer to the one before it, in
            order of definition; the last has the optimiser's. Layers of a user-defined network are its children.
        early_time_steps: {T: number of epochs}: train with these numbers of time-steps first, in this order, then with
            `time_steps`. Evaluations always use `time_steps`. Frames of events are summed, so each T must divide
            `time_steps` there.
        settings: further arguments of `SpikingNetwork`.

    Raises:
        UserError: an argument lies outside its range.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        time_steps: int,
        network: nn.Module | None = None,
        loss: AnyLoss = "per_step",
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        decay_all: bool = False,
        label_smoothing: float = 0.0,
        early_time_steps: dict[int, int] | None = None,
        tet_lambda: float | None = None,
        parameter_groups: list[dict[str, Any]] | None = None,
        layer_decay: float | None = None,
        **settings: Keywords[NetworkKeywords],
    ) -> None:
        super().__init__()
        # Plain values only, so that checkpoints load with weights_only=True.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute 'neuron' is an instance")  # described in the next lines
            self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "network", "loss"], logger=False)
        if isinstance(network, str):  # by load_from_checkpoint
            raise UserError(
                f"this is a checkpoint of {network}, a user-defined network: pass network={network}(...) too."
            )
        # A user-defined network is built again from the configuration, or by the caller.
        self.hparams.pop("network", None)
        self.hparams["loss"] = _path_of(loss)
        if network is not None:
            self.hparams["network"] = _path_of(network)
        for name, describe in (("neuron", describe_neuron), ("surrogate", surrogate_name)):
            if name in self.hparams:
                self.hparams[name] = describe(self.hparams[name])
        for name, value in self.hparams.items():
            if isinstance(value, np.generic):
                self.hparams[name] = value.item()
            elif not _is_portable(value):
                raise UserError(
                    f"{name} is a {type(value).__name__}, which a checkpoint cannot hold: let "
                    f"{type(self).__name__} take a path, a name or numbers, and make the object of them."
                )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}.")
        for steps, epochs in (early_time_steps or {}).items():
            if not (1 <= steps <= time_steps and epochs >= 1):
                raise UserError(
                    f"early_time_steps must be {{T: epochs}} with T from 1 to time_steps = {time_steps} and one epoch "
                    f"or more, got {{{steps}: {epochs}}}."
                )
        if network is None:
            self.network: nn.Module = SpikingNetwork(input_shape, num_classes, time_steps, **settings)
        else:
            from_data = {"input_shape": tuple(input_shape), "num_classes": num_classes, "time_steps": time_steps}
            self.network = user_network(network, from_data, settings)
            if "backend" in settings or "sparse" in settings:
                use_backend(self.network, settings.get("backend", "auto"), settings.get("sparse", "auto"))
        self.is_tried = network is None  # a network of one's own, before its first batch
        self._weights: set[str] | None = None
        self.custom_loss = loss if isinstance(loss, nn.Module) else None  # its buffers follow to the device
        self._loss_for = partial(loss_named, loss, tet_lambda)
        self._context = context_of(loss)
        self._layers = tuple(loss.layers) if "features" in self._context else ()  # type: ignore[arg-type, union-attr]
        self.loss = self._named_loss = self._loss_for(has_votes(self.network))
        # The default is a lambda, which jsonargparse reads; a function with a name can be pickled.
        is_default = optimizer is inspect.signature(SpikingClassifier).parameters["optimizer"].default
        self.optimizer = _adam if is_default else optimizer
        self.lr_scheduler = lr_scheduler
        self.decay_all = decay_all
        self.label_smoothing = label_smoothing
        self.early_time_steps = early_time_steps or {}
        self.parameter_groups, self.layer_decay = parameter_groups, layer_decay
        self.train_loss = _Mean()
        # Labels are not validated, which would synchronise with the GPU; the loss refuses invalid labels.
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        # Over the full set on all processes: Lightning's mean over processes counts samples in integers.
        self.val_loss = MeanMetric()
        self.test_loss = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_class_accuracy = MulticlassAccuracy(num_classes, average=None)
        self.test_confusion = MulticlassConfusionMatrix(num_classes)

    @property
    def _input_shape(self) -> tuple[int, ...]:
        return tuple(self.hparams["input_shape"])

    def as_network(self) -> nn.Module:
        """The network alone, with time first, as `step` and `traces` run it."""
        return self.network

    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [N, T, C, H, W], or static images [N, C, H, W]."""
        return self.network(self._input(x))

    def _input(self, x: Tensor) -> Tensor:
        """x, time first; a user-defined network is tried on the first, and takes real numbers."""
        x = time_first(x, self._input_shape)
        if self.hparams.get("network") is not None:
            x = x if x.is_floating_point() else x.to(self.dtype)  # event counts are stored as uint8
            if not self.is_tried:
                votes = require_protocol(self.network, x, self.hparams["num_classes"])
                if self.loss is self._named_loss:
                    self.loss = self._named_loss = self._loss_for(votes)
                self.is_tried = True
        return x

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that watch every step, for any Trainer."""
        return [StepSeeds(), FiniteGuard(self.network)]

    def on_train_start(self) -> None:
        # Replaces the restored length of the cycle by this Trainer's. In configure_optimizers, asking for the number of
        # steps would create the training loader before its position is restored.
        for scheduler in self.trainer.lr_scheduler_configs:
            if isinstance(scheduler.scheduler, OneCycle):
                scheduler.scheduler.set_length(*length_of(self.trainer), self.trainer.current_epoch)

    # Batches come from any loader: this project's, or pairs (x, label) from PyTorch's.

    def _evaluate(self, batch: Batch, x: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss and votes of a batch, whose x [T, N, *] or [N, *] is the network's input."""
        recording: Any = layer_outputs(self.network, self._layers) if self._layers else nullcontext({})
        with recording as features:
            # An overriding forward takes x as a loader gives it, time behind samples.
            votes = self.forward(time_first(x, self._input_shape)) if self._overrides_forward else self.network(x)
        everything = {"batch": batch, "x": x, "net": self.network, "task": self, "features": features}
        context = {name: everything[name] for name in self._context}
        return self.loss(votes, batch.answer, smoothing, **context), votes

    def _goes_step_by_step(self, static: bool) -> bool:
        trainer = getattr(self, "_trainer", None)
        # A scale must be there before gradients become too small.
        scales = getattr(getattr(trainer, "precision_plugin", None), "scaler", None) is not None
        has_own_step = self.loss is not self._named_loss or self._overrides_forward
        return not scales and not has_own_step and separable(self.network, self.hparams["loss"], static)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = as_batch(batch)
        x, steps = self._input(batch.x), self.training_time_steps
        with for_time_steps(self.network, steps) if self.early_time_steps else nullcontext():
            if has_time(x, self._input_shape) and self.early_time_steps:
                x = merge_time_steps(x, steps, *self.early_time_steps)

            if self._goes_step_by_step(static=not has_time(x, self._input_shape)):
                loss_of = partial(self.loss, label=batch.answer, smoothing=self.label_smoothing)
                loss, votes = step_by_step(self.network, x, steps, loss_of)
            else:
                loss, votes = self._evaluate(batch, x, self.label_smoothing)
        if self.early_time_steps and self.hparams.get("network") is not None and len(votes) != steps:
            raise UserError(
                f"early_time_steps: {type(self.network).__name__} ran {len(votes)} time-steps for {steps}: hold images "
                "for self.time_steps in its forward."
            )
        n = len(batch.label)
        self.train_loss.update(loss.detach(), n)
        self.train_accuracy.update(mean_votes(votes.detach()), batch.label)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=n)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, batch_size=n)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=n)
        return loss

    # A checkpoint within an epoch holds the epoch's loss and accuracy so far.

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()
        self.train_accuracy.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fingerprint"] = fingerprint(self.network)
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if isinstance(names, (list, tuple)):
            checkpoint["class_names"] = [str(name) for name in names]
        checkpoint["preprocessing"] = getattr(data, "preprocessing", None)
        checkpoint["train_metrics"] = {
            f"{name}.{state}": self.trainer.strategy.reduce(torch.as_tensor(value).clone(), reduce_op="sum")
            for name, metric in self._train_metrics().items()
            for state, value in metric.metric_state.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_same(self.network, checkpoint.get("fingerprint"), "the checkpoint")
        if self._trainer is None:
            return  # load_from_checkpoint
        # Lightning converts the module after it has loaded the weights, which rounds weights in float64 to float32.
        self.trainer.precision_plugin.convert_module(self)
        if self.trainer.state.fn != "fit":
            trained = checkpoint.get("preprocessing") or {}
            here = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", None) or trained
            if differing := [name for name in ("mean", "std") if trained.get(name) != here.get(name)]:
                _log.warning(
                    "The data is normalised by another %s than in training: it is that of the training files of "
                    "--data.root. Keep them there if only the test files are others.", " and ".join(differing),
                )  # fmt: skip
        averaging = any(isinstance(c, WeightAveraging) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        if self.trainer.state.fn == "fit" and not averaging:
            # A run that averaged its weights is resumed without: from the trained weights, not from their average.
            checkpoint["state_dict"] = checkpoint.get("current_model_state", checkpoint["state_dict"])
        if self.global_rank > 0:
            return  # the stored sums are over all processes
        for name, metric in self._train_metrics().items():
            for state in metric.metric_state:
                setattr(metric, state, checkpoint["train_metrics"][f"{name}.{state}"].to(self.device))

    @property
    def _overrides_forward(self) -> bool:
        return type(self).forward is not SpikingClassifier.forward

    def _train_metrics(self) -> dict[str, Metric]:
        return {"loss": self.train_loss, "accuracy": self.train_accuracy}

    @property
    def training_time_steps(self) -> int:
        """T of a training step in this epoch."""
        until = 0
        for early, epochs in self.early_time_steps.items():
            until += epochs
            if self.current_epoch < until:
                return early
        return getattr(self.network, "time_steps", self.hparams["time_steps"])

    @property
    def val_name(self) -> str:
        """Prefix of the validation metrics: `val`, or `test_as_val` where the test set selects the model."""
        return getattr(getattr(self.trainer, "datamodule", None), "val_name", "val")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = as_batch(batch)
        loss, votes = self._evaluate(batch, self._input(batch.x))
        self.val_accuracy(mean_votes(votes), batch.label)
        n = len(batch.label)
        self.val_loss.update(loss, n)
        self.log(f"{self.val_name}/loss", self.val_loss, batch_size=n)
        self.log(f"{self.val_name}/acc", self.val_accuracy, prog_bar=True, batch_size=n)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        batch = as_batch(batch)
        loss, votes = self._evaluate(batch, self._input(batch.x))
        rates = mean_votes(votes)
        self.test_accuracy(rates, batch.label)
        self.test_class_accuracy.update(rates, batch.label)
        self.test_confusion.update(rates, batch.label)
        n = len(batch.label)
        self.test_loss.update(loss, n)
        self.log("test/loss", self.test_loss, batch_size=n)
        self.log("test/acc", self.test_accuracy, batch_size=n)

    def on_test_epoch_end(self) -> None:
        self.confusion_matrix = self.test_confusion.compute()  # [true class, predicted class]
        for i, accuracy in enumerate(self.test_class_accuracy.compute()):
            if self.confusion_matrix[i].any():  # of a class without samples it would be 0, and is unknown
                self.log(f"test/acc_class/{i}", accuracy, sync_dist=True)
        self.test_class_accuracy.reset()
        self.test_confusion.reset()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Sample and label [N], predicted class [N] and votes averaged over time [N, num_classes]."""
        batch = as_batch(batch)
        rates = mean_votes(self(batch.x))
        return {"sample": batch.sample, "label": batch.label, "prediction": rates.argmax(-1), "votes": rates.float()}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # For float16's sake MixedPrecision refuses optimisers that undo a scaling themselves, as fused ones do.
            # Where nothing is scaled (bfloat16), their gradients are clipped like any others.
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def setup(self, stage: str) -> None:
        self._weights = self._weight_names()  # before FSDP flattens sharded parameters

    def _weight_names(self) -> set[str]:
        """Names of the parameters with two dimensions or more: weights of convolutions and FC layers."""
        return {name for name, parameter in self.named_parameters() if parameter.dim() > 1}

    def configure_optimizers(self) -> Any:
        optimizer = self._grouped_optimizer()
        if not self.decay_all:
            self._decay_weights_alone(optimizer)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, OneCycle):
            config["interval"] = "step"
        if isinstance(scheduler, ReduceLROnPlateau):
            require_upwards(scheduler)
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _grouped_optimizer(self) -> Any:
        """The optimiser over one group, or over `parameter_groups` and layers."""
        if self.parameter_groups is None and self.layer_decay is None:
            return self.optimizer(self.parameters())
        groups = group_parameters(self.network, self.parameter_groups or ())
        network = {id(parameter) for parameter in self.network.parameters()}
        if others := [parameter for parameter in self.parameters() if id(parameter) not in network]:
            groups.append({"params": others, "layer": groups[-1]["layer"]})  # of a loss
        optimizer = self.optimizer(groups)
        for group in self.parameter_groups or ():
            require_known_arguments(f"parameter_groups: {group['match']}", group, ["match", *optimizer.defaults])
        if self.layer_decay is not None:
            decay_by_depth(optimizer, self.layer_decay)
        return optimizer

    def _decay_weights_alone(self, optimizer: Any) -> None:
        """Exempt other parameters than weights from weight decay: it would pull `a` to zero, and so every tau to 2."""
        names = self._weight_names() if self._weights is None else self._weights
        weights = {id(p) for name, p in self.named_parameters() if _WRAPPERS.sub("", name) in names}
        decaying = [group for group in optimizer.param_groups if group.get("weight_decay")]
        for group in [group for group in decaying if not group.get("sets_decay")]:
            not_weights = [p for p in group["params"] if id(p) not in weights]
            group["params"] = [p for p in group["params"] if id(p) in weights]
            if not_weights:
                optimizer.add_param_group({**group, "params": not_weights, "weight_decay": 0.0})
