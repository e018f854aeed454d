"""2x2 pooling of spikes."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plif_lightning.errors import UserError

Pooling = Literal["max", "avg"]
PoolTies = Literal["first", "random"]

# Every count of tied neurons (1, 2, 3, 4) divides 12, so a draw r from 0..11 picks each with the same chance.
_DRAWS = 12
_OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row-major, as torch.nn.MaxPool2d scans a window


def _winner_table() -> Tensor:
    """Winner 0..3 for each draw and each pattern of firing neurons, uint8 [12 * 16]."""
    table = torch.empty(_DRAWS, 16, dtype=torch.uint8)
    for pattern in range(16):
        # Where none fired all four are tied at the maximum 0, and one of them wins just as well.
        tied = [i for i in range(4) if pattern >> i & 1] or [0, 1, 2, 3]
        for draw in range(_DRAWS):
            table[draw, pattern] = tied[draw % len(tied)]
    return table.flatten()


class SpikeMaxPool2d(nn.Module):
    """Max-pooling of binary spikes over 2x2 windows, stride 2, with a rule for ties.

    Spikes in [*, H, W], spikes out [*, H // 2, W // 2] in the same dtype; an odd last row or column
    is left out. The output does not depend on the rule, the gradient does: all of a window's goes to
    one neuron, the winner.

    Args:
        ties: `random` (the paper's Fig. 5) draws the winner uniformly among the neurons of a window
            that fired; `first` (the authors' code) takes the first of them in row-major order. Where
            none fired all four are tied at zero, and the same rule draws among the four.

    Raises:
        UserError: an unknown rule.
    """

    _table: Tensor

    def __init__(self, ties: PoolTies = "random") -> None:
        super().__init__()
        if ties not in get_args(PoolTies):
            raise UserError(f"pool_ties must be one of {', '.join(get_args(PoolTies))}, got {ties!r}.")
        self.ties = ties
        self.register_buffer("_table", _winner_table(), persistent=False)

    def forward(self, spikes: Tensor) -> Tensor:
        return _SpikeMaxPool.apply(spikes, self._table, self.ties == "random")

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}"


def _windows(x: Tensor) -> list[Tensor]:
    """The four neurons of every 2x2 window, as views [*, H // 2, W // 2] in row-major order."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return [x[..., i:height:2, j:width:2] for i, j in _OFFSETS]


class _SpikeMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, table: Tensor, random: bool) -> Tensor:
        pattern: Tensor | None = None
        for i, neuron in enumerate(_windows(spikes)):
            bit = (neuron != 0).to(torch.uint8)
            pattern = bit if pattern is None else pattern.add_(bit, alpha=1 << i)
        assert pattern is not None
        if ctx.needs_input_grad[0]:
            # The tie rule is needed for the gradient alone. One byte a window is kept for it.
            index = pattern.to(torch.int32)
            if random:
                index += 16 * torch.randint(_DRAWS, index.shape, dtype=torch.int32, device=index.device)
            ctx.save_for_backward(table[index])
            ctx.shape = spikes.shape
        return (pattern != 0).to(spikes.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (winner,) = ctx.saved_tensors
        left_over = ctx.shape[-2] % 2 or ctx.shape[-1] % 2
        grad_spikes = grad.new_zeros(ctx.shape) if left_over else grad.new_empty(ctx.shape)
        for i, neuron in enumerate(_windows(grad_spikes)):
            torch.mul(grad, winner == i, out=neuron)
        return grad_spikes, None, None
