"""Delays between two time-steps on a CPU, and FC layers of delayed spikes, with gradients.

A spike of a channel with the whole delay k has the share 1 - late k steps later, and the share late in the step after
it. An FC layer of them is the sum of two of spikes, which are those k steps later: with the weight times 1 - late, and
a step later with the weight times late. So nothing is multiplied where nothing spiked, and the gradient of the delay
follows from those of the two weights.
"""

from typing import Any

import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.kernels import loops
from plif_lightning.kernels.bits import array_of_bits, pack_spikes
from plif_lightning.kernels.dense import product
from plif_lightning.kernels.layout import threads_for
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.sparse import linear_of_events, linear_weight_of_bits


class _Between(torch.autograd.Function):
    """Delays between two steps by the loops of `kernels.cpu_delay`, for x [T, P, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, on_time: Tensor, late: Tensor) -> Tensor:
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device="cpu")
        ctx.save_for_backward(x, whole, on_time, late)
        arrays = [tensor.numpy() for tensor in (x, whole, on_time, late, out)]
        parallel(loops.cpu_delay.forward, x.shape[1], threads_for(x.numel()), *arrays)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, whole, on_time, late = ctx.saved_tensors
        grad = grad.contiguous()
        shares = torch.zeros(torch.get_num_threads(), 2, len(whole), dtype=torch.float64, device="cpu")
        arrays = [tensor.numpy() for tensor in (grad, x, whole, shares)]
        parallel(loops.cpu_delay.backward_shares, x.shape[1], threads_for(x.numel()), *arrays)
        of_shares = shares.sum(0).to(late.dtype)
        grad_x = _before_delay(grad, whole, on_time, late) if ctx.needs_input_grad[0] else None
        return grad_x, None, of_shares[0], of_shares[1]


def _before_delay(grad: Tensor, whole: Tensor, on_time: Tensor, late: Tensor) -> Tensor:
    """The gradient [T, P, C] of what was delayed, from that of the delayed values."""
    grad_x = torch.empty_like(grad)
    arrays = [tensor.numpy() for tensor in (grad, whole, on_time, late, grad_x)]
    parallel(loops.cpu_delay.backward_input, grad.shape[1], threads_for(grad.numel()), *arrays)
    return grad_x


@outside_compile
def delay_between_steps(x: Tensor, whole: Tensor, late: Tensor) -> Tensor:
    """x [T, P, C] `whole` + `late` time-steps later; zeros before the start.

    Args:
        x: on a CPU.
        whole: the whole part of each channel's delay [C], int64.
        late: share of a value in the step after it [C], in the type of x.
    """
    y: Tensor = _Between.apply(x, whole, 1 - late, late)
    return y


class _LinearOfDelayed(torch.autograd.Function):
    """FC layer without bias of delayed spikes; saves a bit for each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bits: Tensor, whole: Tensor, on_time: Tensor, late: Tensor, value: float
    ) -> Tensor:
        steps, rows, _ = x.shape
        bits = bits.view(steps, rows, -1)
        delayed = torch.zeros(bits.shape, dtype=torch.int64, device="cpu")
        arrays = array_of_bits(bits), whole.numpy(), array_of_bits(delayed)
        parallel(loops.cpu_delay.delay_bits, rows, threads_for(bits.numel()), *arrays)
        ctx.save_for_backward(weight, delayed, whole, on_time, late)
        ctx.value = value
        out = linear_of_events(delayed.flatten(0, 1), weight * (on_time * value))
        linear_of_events(delayed[:-1].flatten(0, 1), weight * (late * value), added=out[rows:])
        return out.view(steps, rows, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, delayed, whole, on_time, late = ctx.saved_tensors
        inputs, grad, grad_x = weight.shape[1], grad.contiguous(), None
        if ctx.needs_input_grad[0]:
            of_delayed = product(grad.flatten(0, 1), weight).view(*grad.shape[:2], inputs)
            grad_x = _before_delay(of_delayed, whole, on_time, late)
        in_time = linear_weight_of_bits(delayed.flatten(0, 1), grad.flatten(0, 1), inputs)
        after = linear_weight_of_bits(delayed[:-1].flatten(0, 1), grad[1:].flatten(0, 1), inputs)
        of_shares = [ctx.value * (weight * part).sum(0) for part in (in_time, after)]
        grad_weight = in_time.mul_(on_time).addcmul_(after, late).mul_(ctx.value)
        return grad_x, grad_weight, None, None, *of_shares, None


@outside_compile
def linear_of_delayed(x: Tensor, weight: Tensor, whole: Tensor, late: Tensor, value: float = 1.0) -> Tensor | None:
    """`linear(delay_between_steps(x, whole, late), weight)` of spikes; None if x has other values.

    Args:
        x: zeros and `value`s [T, P, C], float32, on a CPU.
        weight: [O, C], float32.
        whole, late: see `delay_between_steps`.
        value: of a spike: 1 / (1 - p) after dropout.
    """
    bits = pack_spikes(x.flatten(0, 1), value)
    if not bits.only_spikes:
        return None
    y: Tensor = _LinearOfDelayed.apply(x, weight, bits.words, whole, 1 - late, late, value)
    return y
