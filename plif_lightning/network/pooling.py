"""Max-pooling of spikes, with a rule for ties."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.errors import UserError

Pooling = Literal["max", "avg"]
PoolTies = Literal["first", "random"]

_OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row-major, as torch.nn.MaxPool2d scans a window


def draw_seed(training: bool) -> Tensor | None:
    """A seed for the ties of one call, from PyTorch's generator; on the CPU, which needs no GPU synchronisation.

    None if no gradient needs the ties. In training it is drawn under `no_grad` too: activation checkpointing first runs
    a layer so, and must draw the same numbers when it recomputes the layer.
    """
    return torch.randint(2**32, (), dtype=torch.int64) if training or torch.is_grad_enabled() else None


def _hash(z: Tensor) -> Tensor:
    """32-bit hash of 32-bit integers, in int64 (lowbias32, Wellons 2018); the kernels use the same one."""
    mask = 0xFFFFFFFF
    z = ((z ^ (z >> 16)) * 0x7FEB352D) & mask
    z = ((z ^ (z >> 15)) * 0x846CA68B) & mask
    return z ^ (z >> 16)


class SpikeMaxPool2d(nn.Module):
    """Max-pooling of spikes over 2x2 windows, stride 2, with a rule for ties.

    Maps spikes [*, H, W] to spikes [*, H // 2, W // 2] of the same dtype; an odd last row or column
    is dropped. The rule affects only the gradient, which each window passes to a single neuron, the
    winner. Other values are pooled as `nn.MaxPool2d` does; of several largest ones the rule chooses.

    Args:
        ties: `random` (the paper's Fig. 5) draws the winner uniformly among the neurons of a window
            that fired; `first` (the authors' code) takes the first of them in row-major order. If none
            fired, all four are tied at zero and the rule applies to all four.

    Raises:
        UserError: an unknown rule.
    """

    def __init__(self, ties: PoolTies = "random") -> None:
        super().__init__()
        if ties not in get_args(PoolTies):
            raise UserError(f"pool_ties must be one of {', '.join(get_args(PoolTies))}, got {ties!r}.")
        self.ties = ties

    def forward(self, spikes: Tensor) -> Tensor:
        seed = draw_seed(self.training) if self.ties == "random" else None
        if not (torch.is_grad_enabled() and spikes.requires_grad):
            return _largest(_windows(spikes))
        pooled: Tensor = _SpikeMaxPool.apply(spikes, seed)[0]
        return pooled

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}"


class TiedMaxPool2d(nn.Module):
    """Max-pooling over windows of any size, with a rule for ties.

    Maps [*, H, W] to [*, H', W'] as `nn.MaxPool2d` does. Each window passes its gradient to a single neuron, the
    winner, which the rule of `SpikeMaxPool2d` chooses among the largest ones.

    Args:
        kernel_size: size of a window.
        stride: distance between windows.
        padding: added on all sides; never wins.
        ties: see `SpikeMaxPool2d`.
        whole: the input holds whole numbers alone, such as spikes and their sums. A faster way is taken, which would
            round others down.

    Raises:
        UserError: an unknown rule.
    """

    whole = False  # of modules that were pickled before it was known

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int] = 0,
        ties: PoolTies = "random",
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.whole = whole
        self.ties = SpikeMaxPool2d(ties).ties
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding
        if self.ties == "first" or not (torch.is_grad_enabled() and x.requires_grad):
            return functional.max_pool2d(x, *window)
        return self._of_whole(x) if self.whole else self._of_any(x)

    def _of_any(self, x: Tensor) -> Tensor:
        window, stride, (rows, columns) = (_pair(size) for size in (self.kernel_size, self.stride, self.padding))
        maps = functional.pad(x, (columns, columns, rows, rows), value=-math.inf) if rows or columns else x
        height, width = (
            (side - size) // step + 1 for side, size, step in zip(maps.shape[-2:], window, stride, strict=True)
        )
        if not x.numel():
            return x.new_zeros((*x.shape[:-2], height, width))
        # Of the values that equal the largest, that with the largest random number wins.
        if window == stride:
            maps = maps[..., : height * window[0], : width * window[1]]
            inside = maps.unflatten(-1, (width, -1)).unflatten(-3, (height, -1))  # [*, height, rows, width, columns]
            largest = functional.max_pool2d(maps.detach(), window)[..., :, None, :, None]
            score = torch.where((inside == largest) | inside.isnan(), torch.rand_like(inside), -1.0).reshape(maps.shape)
            _, winner = functional.max_pool2d(score, window, return_indices=True)
            return maps.flatten(-2).gather(-1, winner.flatten(-2)).view(*x.shape[:-2], height, width)
        images = maps if x.dim() > 3 else maps[None]
        patches = functional.unfold(images, window, stride=stride)  # [images, channels x values of a window, windows]
        patches = patches.unflatten(1, (images.shape[1], -1))
        tied = (patches == patches.amax(2, keepdim=True)) | patches.isnan()
        winner = torch.where(tied, torch.rand_like(patches), -1.0).argmax(2, keepdim=True)
        return patches.gather(2, winner).view(*x.shape[:-2], height, width)

    def _of_whole(self, x: Tensor) -> Tensor:
        # Shares of one only order ties, and the largest value without its share is exact. 16 random bits for each
        # value: a draw of 64 takes as long as one of a float.
        bits = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), dtype=torch.int64, device=x.device)
        real = torch.promote_types(x.dtype, torch.float32)
        share = (bits.view(torch.int16)[: x.numel()].to(real) + 2**15) * 2**-17
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        largest = functional.max_pool2d(
            x + (share.as_strided(x.shape, x.stride()) if dense else share.view(x.shape)),
            self.kernel_size,
            self.stride,
            self.padding,
        )
        return (largest + (largest.floor() - largest).detach()).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, ties={self.ties!r}"


def _windows(x: Tensor) -> list[Tensor]:
    """The four neurons of every 2x2 window, as views [*, H // 2, W // 2] in row-major order."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return [x[..., i:height:2, j:width:2] for i, j in _OFFSETS]


def _largest(inside: Sequence[Tensor]) -> Tensor:
    return torch.maximum(torch.maximum(inside[0], inside[1]), torch.maximum(inside[2], inside[3]))


class _SpikeMaxPool(torch.autograd.Function):
    """The maximum, and which neuron of each window gets its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(spikes: Tensor, seed: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = _windows(spikes)
        pooled = _largest(inside)
        # Only the gradient depends on the tie rule: one byte per window is saved for it.
        # If none fired, all four are tied at the maximum 0.
        tied = [(neuron == pooled).to(torch.uint8) for neuron in inside]
        rank: Tensor | int = 0
        if seed is not None:
            place = torch.arange(pooled.numel(), device=spikes.device).view(pooled.shape)
            uniform = (_hash((place ^ seed.to(spikes.device)) & 0xFFFFFFFF) >> 8).to(torch.float32) * 2**-24
            rank = (uniform * (tied[0] + tied[1] + tied[2] + tied[3])).to(torch.uint8)
        winner = torch.zeros_like(tied[0])
        ahead = tied[0]  # number of tied neurons before the next one
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
