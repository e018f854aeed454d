"""A network run one time-step at a time."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.errors import UserError
from plif_lightning.network.layers import TimeDropout
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.tracing import plain, run_network
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carrying

State = dict[str, Tensor]


def step(net: nn.Module, frame: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, State]:
    """One time-step: the output of `frame`, and the potentials from which the next step goes on.

    Neurons keep nothing: who calls keeps the state, may detach it, store it, or go on from an older one. Gradients
    flow through it.

    Args:
        net: a `SpikingNetwork`, a `SpikingClassifier`, what `over_time` takes, or a module with a forward over
            [T, N, *], which then gets one step [1, N, *].
        frame: x of one step [N, *].
        state: what the step before gave; None before the first one.

    Returns:
        The output [N, *], and the potential [N, *] of each neuron by its name in `net`, in float32 at least.

    Neurons give the same bits as over the whole sequence. So do other layers where the library's result for a sample
    does not depend on how many there are; else a potential may differ by rounding (README of the kernels).

    Raises:
        UserError: `state` is that of another network or batch, or layers draw or measure over all steps at once.

    >>> import torch
    >>> from plif_lightning.neurons import PLIF
    >>> net, x = nn.Sequential(nn.Flatten(), PLIF()), torch.rand(3, 2, 1, 4)
    >>> state, votes = None, []
    >>> for frame in x:
    ...     y, state = step(net, frame, state)
    ...     votes.append(y)
    >>> torch.equal(torch.stack(votes), run_network(net, x))
    True
    """
    net = plain(net)
    neurons = {name: part for name, part in net.named_modules() if isinstance(part, Neuron)}
    if state is not None and state.keys() != neurons.keys():
        raise UserError(
            f"state must hold the potentials of {', '.join(neurons)}, as the step before gave them, "
            f"got {', '.join(state) or 'nothing'}."
        )
    of_steps = {part.bn for part in net.modules() if isinstance(part, TimeBatchNorm2d)}
    for part in net.modules():
        if isinstance(part, TimeDropout) and part.training and part.p > 0:
            raise UserError("dropout has one mask for all time-steps of a sample: call net.eval() before a step.")
        if isinstance(part, TimeBatchNorm2d) and part.bn.training and part.statistics == "all_steps":
            raise UserError("norm_statistics='all_steps' takes all time-steps at once: call net.eval() before a step.")
        if isinstance(part, _BatchNorm) and part.training and part not in of_steps:
            raise UserError(
                f"{type(part).__name__} in training takes all time-steps at once: call net.eval() before a step."
            )
    with _not_compiled(net), carrying({neurons[name]: v for name, v in (state or {}).items()}) as carried:
        y = run_network(net, frame[None])
    if missing := [name for name, neuron in neurons.items() if neuron not in carried.after]:
        raise UserError(f"the network did not call {', '.join(missing)}, so there is no potential to go on from.")
    return y[0], {name: carried.after[neuron] for name, neuron in neurons.items()}


def _not_compiled(net: nn.Module) -> AbstractContextManager[Any]:
    """Runs modules that were compiled in place, or in a part, as they are: a compiled one cannot take potentials."""
    compiled = any(part._compiled_call_impl is not None or "_orig_mod" in part._modules for part in net.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
