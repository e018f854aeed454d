"""Record spikes and potentials of every neuron of a network at every step."""

from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.dynamics.reference import Trace
from plif_lightning.errors import UserError
from plif_lightning.network.blocks import part_by_part
from plif_lightning.network.hooks import hooked
from plif_lightning.network.output import Integral
from plif_lightning.network.over_time import run_over_time
from plif_lightning.neurons import Neuron


def run_network(net: nn.Module, x: Tensor) -> Tensor:
    """The output of a `SpikingNetwork` or other module over [T, N, *]; other stacks of layers run `over_time`."""
    knows_time = not isinstance(net, nn.Sequential) and type(net).forward is not nn.Module.forward
    over_time = any(isinstance(part, (Neuron, Integral)) for part in net.modules()) or hasattr(net, "time_steps")
    return net(x) if knows_time and over_time else run_over_time(net, x)


def plain(net: nn.Module) -> nn.Module:
    """Unwrap the network of a compiled module or a `SpikingClassifier`; other modules are returned unchanged."""
    net = getattr(net, "_orig_mod", net)
    inside = getattr(net, "as_network", None)
    return net if inside is None else inside()


@torch.no_grad()
def traces(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Trace]]:
    """The output, and the spikes and membrane potentials of each layer of neurons by its name in `net`.

    Args:
        net: a `SpikingNetwork`, a `SpikingClassifier`, an argument of `over_time`, or a module with a forward over
            [T, N, *].
        x: [T, N, *]; a `SpikingNetwork` takes static images [N, C, H, W] too.

    Stores every potential of every step, so use it for few samples. Neurons run twice: for the output, and step by
    step in the reference.

    >>> from plif_lightning.neurons import PLIF
    >>> y, found = traces(nn.Sequential(nn.Flatten(), PLIF()), torch.full([3, 1, 1, 1], 1.5))
    >>> found["1"].v.flatten()
    tensor([0.7500, 0.0000, 0.7500])
    """
    net = plain(net)
    found: dict[str, Trace] = {}

    def record(name: str, neuron: Neuron, arguments: tuple[Any, ...], spikes: Tensor) -> None:
        if name in found:
            raise UserError(f"{name} is used twice in the network, so it has two traces: give each layer its own.")
        x, *rest = arguments
        found[name] = neuron.trace(x, time_steps=rest[0] if rest else None)

    neurons = {name: part for name, part in net.named_modules() if isinstance(part, Neuron)}
    with part_by_part(net), hooked(neurons, record):
        return run_network(net, x), found
