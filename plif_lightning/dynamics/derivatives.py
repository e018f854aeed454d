"""Errors for second derivatives of custom backward passes."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plif_lightning.errors import UserError


class _Undifferentiable(torch.autograd.Function):
    """Passes on the first `number` tensors, as if they depended on all; its backward pass raises an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(number: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in tensors[:number])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UserError(
            "the gradient of spiking neurons cannot be differentiated again (create_graph=True, as for a penalty on "
            "gradients): surrogate gradients have no second derivative here."
        )


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorate the `backward` of an `autograd.Function` so that differentiating it again raises an error.

    PyTorch's decorator of the same name only checks the incoming gradients. If these are constant, as for a sum, it
    silently treats a gradient that depends on saved tensors as constant.
    """

    @functools.wraps(backward)
    def check_gradient_support(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():  # compiled graphs raise this error themselves
            return backward(ctx, *gradients)
        with torch.no_grad():
            first_order = backward(ctx, *gradients)
        depends_on = (*gradients, *ctx.saved_tensors) if torch.is_grad_enabled() else ()
        if not any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in depends_on):
            return first_order
        return _Undifferentiable.apply(len(first_order), *first_order, *depends_on)

    return check_gradient_support
