"""Stateless layers over time: dropout, and pools, with a rule for ties of the maximum of spikes."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.errors import UserError, require_one_of
from plif_lightning.kernels import Pool
from plif_lightning.signals.signal import LayerModule, Signal
from plif_lightning.signals.states import same_at_all_steps

Pooling = Literal["max", "avg"]
PoolTies = Literal["first", "random"]

_OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row-major, as torch.nn.MaxPool2d scans a window


class TimeDropout(LayerModule):
    """Dropout of [T, N, *] with a mask per sample, the same at all T steps, scaled by 1 / (1 - p).

    Source: Lee et al. 2020, Sec. 3.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {p}.")
        self.p = float(p)

    def run(self, x: Signal) -> Tensor:
        if not self.training or self.p == 0:
            return x.values
        return x.values * same_at_all_steps(self, partial(self._mask, x.values))

    def keeps_spikes(self, spikes: bool) -> bool:
        return spikes

    def _mask(self, x: Tensor) -> Tensor:
        return torch.empty_like(x[0]).bernoulli_(1 - self.p).mul_(self.scale)

    @property
    def scale(self) -> float:
        """Value of a kept spike."""
        return 1 / (1 - self.p) if self.training else 1.0

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Pool2d(LayerModule):
    """Applies a pooling of single images [N, C, H, W] to [T, N, C, H, W]."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    @property
    def name(self) -> Pool | None:
        """The kernels' name of the pooling, over windows of 2x2 with stride 2; None if they do not have it."""
        pool = self.pool
        if type(pool) is SpikeMaxPool2d:
            return "max_first" if pool.ties == "first" else "max_random"
        if type(pool) is not nn.AvgPool2d or pool.divisor_override is not None:
            return None
        halves = _pair(pool.kernel_size) == _pair(pool.stride) == (2, 2)
        return "avg" if halves and pool.padding in (0, (0, 0)) and not pool.ceil_mode else None

    def run(self, x: Signal) -> Tensor:
        pooled: Tensor = self.pool(x.values.flatten(0, 1)).unflatten(0, x.values.shape[:2])
        return pooled

    def keeps_spikes(self, spikes: bool) -> bool:
        return spikes and isinstance(self.pool, _MAXIMA)


def draw_seed(training: bool) -> Tensor | None:
    """A seed for the ties of a call, from PyTorch's generator; on the CPU, which needs no GPU synchronisation.

    None if no gradient needs the ties. In training it is drawn under `no_grad` too: activation checkpointing first runs
    a layer so, and must draw the same numbers when it recomputes the layer.
    """
    return torch.randint(2**32, (), dtype=torch.int64) if training or torch.is_grad_enabled() else None


def _hash(z: Tensor) -> Tensor:
    """32-bit hash of 32-bit integers, in int64 (lowbias32, Wellons 2018); the kernels use the same."""
    mask = 0xFFFFFFFF
    z = ((z ^ (z >> 16)) * 0x7FEB352D) & mask
    z = ((z ^ (z >> 15)) * 0x846CA68B) & mask
    return z ^ (z >> 16)


class SpikeMaxPool2d(nn.Module):
    """Max-pooling of spikes over 2x2 windows, stride 2, with a rule for ties.

    Maps spikes [*, H, W] to spikes [*, H // 2, W // 2] of the same dtype; an odd last row or column
    is dropped. The rule affects only the gradient, which each window passes to a single neuron, the
    winner. Other values are pooled as `nn.MaxPool2d` does; the rule decides ties.
    Windows of another size are `nn.MaxPool2d`, which takes the first.

    Args:
        ties: `random` (the paper's Fig. 5) draws the winner uniformly among the neurons of a window
            that fired; `first` (the authors' code) takes the first of them in row-major order. If none
            fired, all four are tied at zero and the rule applies to all four.
    """

    def __init__(self, ties: PoolTies = "random") -> None:
        super().__init__()
        require_one_of("pool_ties", ties, PoolTies)
        self.ties = ties

    def forward(self, spikes: Tensor) -> Tensor:
        seed = draw_seed(self.training) if self.ties == "random" else None
        if not (torch.is_grad_enabled() and spikes.requires_grad):
            return _largest(_windows(spikes))
        pooled: Tensor = _SpikeMaxPool.apply(spikes, seed)[0]
        return pooled

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}"


_MAXIMA = (SpikeMaxPool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d)


def _windows(x: Tensor) -> list[Tensor]:
    """The four neurons of every 2x2 window, as views [*, H // 2, W // 2] in row-major order."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return [x[..., i:height:2, j:width:2] for i, j in _OFFSETS]


def _largest(window: Sequence[Tensor]) -> Tensor:
    return torch.maximum(torch.maximum(window[0], window[1]), torch.maximum(window[2], window[3]))


class _SpikeMaxPool(torch.autograd.Function):
    """The maximum, and which neuron of each window gets its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spikes: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        windows = _windows(spikes)
        pooled = _largest(windows)
        # Only the gradient depends on the tie rule: a byte per window is saved for it.
        # If none fired, all four are tied at the maximum 0.
        tied = [(neuron == pooled).to(torch.uint8) for neuron in windows]
        rank: Tensor | int = 0
        if seed is not None:
            index = torch.arange(pooled.numel(), device=spikes.device).view(pooled.shape)
            uniform = (_hash((index ^ seed.to(spikes.device)) & 0xFFFFFFFF) >> 8).to(torch.float32) * 2**-24
            rank = (uniform * (tied[0] + tied[1] + tied[2] + tied[3])).to(torch.uint8)
        winner = torch.zeros_like(tied[0])
        ahead = tied[0]  # number of tied neurons before the next
        for i in (1, 2, 3):
            winner = winner + i * (tied[i] & (ahead == rank))
            ahead = ahead + tied[i]
        return pooled, winner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (winner,) = ctx.saved_tensors
        left_over = ctx.shape[-2] % 2 or ctx.shape[-1] % 2
        grad_spikes = grad.new_zeros(ctx.shape) if left_over else grad.new_empty(ctx.shape)
        for i, neuron in enumerate(_windows(grad_spikes)):
            neuron.copy_(grad * (winner == i))
        return grad_spikes, None
