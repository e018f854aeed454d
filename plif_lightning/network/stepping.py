"""Run a network step by step, and record its spikes and potentials at every step."""

import copy
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.dynamics.reference import Trace
from plif_lightning.errors import UserError
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.pooling import TimeDropout
from plif_lightning.network.inspect import forward_hooks
from plif_lightning.network.over_time import as_layer, has_children_to_run
from plif_lightning.neurons import Neuron
from plif_lightning.signals.hooks import package_of
from plif_lightning.signals.signal import Signal, output_of
from plif_lightning.signals.states import LayerState, carry_states, run_step, stateful_modules

_log = logging.getLogger(__name__)
State = dict[str, LayerState]
# First input and output of modules, by name.
_Calls = dict[str, tuple[Tensor, Tensor]]
# Steps over which a user-defined network is compared, unless its T is larger; and the tolerance in float64, a share of
# the largest value.
_COMPARED_STEPS, _TOLERANCE = 16, 1e-6
# Networks that were compared, with what they held.
_compared = WeakKeyDictionary[nn.Module, tuple[float, ...]]()


def unwrapped(net: nn.Module) -> nn.Module:
    """Unwrap the network of a compiled module or a `SpikingClassifier`; other modules are returned unchanged."""
    net = getattr(net, "_orig_mod", net)
    wrapped = getattr(net, "as_network", None)
    return net if wrapped is None else wrapped()


def run_network(net: nn.Module, x: Tensor) -> Tensor:
    """The output of a `SpikingNetwork` or other module over [T, N, *]; other stacks of layers run `over_time`."""
    by_layers = has_children_to_run(net) or package_of(net) == "torch.nn"
    output: Tensor = output_of(as_layer(net), Signal(x, len(x))) if by_layers else net(x)
    return output


def step(net: nn.Module, frame: Tensor, state: Mapping[str, LayerState] | None = None) -> tuple[Tensor, State]:
    """Run a time-step: the output of `frame`, and the state to pass to the next step.

    Neurons are stateless: the caller holds the state, and may detach it, store it, or continue from an older state.
    Gradients flow through it.

    Args:
        net: a `SpikingNetwork`, a `SpikingClassifier`, an argument of `over_time`, or a module with a forward over
            [T, N, *], which is called with a step [1, N, *].
        frame: x of a step [N, *].
        state: returned by the previous step; None for the first.

    Returns:
        The output [N, *], and the state of each layer that carries one, by its name in `net`: of neurons the potential
        [N, *], in float32 at least; of neurons with several states a tuple of them; the leaky integral of a readout;
        the inputs that a delay still holds [N, max_delay, *].

    Neurons are bit-identical to a run over the sequence. Other layers are too if PyTorch's result for a sample
    does not depend on the batch size; otherwise a potential may differ by rounding (docs/concepts/forms.md).

    Raises:
        UserError: `state` belongs to another network; a layer draws or takes statistics over all steps; or a module of
            the user's sees other steps by itself, as a delay does: a network is compared with a sequence of T, at
            least 16, steps, in evaluation again when its values have changed.

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
    net = unwrapped(net)
    _require_single_steps(net)
    if state is None and not torch.compiler.is_compiling():
        _require_equal_steps(net, frame)
    with _require_uncompiled(net):
        y, after = run_step(stateful_modules(net), state, lambda: run_network(net, frame[None]))
    return y[0], after


def _require_equal_steps(net: nn.Module, frame: Tensor) -> None:
    """Refuse a network in which a user-defined module sees other time-steps, which it does not find in single steps.

    Raises:
        UserError: the outputs of a module over random steps differ from those over the sequence of them.
    """
    if all(package_of(module) or hasattr(module, "carries") for module in net.modules()):
        return
    tensors = () if net.training and net in _compared else (*net.parameters(), *net.buffers())
    values = tuple(float(tensor.detach().abs().sum()) for tensor in tensors)
    if net in _compared and values in ((), _compared[net]):
        return
    generator = torch.Generator(frame.device).manual_seed(0)
    steps = max(_COMPARED_STEPS, getattr(net, "time_steps", None) or 0)
    size = frame[:1].double().abs().max().clamp(min=1)
    x = size * torch.rand(steps, 1, *frame.shape[1:], generator=generator, device=frame.device, dtype=torch.float64)
    of_gpu = [frame.device] if frame.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=of_gpu):
            trial = copy.deepcopy(net).double()
            comparisons = [
                [_calls(net, *sequences) for sequences in ([x], [x], x[:, None])] for net in (trial, _louder(trial))
            ]
    except Exception as error:  # of a forward that fixes a type or T
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        _log.warning(
            "%s could not be compared with a run over a sequence (%s): its single steps are right only if no module "
            "of it sees other time-steps.", type(net).__name__, reason,
        )  # fmt: skip
        _compared[net] = values
        return
    if place := next(filter(None, (_differing_module(trial, *calls) for calls in comparisons)), ""):
        raise UserError(
            f"{place} sees other time-steps: over a sequence it returns something other than in single steps. "
            "Run whole sequences, or keep what it remembers in the states of a pl.Neuron or a layer "
            "(docs/concepts/states.md)."
        )
    _compared[net] = values


def _differing_module(net: nn.Module, whole: _Calls, again: _Calls, single: _Calls) -> str:
    """The first module, in words, whose output in single steps is another than over a sequence; empty if there is none.

    Args:
        net: the network.
        whole: calls over a sequence; again: once more, which differ in modules that draw random numbers.
        single: calls in single steps.
    """
    for name, (inputs, outputs) in whole.items():
        if name not in single or not _are_close(outputs, again[name][1]):
            continue  # called otherwise in single steps, or random
        if not _are_close(outputs, single[name][1]):
            same_inputs = _are_close(inputs, single[name][0])
            module = net.get_submodule(name) if same_inputs else net
            return f"{type(module).__name__}{f' ({name})' if same_inputs and name else ''}"
    return ""


def _louder(net: nn.Module) -> nn.Module:
    """A copy with weights a hundred times as large: a network that is new is silent, and silence shows no memory."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.mul_(100)
    return net


def _calls(net: nn.Module, *sequences: Tensor) -> _Calls:
    """First input and output of each module that is called once, in order of their ends; those of sequences joined.

    The sequences are run one after another, from the state that the one before left.
    """
    values: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            values.setdefault(name, []).append((inputs[0].clone(), output.clone()))

    torch.manual_seed(0)
    state: Mapping[nn.Module, LayerState] = {}
    with forward_hooks(dict(net.named_modules()), note), _require_uncompiled(net):
        for x in sequences:
            with carry_states(state) if len(sequences) > 1 else nullcontext() as carried:
                run_network(net, x)
            state = carried.after if carried is not None else {}
    once = {name: calls for name, calls in values.items() if len(calls) == len(sequences)}
    return {name: (torch.cat([x for x, _ in calls]), torch.cat([y for _, y in calls])) for name, calls in once.items()}


def largest_value(value: Any) -> float:
    """The largest finite value; 0 for other objects and empty tensors."""
    elements = isinstance(value, Tensor) and value.numel()
    return value.double().nan_to_num(0, 0, 0).abs().max().item() if elements else 0.0


def _are_close(a: Tensor, b: Tensor) -> bool:
    """True for equal tensors up to rounding; and for different shapes, which do not compare."""
    if a.shape != b.shape:
        return True
    return torch.allclose(a.double(), b.double(), rtol=0, atol=_TOLERANCE * largest_value(a), equal_nan=True)


def _require_single_steps(net: nn.Module) -> None:
    """Refuse a network with a layer that takes all time-steps at once in training, or keeps states of its own."""
    if keeping := getattr(net, "keeping_states", ()):
        raise UserError(f"{', '.join(keeping)} keep states of their own: they cannot take one step.")
    time_norms = {module.bn for module in net.modules() if isinstance(module, TimeBatchNorm)}
    for module in net.modules():
        match module:
            case TimeDropout(training=True) if module.p > 0:
                reason = "dropout has one mask for all time-steps of a sample"
            case TimeBatchNorm(statistics="all_steps") if module.bn.training or module.bn.running_mean is None:
                reason = "norm_statistics='all_steps' takes all time-steps at once"
            case _BatchNorm() if module not in time_norms and (module.training or module.running_mean is None):
                reason = f"{type(module).__name__} with batch statistics takes all time-steps at once"
            case _:
                continue
        raise UserError(f"{reason}: call net.eval() before a step.")


def has_compiled_modules(net: nn.Module) -> bool:
    return any(module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in net.modules())


def _require_uncompiled(net: nn.Module) -> AbstractContextManager[Any]:
    """Run compiled modules eagerly: a compiled module cannot be passed states."""
    return torch.compiler.set_stance("force_eager") if has_compiled_modules(net) else nullcontext()


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
    net = unwrapped(net)
    recorded: dict[str, Trace] = {}

    def record(name: str, neuron: Neuron, arguments: tuple[Any, ...], spikes: Tensor) -> None:
        if name in recorded:
            raise UserError(f"{name} is used twice in the network, so it has two traces: give each layer its own.")
        x, *rest = arguments
        recorded[name] = neuron.trace(x, time_steps=rest[0] if rest else None)

    neurons = {name: module for name, module in net.named_modules() if isinstance(module, Neuron)}
    with forward_hooks(neurons, record):
        return run_network(net, x), recorded
