"""2x2 pooling of spikes."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.errors import UserError

Pooling = Literal["max", "avg"]
PoolTies = Literal["first", "random"]

_OFFSETS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row-major, as torch.nn.MaxPool2d scans a window


def draw_seed(training: bool) -> Tensor | None:
    """A seed for the ties of one call, from PyTorch's generator; on the CPU, so that nobody waits for a GPU.

    None where no gradient will ask for the ties. In training it is drawn without gradients too: a checkpointed layer
    runs so first, and draws the same numbers again when it is run once more.
    """
    return torch.randint(2**32, (), dtype=torch.int64) if training or torch.is_grad_enabled() else None


def _hash(z: Tensor) -> Tensor:
    """32 well-mixed bits in int64, of 32 bits (lowbias32, Wellons 2018): what the kernels compute too."""
    mask = 0xFFFFFFFF
    z = ((z ^ (z >> 16)) * 0x7FEB352D) & mask
    z = ((z ^ (z >> 15)) * 0x846CA68B) & mask
    return z ^ (z >> 16)


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

    def __init__(self, ties: PoolTies = "random") -> None:
        super().__init__()
        if ties not in get_args(PoolTies):
            raise UserError(f"pool_ties must be one of {', '.join(get_args(PoolTies))}, got {ties!r}.")
        self.ties = ties

    def forward(self, spikes: Tensor) -> Tensor:
        return _SpikeMaxPool.apply(spikes, draw_seed(self.training) if self.ties == "random" else None)

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}"


def _windows(x: Tensor) -> list[Tensor]:
    """The four neurons of every 2x2 window, as views [*, H // 2, W // 2] in row-major order."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    return [x[..., i:height:2, j:width:2] for i, j in _OFFSETS]


class _SpikeMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, seed: Tensor | None) -> Tensor:
        fired = [neuron != 0 for neuron in _windows(spikes)]
        pooled = fired[0] | fired[1] | fired[2] | fired[3]
        if ctx.needs_input_grad[0]:
            # The tie rule is needed for the gradient alone. One byte a window is kept for it.
            # Where none fired, all four are tied at the maximum 0.
            tied = [(neuron | ~pooled).to(torch.uint8) for neuron in fired]
            rank: Tensor | int = 0
            if seed is not None:
                place = torch.arange(pooled.numel(), device=spikes.device).view(pooled.shape)
                uniform = (_hash((place ^ seed.to(spikes.device)) & 0xFFFFFFFF) >> 8).to(torch.float32) * 2**-24
                rank = (uniform * (tied[0] + tied[1] + tied[2] + tied[3])).to(torch.uint8)
            winner = torch.zeros_like(tied[0])
            ahead = tied[0]  # how many tied neurons come before the next one
            for i in (1, 2, 3):
                winner += i * (tied[i] & (ahead == rank))
                ahead = ahead + tied[i]
            ctx.save_for_backward(winner)
            ctx.shape = spikes.shape
        return pooled.to(spikes.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (winner,) = ctx.saved_tensors
        left_over = ctx.shape[-2] % 2 or ctx.shape[-1] % 2
        grad_spikes = grad.new_zeros(ctx.shape) if left_over else grad.new_empty(ctx.shape)
        for i, neuron in enumerate(_windows(grad_spikes)):
            torch.mul(grad, winner == i, out=neuron)
        return grad_spikes, None
