"""User-defined networks: what is known of any module, and what a task requires of it.

A network is any module whose `forward` takes x [T, N, C, H, W], or static images [N, C, H, W], and returns votes or
logits [T, N, classes]. It may have `time_steps`, the T that it gives static images.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.kernels import dense
from plif_lightning.network import hooks
from plif_lightning.network.hooks import Hear
from plif_lightning.network.network import DEFAULTS, SpikingNetwork
from plif_lightning.network.over_time import OverTime, runs_parts, with_time
from plif_lightning.network.stepping import plain
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.making import imported
from plif_lightning.structure import FC
from plif_lightning.structure import FROM_DATA as FROM_DATA

_log = logging.getLogger(__name__)
# Arguments of `SpikingNetwork` that any module's neurons have.
_OF_ALL = {"backend", "sparse"}


def own_network(net: nn.Module, from_data: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    """A user-defined network, ready for a task.

    Args:
        net: the module. Layers without a forward over time, such as an `nn.Sequential`, are run with `over_time`.
        from_data: input_shape, num_classes and time_steps.
        settings: arguments of `SpikingNetwork` that were given beside it.

    Raises:
        UserError: an argument would have no effect; or the network was made for other data.
    """
    given = {name: value for name, value in settings.items() if name not in _OF_ALL}
    if lost := [f"{name}={value!r}" for name, value in given.items() if value != DEFAULTS.get(name)]:
        raise UserError(
            f"{', '.join(lost)} would have no effect on {type(net).__name__}, a user-defined network: set it there."
        )
    if runs_parts(net):
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

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(with_time(self, x))


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
    for name, part in net.named_modules():
        if isinstance(part, Neuron):
            yield name.removesuffix(".neuron"), part


def listening(net: Any, hear: Hear) -> AbstractContextManager[None]:
    """Call `hear(layer, spikes)` with the spikes [T, N, *] of each layer of neurons while the context lasts."""
    return net.listening(hear) if hasattr(net, "listening") else hooks.listening(dict(neurons_of(net)), hear)


def imported_network(path: str) -> type[nn.Module]:
    """A class of networks by its import path. Nothing else that a file names is ever called.

    Raises:
        UserError: it is missing, or is no module.
    """
    return imported("network", path, nn.Module, "torch.nn.Module")


def has_votes(net: nn.Module) -> bool:
    """True if a network's output is known to be votes in [0, 1]; otherwise losses take it for logits."""
    net = plain(net)
    if isinstance(net, SpikingNetwork):
        last = [layer for layer in net.structure.layers if isinstance(layer, FC)][-1]
        return last.neurons is not None
    while isinstance(net, (OverTime, nn.Sequential)) and len(parts := list(net.children())):
        net = parts[-1]
    return isinstance(net, Neuron)


@torch.no_grad()
def require_protocol(net: nn.Module, x: Tensor, num_classes: int) -> None:
    """Try a user-defined network on two samples in evaluation mode.

    Args:
        net: the network.
        x: [T, N, C, H, W], or static images [N, C, H, W].
        num_classes: number of classes.

    Raises:
        UserError: it returns something other than [T, N, classes]; or two calls with the same input differ, as where a
            module keeps state between calls.
    """
    if dense.widens(x):
        _log.warning(
            "This processor has no instructions for bfloat16: layers that a user-defined network calls may take 10 to "
            "100 times as long as in float32. Pass --trainer.precision 32-true."
        )
    x = x[:, :2] if x.dim() == 5 else x[:2]
    training = [part for part in net.modules() if part.training]
    name, found = type(net).__name__, []
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        seed = torch.initial_seed()
        try:
            net.eval()
            for _ in range(2):
                torch.manual_seed(seed)
                found.append(net(x))
        finally:
            for part in training:
                part.training = True
    steps = len(x) if x.dim() == 5 else getattr(net, "time_steps", None)
    expected = [steps or len(found[0]), x.shape[-4], num_classes]
    shape = list(found[0].shape) if isinstance(found[0], Tensor) else type(found[0]).__name__
    if shape != expected:
        raise UserError(
            f"{name} must return votes or logits [T, N, classes] = {expected} for two samples, got {shape}: do not "
            "average over time, the loss does, and run as many time-steps as the data has (self.time_steps)."
        )
    if not torch.equal(found[0].nan_to_num(), found[1].nan_to_num()):
        raise UserError(
            f"{name} keeps state between calls: the same input gave another output. Every call must start from the "
            "initial state; layers of SpikingJelly or snnTorch must be reset in its forward."
        )
