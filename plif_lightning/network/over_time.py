"""A stack of ordinary layers and spiking neurons, run over time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from plif_lightning.errors import UserError, require_count
from plif_lightning.kernels import Backend, Sparse
from plif_lightning.network.forms import dtype_of, run_dense, run_linear
from plif_lightning.network.inspect import has_hooks, is_plain
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.signals import Signal, SignalModule, output_levels, run_layer, run_layers
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import Carried, active_states


class OverTime(SignalModule):
    """Run layers over x [T, N, *]: neurons see time, stateless layers see T N samples at once.

    `nn.BatchNorm2d` therefore takes its statistics over all time-steps; `TimeBatchNorm2d` can take them per step.

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

    def run(self, x: Signal, states: Carried | None) -> Signal:
        """The last layer's output, [T, N, *]."""
        return _run_module(self.backend, self.net, x, states)

    def levels(self, levels: int | None) -> int | None:
        return output_levels(self.net, levels)


def knows_time(module: nn.Module) -> bool:
    """True if a module takes [T, N, *]."""
    return isinstance(module, (Neuron, TimeBatchNorm2d, SignalModule)) or getattr(module, "time_aware", False) is True


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
    if knows_time(module):
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


def run_over_time(net: nn.Module, x: Tensor) -> Tensor:
    """The output of a stack of layers, as of `over_time(net)`."""
    output: Tensor = _run_module(None, net, Signal(x, len(x)), active_states()).values
    return output


def _run_module(backend: Backend | None, module: nn.Module, x: Signal, states: Carried | None) -> Signal:
    """The output of a layer, or of a Sequential; stateless layers see T N samples at once."""
    if knows_time(module):
        return run_layer(module, x, states)
    if has_children_to_run(module):
        assert isinstance(module, nn.Sequential)
        parts = list(module)  # not `children`, which leaves out a layer that is there twice
        run = partial(_run_module, backend)
        if "forward" in vars(module) or not has_hooks(module):
            return run_layers(parts, x, states, run)

        def forward(values: Tensor) -> Tensor:
            output: Tensor = run_layers(parts, x._replace(values=values), states, run).values
            return output

        try:
            module.forward = forward  # type: ignore[method-assign]  # so that hooks are called
            return Signal(module(x.values), x.steps)
        finally:
            del module.forward
    _require_supported(module)
    return Signal(_stateless(backend, module, x.values), x.steps, output_levels(module, x.levels))


def _stateless(backend: Backend | None, module: nn.Module, x: Tensor) -> Tensor:
    """The output [T, N, *] of a layer that sees no time, with silent inputs skipped as the backend says."""
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1) and not has_hooks(module):
        return x.flatten(2)  # as a view of T N samples, `torch.export` could not prove its strides for every N
    if isinstance(module, nn.Conv2d) and x.dim() != 5:
        raise UserError(
            f"x must be [T, N, C, H, W], got {list(x.shape)}: hold static images [N, C, H, W] for T steps with "
            "x.expand(T, *x.shape)."
        )
    if backend is not None and isinstance(module, nn.Linear) and is_plain(module):
        x = x.to(dtype_of(x, module.weight))
        return run_linear(module, x, backend.skips("linear", x, module.weight))
    return run_dense(module, x.flatten(0, 1)).unflatten(0, x.shape[:2])


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
