"""A stack of ordinary layers and spiking neurons, run over time."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.kernels import Backend, Sparse, linear_of_spikes
from plif_lightning.network.blocks import Blocks, FCBlock, NeuronBlock, Residual
from plif_lightning.network.conv import ConvBlock, dtype_of, run_layer
from plif_lightning.network.hooks import must_be_called
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.output import Integral
from plif_lightning.neurons import Neuron

# Layers that take [T, N, *]; others are, too, whose class says `time_aware = True`.
_KNOW_TIME = (Neuron, Integral, TimeBatchNorm2d, TimeDropout, Pool2d, ConvBlock, FCBlock, NeuronBlock, Residual, Blocks)


class OverTime(nn.Module):
    """Run layers over x [T, N, *]: neurons see time, stateless layers see T N samples at once.

    `nn.BatchNorm2d` therefore takes its statistics over all time-steps; `TimeBatchNorm2d` can take them per step.

    Args:
        net: a layer, or an `nn.Sequential` of layers and Sequentials. A module of one's own that takes [T, N, *] says
            so with `time_aware = True` in its class.
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
        _require_known(net)

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output, [T, N, *]."""
        if x.dim() < 3 or len(x) == 0:
            raise UserError(f"x must be [T, N, *] with T >= 1 and at least one more dimension, got {list(x.shape)}.")
        return run_over_time(self.net, x, self.backend)


def _knows_time(module: nn.Module) -> bool:
    """True if a module takes [T, N, *]."""
    return isinstance(module, (*_KNOW_TIME, OverTime)) or getattr(module, "time_aware", False) is True


def _is_plain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """True if this runs its parts in sequence: a Sequential that does not override forward."""
    own = type(module).forward is not nn.Sequential.forward or "forward" in vars(module)
    return isinstance(module, nn.Sequential) and not own


def _require_known(module: nn.Module) -> None:
    if _knows_time(module):
        return
    if _is_plain(module):
        for part in module:
            _require_known(part)
    elif any(isinstance(part, Neuron) for part in module.modules()):
        if "forward" in vars(module):
            raise UserError(
                f"a forward was set on a {type(module).__name__} that contains neurons, whose layers over_time runs by "
                "itself: set it on those layers."
            )
        raise UserError(
            f"{type(module).__name__} contains neurons, but is not an nn.Sequential, or overrides its forward: "
            "over_time cannot run its layers over time. Put its parts into an nn.Sequential, or write a forward "
            "over [T, N, *] and say `time_aware = True` in its class."
        )


def run_over_time(module: nn.Module, x: Tensor, backend: Backend | None = None) -> Tensor:
    """`OverTime(module)(x)`, with silent inputs skipped as the backend says."""
    if _knows_time(module):
        return module(x)
    if _is_plain(module):
        return _run_parts(module, x, backend)
    _require_known(module)
    if backend is not None and type(module) is nn.Linear and (found := _of_spikes(module, x, backend)) is not None:
        return found
    y = run_layer(module, x.flatten(0, 1))
    if not isinstance(y, Tensor):
        raise UserError(
            f"{type(module).__name__} returns a {type(y).__name__}: over_time runs neurons of this project, and "
            "stateless layers that return one tensor."
        )
    return y.unflatten(0, x.shape[:2])


def _of_spikes(layer: nn.Linear, x: Tensor, backend: Backend) -> Tensor | None:
    """The output of an FC layer from the inputs that are not silent; None if it has hooks, or that is not faster."""
    if backend.sparse == "never" or must_be_called(layer):
        return None
    x = x.to(dtype_of(x, layer.weight))
    if not backend.skips_silence(x, layer.weight) or not torch.equal(x, (x != 0).to(x.dtype)):
        return None
    y = linear_of_spikes(x, layer.weight, 1.0, backend.sparse)
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


def _run_parts(module: nn.Sequential, x: Tensor, backend: Backend | None) -> Tensor:
    def over_parts(x: Tensor) -> Tensor:
        for part in module:
            x = run_over_time(part, x, backend)
        return x

    if not must_be_called(module):
        return over_parts(x)
    module.forward = over_parts  # type: ignore[method-assign]  # hooks run around the module's own call
    try:
        return module(x)
    finally:
        del module.forward


def over_time(net: nn.Module, sparse: Sparse = "never") -> OverTime:
    """`OverTime(net, sparse)`: `net` over [T, N, *]."""
    return OverTime(net, sparse)
