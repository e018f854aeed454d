"""User-defined networks: their neurons, and requirements of a task.

A network is any module whose `forward` takes x [T, N, C, H, W], or static images [N, C, H, W], and returns votes or
logits [T, N, classes]. It may have `time_steps`, the T that it gives static images.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.errors import UserError
from plif_lightning.kernels import dense
from plif_lightning.layers.readout import Readout
from plif_lightning.network import inspect
from plif_lightning.network.inspect import OnSpikes
from plif_lightning.network.network import DEFAULTS, SpikingNetwork
from plif_lightning.network.over_time import OverTime, has_children_to_run, with_time
from plif_lightning.network.stepping import unwrapped
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.making import import_class as import_class
from plif_lightning.runtime.batches import has_time
from plif_lightning.signals.signal import LayerModule
from plif_lightning.structure import FC
from plif_lightning.structure import FROM_DATA as FROM_DATA

_log = logging.getLogger(__name__)
# Arguments of `SpikingNetwork` that any module's neurons have.
_OF_ALL = {"backend", "sparse"}


def user_network(net: nn.Module, from_data: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    """A user-defined network, ready for a task.

    Args:
        net: the module. Layers without a forward over time, such as an `nn.Sequential`, are run with `over_time`.
        from_data: input_shape, num_classes and time_steps.
        settings: arguments of `SpikingNetwork` that were given beside it.

    Raises:
        UserError: an argument would have no effect; or the network was made for other data.
    """
    of_class = {name: value for name, value in settings.items() if name not in _OF_ALL}
    if lost := [f"{name}={value!r}" for name, value in of_class.items() if value != DEFAULTS.get(name)]:
        raise UserError(
            f"{', '.join(lost)} would have no effect on {type(net).__name__}, a user-defined network: set it there."
        )
    if has_children_to_run(net):
        net = _Layers(net)
    elif type(net) is OverTime:
        net = _Layers(net.net, net.backend.sparse)
    for name in FROM_DATA:
        have, value = getattr(net, name, None), from_data[name]
        if have is None:
            setattr(net, name, value)
        elif name != "time_steps" and (tuple(have) if isinstance(have, list) else have) != value:
            raise UserError(f"{type(net).__name__} was made for {name}={have!r}, but the data has {value!r}.")
    return net


class _Layers(OverTime):
    """`OverTime` that holds static images for `time_steps`."""

    def forward(self, x: Tensor, time_steps: int | None = None, is_spikes: bool = False) -> Any:
        return super().forward(with_time(self, x), time_steps, is_spikes)


def description(net: nn.Module) -> str:
    """A network in words: its structure, or its class."""
    return str(net.structure) if isinstance(net, SpikingNetwork) else f"{type(net).__module__}.{type(net).__qualname__}"


def kernels_of(net: nn.Module, device: torch.device) -> str:
    """The kernels of a network, in words."""
    chosen = {neuron.backend.chosen(device) for _, neuron in neurons_of(net)}
    return f"{' and '.join(sorted(chosen))} kernels" if chosen else "a network without our neurons"


def neurons_of(net: nn.Module) -> Iterator[tuple[str, Neuron]]:
    """(name, neuron) of every layer of spiking neurons; the name is its layer's, or the module's."""
    if isinstance(net, SpikingNetwork):
        yield from net.neurons()
        return
    for name, module in net.named_modules():
        if isinstance(module, Neuron):
            yield name.removesuffix(".neuron"), module


def learned_by_layers(net: nn.Module) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, values to log) of every layer that learns more than weights, such as a time constant or a delay."""
    names: dict[nn.Module, str] = {neuron: name for name, neuron in neurons_of(net)}
    if isinstance(net, SpikingNetwork):
        names |= {block: name for name, block in net.layers().items()}
    for path, module in net.named_modules():
        if isinstance(module, LayerModule) and (values := module.learned()):
            yield names.get(module, path), values


def record_spikes(net: Any, on_spikes: OnSpikes) -> AbstractContextManager[None]:
    """Call `on_spikes(layer, spikes)` with the spikes [T, N, *] of each layer of neurons while the context lasts."""
    if hasattr(net, "record_spikes"):
        return net.record_spikes(on_spikes)
    return inspect.record_spikes(dict(neurons_of(net)), on_spikes)


def imported_network(path: str) -> type[nn.Module]:
    """A class of networks by its import path. Nothing else that a file names is ever called.

    Raises:
        UserError: it is missing, or is no module.
    """
    return import_class("network", path, nn.Module, "torch.nn.Module")


def has_votes(net: nn.Module) -> bool:
    """True if the output of a structure is votes in [0, 1]; that of a user-defined network `require_protocol` tells."""
    net = unwrapped(net)
    if not isinstance(net, SpikingNetwork):
        return False
    last = [layer for layer in net.structure.layers if isinstance(layer, FC)][-1]
    return last.neurons is not None


# Factor of the inputs of neurons in a trial: an untrained network is silent, and silence would show nothing.
_LOUD = 100.0
# Share of the outputs, and of their size, that another order of sums may change.
_TOLERANCE = 0.05


class _ForwardProbe:
    """Calls of a network in evaluation mode with equal random numbers and louder inputs of its neurons.

    Attributes:
        votes: outputs of neurons, and of readouts of votes behind them, in the last call.
    """

    def __init__(self, net: nn.Module, seed: int) -> None:
        self.net, self.seed, self.votes = net, seed, list[Tensor]()

    def __call__(self, x: Tensor) -> Any:
        torch.manual_seed(self.seed)
        self.votes.clear()
        parts = [module for module in self.net.modules() if isinstance(module, (Neuron, Readout))]
        with ExitStack() as hooks:
            for module in parts:
                if isinstance(module, Neuron):
                    hooks.enter_context(module.register_forward_pre_hook(lambda module, of: (_LOUD * of[0], *of[1:])))
                hooks.enter_context(module.register_forward_hook(self._note))
            return self.net(x)

    def _note(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, Neuron) or (getattr(module, "keeps_votes", False) and self.are_votes(inputs[0])):
            self.votes.append(output)

    def are_votes(self, output: Tensor) -> bool:
        return any(output is votes for votes in self.votes)


@torch.no_grad()
def require_protocol(net: nn.Module, x: Tensor, num_classes: int) -> bool:
    """Try a user-defined network on two samples in evaluation mode.

    Args:
        net: the network.
        x: [T, N, C, H, W], or static images [N, C, H, W].
        num_classes: number of classes.

    Returns:
        True if its output is votes: spikes of neurons, their mean by `Voting`, or its class says `has_votes = True`.

    Raises:
        UserError: it returns something other than [T, N, classes]; two calls with the same input differ, as where a
            module keeps state between calls; or the output of a sample depends on another sample.
    """
    if dense.widens(x):
        _log.warning(
            "This processor has no instructions for bfloat16: layers that a user-defined network calls may take 10 to "
            "100 times as long as in float32. Pass --trainer.precision 32-true."
        )
    shape: Any = net.input_shape  # which `user_network` set
    axis, name = int(has_time(x, shape)), type(net).__name__
    x = x.narrow(axis, 0, min(2, x.shape[axis]))
    steps = len(x) if axis else getattr(net, "time_steps", None)
    of_gpu = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=of_gpu), inspect.restore_modes(net):
        trial = _ForwardProbe(net, torch.initial_seed())
        net.eval()
        output = trial(x)
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        expected = [steps or (shape[0] if isinstance(shape, list) else 1), x.shape[axis], num_classes]
        if shape != expected:
            raise UserError(
                f"{name} must return votes or logits [T, N, classes] = {expected} for two samples, got {shape}: do "
                "not average over time, the loss does, and run as many time-steps as the data has "
                "(self.time_steps)."
            )
        votes = bool(getattr(net, "has_votes", trial.are_votes(output)))
        if not _equal(output, trial(x)):
            raise UserError(
                f"{name} keeps state between calls: the same input gave another output. Every call must start from "
                "the initial state; layers of SpikingJelly or snnTorch must be reset in its forward."
            )
        if _mixes_samples(trial, x, axis, output):
            raise UserError(
                f"{name} mixes samples: the output of one depends on the others, as where layers of spikes take a "
                "batch [N, C, H, W] for time-steps. They need [T, N, C, H, W]: plif_lightning.over_time(layers) "
                "runs layers over time."
            )
    return votes


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _mixes_samples(trial: _ForwardProbe, x: Tensor, axis: int, output: Tensor) -> bool:
    """True if the output of sample 1 changes with sample 0, or a batch statistic with their order; False if unknown."""
    if output.shape[1] < 2:
        return False
    of_batch = any(isinstance(norm, _BatchNorm) and norm.running_mean is None for norm in trial.net.modules())
    samples = x.unbind(axis)
    try:
        if of_batch:  # all samples take part in the statistics, in any order
            swapped = trial(torch.stack([samples[1], samples[0]], axis))
            differs = (swapped.flip(1) - output).abs() > _TOLERANCE * output.abs().max()
            return differs.float().mean().item() > _TOLERANCE
        # A form that skips silent inputs rounds otherwise, and may move a spike: once, but not for two other samples.
        partners = (-samples[0], -2 * samples[0])
        changed = [trial(torch.stack([other, samples[1]], axis)) for other in partners]
        return not any(_equal(output[:, 1], votes[:, 1]) for votes in changed)
    except Exception:  # of a layer that does not take such inputs
        return False
