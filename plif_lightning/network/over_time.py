"""A stack of ordinary layers and spiking neurons, run over time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from plif_lightning.errors import UserError, require_count
from plif_lightning.kernels import Backend, Sparse
from plif_lightning.kernels.dense import computing_type
from plif_lightning.layers.delay import Delay
from plif_lightning.layers.plain import is_plain
from plif_lightning.layers.plan import call_layer, linear_behind_delay, run_linear
from plif_lightning.neurons import Neuron
from plif_lightning.signals.hooks import has_hooks
from plif_lightning.signals.signal import Layer, LayerModule, Signal, keeps_spikes, output_of, run_layers


class OverTime(LayerModule):
    """Run layers over x [T, N, *]: neurons see time, stateless layers see T N samples at once.

    `nn.BatchNorm2d` therefore takes its statistics over all time-steps; `TimeBatchNorm` can take them per step.

    Args:
        net: a layer, or an `nn.Sequential` of layers and Sequentials. A user-defined module that takes [T, N, *] sets
            `time_aware = True` in its class.
        sparse: skip silent inputs of `nn.Linear` on a CPU: never, auto (where its input is zeros and ones and that is
            faster; sums are then rounded in another order) or always (for tests).

    Raises:
        UserError: neurons are inside a module other than a Sequential that is not time-aware.

    >>> import torch
    >>> from plif_lightning.neurons import PLIF
    >>> net = OverTime(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), PLIF()))
    >>> net(torch.zeros(8, 2, 1, 2, 2)).shape  # [T, N, C, H, W] to [T, N, features]
    torch.Size([8, 2, 3])
    """

    def __init__(self, net: nn.Module, sparse: Sparse = "never") -> None:
        super().__init__()
        self.net, self.backend = net, Backend("auto", sparse)
        _require_supported(net)

    def run(self, x: Signal) -> Tensor:
        """The last layer's output, [T, N, *]."""
        return output_of(as_layer(self.net, self.backend), x)

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.net, spikes)


def takes_sequences(module: nn.Module) -> bool:
    """True if a module takes [T, N, *]: a layer, or one of the user's that says so."""
    return isinstance(module, Layer) or getattr(module, "time_aware", False) is True


def as_layer(module: nn.Module, backend: Backend | None = None) -> Any:
    """Adapt a module in a stack of layers for `run_layer`.

    Args:
        module: a layer over time, a stateless layer, or a Sequential of them.
        backend: skips silent inputs of FC layers; None for a module that is run alone.

    Raises:
        UserError: neurons are inside a module other than a Sequential that is not time-aware.
    """
    if takes_sequences(module):
        return module
    if has_children_to_run(module):
        return _InSequence(module, backend)
    _require_supported(module)
    return _Stateless(module, backend)


class _Stateless(Layer):
    """A layer that sees no time: it gets T N samples at once.

    Args:
        module: the layer.
        backend: see `as_layer`.
    """

    def __init__(self, module: nn.Module, backend: Backend | None) -> None:
        self.module, self.backend = module, backend

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.module, spikes)

    def run(self, x: Signal) -> Tensor:
        module, values = self.module, x.values
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1) and not has_hooks(module):
            # As a view of T N samples, `torch.export` could not prove its strides for every N.
            flat: Tensor = values.flatten(2)
            return flat
        if isinstance(module, nn.Conv2d) and values.dim() != 5:
            raise UserError(
                f"x must be [T, N, C, H, W], got {list(values.shape)}: hold static images [N, C, H, W] for T steps "
                "with x.expand(T, *x.shape)."
            )
        if self.backend is not None and isinstance(module, nn.Linear) and is_plain(module):
            values = values.to(computing_type(values, module.weight))
            return run_linear(module, values, self.backend.skips("linear", values, module.weight))
        return call_layer(module, values.flatten(0, 1)).unflatten(0, values.shape[:2])

    def run_behind(self, before: Layer, x: Signal) -> Tensor | None:
        if self.backend is None or not isinstance(before, Delay):
            return None
        found = linear_behind_delay(self.module, before, x, self.backend)
        return None if found is None else found[0]


class _InSequence(Layer):
    """The layers of an `nn.Sequential`, one after another; where it has hooks, as its forward.

    Args:
        sequence: the Sequential.
        backend: see `as_layer`.
    """

    def __init__(self, sequence: Any, backend: Backend | None) -> None:
        self.sequence, self.backend = sequence, backend

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.sequence, spikes)

    def run(self, x: Signal) -> Tensor:
        output: Tensor
        forward = vars(self.sequence).get("forward")
        if forward is None and has_hooks(self.sequence):
            # Once, and for good: another thread may be in the middle of a call.
            forward = self.sequence.forward = _ForwardOverTime(self.sequence, self.backend)
        if isinstance(forward, _ForwardOverTime):
            output = self.sequence(x.values, x.steps, x.is_spikes)
        else:
            output = self.of_layers(x)
        return output

    def of_layers(self, x: Signal) -> Tensor:
        """The output of the layers, without the hooks of the Sequential."""
        # Not `children`, which leaves out a layer that is there twice.
        output: Tensor = run_layers((as_layer(layer, self.backend) for layer in self.sequence), x).values
        return output


class _ForwardOverTime(_InSequence):
    """The forward of a Sequential with hooks, once `over_time` has run it."""

    def __call__(self, values: Tensor, time_steps: int | None = None, is_spikes: bool = False) -> Tensor:
        return self.of_layers(Signal(values, time_steps or len(values), is_spikes))


def with_time(net: Any, x: Tensor) -> Tensor:
    """x [T, N, *]: samples [N, *] are held for T steps, if a task has set `net`'s `input_shape` and T."""
    shape = getattr(net, "input_shape", None)
    return x if shape is None or x.dim() != len(shape) + 1 else x.expand(net.time_steps, *x.shape)


@contextmanager
def for_time_steps(net: nn.Module, time_steps: int) -> Iterator[None]:
    """Run a network with another T while the context lasts, in all threads: in every module with that `time_steps`.

    No parameter depends on T.
    """
    require_count("time_steps", time_steps)
    original = getattr(net, "time_steps", None)
    parts: list[Any] = [module for module in net.modules() if original and vars(module).get("time_steps") == original]
    for module in parts:
        module.time_steps = time_steps
    try:
        yield
    finally:
        for module in parts:
            module.time_steps = original


def has_children_to_run(module: nn.Module) -> bool:
    """True if this runs its parts in sequence: a Sequential that does not override forward."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _require_supported(module: nn.Module) -> None:
    if takes_sequences(module):
        return
    if has_children_to_run(module):
        for child in module.children():
            _require_supported(child)
    elif any(isinstance(child, Neuron) for child in module.modules()):
        raise UserError(
            f"{type(module).__name__} contains neurons, but is not an nn.Sequential, or overrides its forward: "
            "over_time cannot run its layers over time. Put its parts into an nn.Sequential, or write a forward "
            "over [T, N, *] and say `time_aware = True` in its class."
        )


def over_time(net: nn.Module, sparse: Sparse = "never") -> OverTime:
    """Run layers over [T, N, *]: neurons see time, all other layers T N samples at once.

    Args:
        net: a layer, or an `nn.Sequential` of layers.
        sparse: skip silent inputs of `nn.Linear` on a CPU, see `OverTime`.

    Returns:
        A module from x [T, N, *] to the last layer's output [T, N, *].

    Raises:
        UserError: as `OverTime`; or layers were passed as separate arguments.

    >>> import torch
    >>> from plif_lightning.neurons import PLIF
    >>> over_time(nn.Sequential(nn.Conv2d(2, 3, 3), PLIF()))(torch.zeros(4, 1, 2, 8, 8)).shape
    torch.Size([4, 1, 3, 6, 6])
    """
    if isinstance(sparse, nn.Module):
        raise UserError("over_time takes one module: over_time(nn.Sequential(layer, layer, ...)).")
    return OverTime(net, sparse)
