"""Training without gradient through time, step by step: memory does not grow with the number of steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.recurrent import RecurrentLinear
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.stepping import has_compiled_modules
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.batches import has_time
from plif_lightning.signals.states import LayerState, carry_states, detach_state, stateful_modules

# Losses that are a mean over steps.
SEPARABLE = ("per_step", "per_step_cross_entropy", "tet")


def separable(net: nn.Module, loss: str, static: bool = True) -> bool:
    """True if the gradients of a network's steps are independent, so that `step_by_step` gives them.

    The neurons pass no gradient to the step before (`through_time=False`), the loss is a mean over steps, and no layer
    takes all steps together, as the leaky integral or the last step of a readout does, and BN with statistics that see
    a static image once. Hooks of parameters would see the gradients twice. Compiled code cannot be passed the state of
    a step.
    """
    if not isinstance(net, SpikingNetwork) or loss not in SEPARABLE or net.inputs.name != "direct":
        return False
    if any(neuron.constants.through_time for _, neuron in net.neurons()):
        return False
    if torch.compiler.is_compiling() or has_compiled_modules(net):
        return False
    norms = [module for module in net.modules() if isinstance(module, TimeBatchNorm)]
    alone = all(norm.statistics == "per_step" and not (static and norm.held == "once") for norm in norms)
    # Neurons cut their gradient through time, and that of the spikes which recurrent ones see; no other layer does.
    others = [m for m in stateful_modules(net).values() if not isinstance(m, (Neuron, RecurrentLinear))]
    alone = alone and not (others or net.voting.is_last_step)
    return alone and not any(parameter._backward_hooks for parameter in net.parameters())


class _Collected(torch.autograd.Function):
    """A loss with known gradients."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else gradient * grad for gradient in ctx.gradients)


def step_by_step(net: nn.Module, x: Tensor, time_steps: int, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the losses of all steps, and the votes [T, N, C], detached.

    Backward of the loss only hands over the gradients: they are computed here, step by step.

    Args:
        net: `separable`.
        x: [T, N, C, H, W], or static images [N, C, H, W].
        time_steps: T.
        loss: of votes [1, N, C].
    """
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    gradients: list[Tensor | None] = [None] * len(parameters)
    shape: Any = net.input_shape
    states: dict[nn.Module, LayerState] = {}
    masks: dict[nn.Module, Tensor] = {}
    losses, votes = [], []
    for t in range(time_steps):
        with torch.enable_grad(), carry_states(states, masks) as carried:
            y = net((x[t] if has_time(x, shape) else x)[None])
            of_step = loss(y) / time_steps
        for i, gradient in enumerate(torch.autograd.grad(of_step, parameters, allow_unused=True)):
            before = gradients[i]
            if gradient is not None:
                gradients[i] = gradient if before is None else before.add_(gradient)
        states = {neuron: detach_state(state) for neuron, state in carried.after.items()}
        losses.append(of_step.detach())
        votes.append(y.detach()[0])
    return _Collected.apply(torch.stack(losses).sum(), gradients, *parameters), torch.stack(votes)
