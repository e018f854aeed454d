"""Run a network one time-step at a time."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.errors import UserError
from plif_lightning.network.layers import TimeDropout
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.output import Integral
from plif_lightning.network.tracing import plain, run_network
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import LayerState as LayerState
from plif_lightning.neurons.carry import carrying as carrying
from plif_lightning.neurons.carry import detached as detached

State = dict[str, LayerState]
# Modules whose state a step takes and returns.
STATEFUL = (Neuron, Integral)


def foreign_state(state: Iterable[str], neurons: Iterable[str]) -> UserError:
    """The error for a state of other neurons than the network's, by their names."""
    return UserError(
        f"state must hold the states of {', '.join(neurons)}, as returned by the previous step, "
        f"got {', '.join(state) or 'nothing'}."
    )


def step(net: nn.Module, frame: Tensor, state: Mapping[str, LayerState] | None = None) -> tuple[Tensor, State]:
    """Run one time-step: the output of `frame`, and the state to pass to the next step.

    Neurons are stateless: the caller holds the state, and may detach it, store it, or continue from an older one.
    Gradients flow through it.

    Args:
        net: a `SpikingNetwork`, a `SpikingClassifier`, an argument of `over_time`, or a module with a forward over
            [T, N, *], which is called with one step [1, N, *].
        frame: x of one step [N, *].
        state: returned by the previous step; None for the first one.

    Returns:
        The output [N, *], and the state of each layer of neurons by its name in `net`: its potential [N, *], in float32
        at least; of neurons with several states a tuple of them. The leaky integral of a readout is such a state too.

    Neurons are bit-identical to a run over the whole sequence. Other layers are too if PyTorch's result for a sample
    does not depend on the batch size; otherwise a potential may differ by rounding (README of the kernels).

    Raises:
        UserError: `state` belongs to another network or batch, or a layer draws or takes statistics over all steps.

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
    neurons = {name: part for name, part in net.named_modules() if isinstance(part, STATEFUL)}
    before = _by_neuron(neurons, state)
    _require_single_steps(net)
    with _not_compiled(net), carrying(before) as carried:
        y = run_network(net, frame[None])
    if missing := [name for name, neuron in neurons.items() if neuron not in carried.after]:
        raise UserError(f"the network did not call {', '.join(missing)}, so the next step has no state of it.")
    return y[0], {name: carried.after[neuron] for name, neuron in neurons.items()}


@torch.no_grad()
def refuses_steps(net: nn.Module, input_shape: Sequence[int], time_steps: int) -> str | None:
    """Why a network of one's own, in evaluation mode, cannot run step by step; None if it can.

    It is tried on frames at once and one by one: something other than neurons may go from step to step.
    """
    some = next(net.parameters())
    shape = (max(time_steps, 2), 1, *input_shape)
    generator = torch.Generator().manual_seed(0)
    differ = 0
    for largest in (1, 3, 10):  # a network may be silent for small inputs
        x = (largest * torch.rand(shape, generator=generator)).to(some.device, some.dtype)
        try:
            whole, state = run_network(net, x), None
        except UserError:
            raise
        except Exception as error:  # its layers have their own types
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return f"{type(net).__name__} takes no frames [T, N, C, H, W] ({reason[:200]})"
        if not torch.equal(whole, run_network(net, x)):
            return None  # it draws random numbers, so this shows nothing
        for frame, expected in zip(x, whole, strict=True):
            y, state = step(net, frame, state)
            if not torch.allclose(y, expected, rtol=1e-3, atol=1e-4):
                differ += 1
                break
    if differ < 2:  # by rounding, a neuron may fire in one form and not in the other
        return None
    recurrent = ((name, type(part).__name__) for name, part in net.named_modules() if isinstance(part, nn.RNNBase))
    named = [f" ({name} is a {kind})" for name, kind in recurrent]
    return (
        f"{type(net).__name__} computes other outputs step by step than for all time-steps at once"
        f"{''.join(named[:1])}: only what neurons and the leaky integral of a readout keep goes from one step to the "
        "next"
    )


def _by_neuron(neurons: Mapping[str, nn.Module], state: Mapping[str, LayerState] | None) -> dict[nn.Module, LayerState]:
    """A network's state by neuron; refuses one of other neurons."""
    if state is None:
        return {}
    if state.keys() != neurons.keys():
        raise foreign_state(state, neurons)
    return {neurons[name]: v for name, v in state.items()}


def _require_single_steps(net: nn.Module) -> None:
    """Refuse a network with a layer that takes all time-steps at once in training."""
    time_norms = {part.bn for part in net.modules() if isinstance(part, TimeBatchNorm2d)}
    for part in net.modules():
        match part:
            case TimeDropout(training=True) if part.p > 0:
                reason = "dropout has one mask for all time-steps of a sample"
            case TimeBatchNorm2d(statistics="all_steps", bn=nn.Module(training=True)):
                reason = "norm_statistics='all_steps' takes all time-steps at once"
            case _BatchNorm(training=True) if part not in time_norms:
                reason = f"{type(part).__name__} in training takes all time-steps at once"
            case TimeBatchNorm2d(statistics="all_steps", bn=nn.Module(running_mean=None)):
                raise UserError("norm_statistics='all_steps' without running statistics needs all time-steps at once.")
            case _BatchNorm(running_mean=None) if part not in time_norms:
                raise UserError(f"{type(part).__name__} without running statistics takes all time-steps at once.")
            case _:
                continue
        raise UserError(f"{reason}: call net.eval() before a step.")


def has_compiled_parts(net: nn.Module) -> bool:
    return any(part._compiled_call_impl is not None or "_orig_mod" in part._modules for part in net.modules())


def _not_compiled(net: nn.Module) -> AbstractContextManager[Any]:
    """Run compiled modules eagerly: a compiled module cannot be passed states."""
    return torch.compiler.set_stance("force_eager") if has_compiled_parts(net) else nullcontext()
