"""Neurons that also see their spikes of the previous step, through a weight [F, F]."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.kernels.recurrent import run_recurrent
from plif_lightning.layers.plain import is_plain
from plif_lightning.neurons import Neuron
from plif_lightning.signals.signal import LayerModule, Signal, keeps_spikes, output_of
from plif_lightning.signals.states import advance


class RecurrentLinear(nn.Linear):
    """The weight from a step's spikes to the next step's input; it carries the spikes [N, F] from step to step.

    With hooks, as of pruning, or of a subclass it is called with the spikes [N, F] of each step, at first zeros.

    Args:
        features: F.
        bias: add a bias to the input of every step.
    """

    carries = ("s",)

    def __init__(self, features: int, bias: bool = False) -> None:
        super().__init__(features, features, bias)


class Recurrent(LayerModule):
    """Recurrent neurons over [T, N, F]: at step t they get x_t + W s_{t-1} (+ b), with s_{-1} = 0.

    Of neurons without gradient through time (`Firing.through_time`) s_{t-1} has none either; W learns all the same.

    Args:
        features: F.
        neuron: the spiking neurons.
        bias: add a bias b to the input of every step.

    >>> from plif_lightning.neurons import PLIF
    >>> Recurrent(3, PLIF())(torch.rand(5, 2, 3)).shape
    torch.Size([5, 2, 3])
    """

    def __init__(self, features: int, neuron: Neuron, bias: bool = False) -> None:
        super().__init__()
        self.recurrent = RecurrentLinear(features, bias)
        self.neuron = neuron

    def run(self, x: Signal) -> Tensor:
        return recurrent_spikes(self.recurrent, self.neuron, x)[0]

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.neuron, spikes=False)


def is_recurrent(net: nn.Module) -> bool:
    """True if a layer of the network sees its spikes of the step before."""
    return any(isinstance(module, RecurrentLinear) for module in net.modules())


def recurrent_spikes(
    recurrent: nn.Module, neuron: nn.Module, x: Signal, weight: Tensor | None = None
) -> tuple[Tensor, bool]:
    """Spikes [T, N, F] of recurrent neurons, and True if the fused form ran, not the loop.

    Args:
        recurrent: carries the spikes between single steps; a `RecurrentLinear`, whose weight and bias are used, or
            another module beside a `weight`.
        neuron: the neurons.
        x: the input without the recurrent part, [T, N, F] or [1, N, F].
        weight: [F, F], of a module that has none of its own.

    Raises:
        UserError: another layer was put in the place of the recurrent one; single steps would not carry its spikes.
    """
    if weight is None and not isinstance(recurrent, RecurrentLinear):
        raise UserError(
            f"the recurrent layer must be a RecurrentLinear or of a subclass, got {type(recurrent).__name__}."
        )
    product: Callable[[Tensor], Tensor]
    product = recurrent if weight is None else partial(nn.functional.linear, weight=weight)
    if x.is_step:
        return advance(recurrent, partial(_single_step, product, neuron, x)), False
    values = x.values
    # With hooks, as of pruning, or of a user-defined class, the layer is called at each step instead.
    if isinstance(recurrent, RecurrentLinear) and is_plain(recurrent):
        weight = recurrent.weight
        values = values if recurrent.bias is None else values + recurrent.bias.to(values.dtype)
        product = partial(nn.functional.linear, weight=weight)
    if weight is not None and isinstance(neuron, Neuron) and _is_fused(weight, neuron, values):
        real = torch.promote_types(values.dtype, torch.float32)  # bfloat16 is computed in float32
        return run_recurrent(values.to(real), weight.to(real), neuron.dynamics, x.steps).to(values.dtype), True
    inputs = _all_inputs(product, neuron, values, x.steps)
    # Neurons with hooks, or of a user-defined class, are called once, with their inputs at all steps.
    return output_of(neuron, Signal(inputs, x.steps)), False


def _is_fused(weight: Tensor, neuron: Neuron, values: Tensor) -> bool:
    """True if the fused form takes these inputs [T, N, F] of recurrent neurons."""
    is_cpu = values.device.type == "cpu" and values.dtype in (weight.dtype, torch.bfloat16)
    # Other shapes are the loop's: [T, N, L, F] runs there, and another F is an error of PyTorch's.
    is_cpu = is_cpu and values.shape[2:] == weight.shape[:1]
    return is_cpu and is_plain(neuron) and neuron.backend.fuses(values.device, values.dtype)


def _single_step(
    product: Callable[[Tensor], Tensor], neuron: nn.Module, x: Signal, before: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    spikes = torch.zeros_like(x.values[0]) if before is None else before[0].to(x.values.dtype)
    after = output_of(neuron, Signal(x.values + product(spikes), 1))
    return after, (after[0],)


def _all_inputs(product: Callable[[Tensor], Tensor], neuron: Any, values: Tensor, steps: int) -> Tensor:
    """The inputs of all steps [T, N, F], the recurrent part included, by a loop over steps."""
    inputs: list[Tensor] = []
    state = None
    before = torch.zeros_like(values[0])
    for t in range(steps):
        held = values[t if len(values) > 1 else 0]
        inputs.append(held + product(before).to(held.dtype))
        if t + 1 < steps:
            spikes, state = neuron.simulate(inputs[-1][None], state)
            before = spikes[0] if neuron.constants.through_time else spikes[0].detach()
    return torch.stack(inputs)
