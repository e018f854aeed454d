"""Gradients that cannot be differentiated again."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plif_lightning.errors import UserError


class _Undifferentiable(torch.autograd.Function):
    """The identity, whose gradient is an error."""

    @staticmethod
    def forward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if gradient is None else gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UserError(
            "the gradient of spiking neurons cannot be differentiated again (create_graph=True, as for a penalty on "
            "gradients): surrogate gradients have no second derivative here."
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the second derivative of an `autograd.Function` an error; decorates its `backward`.

    PyTorch's decorator of this name looks at the incoming gradients alone. Where those are constants, as those of a
    sum are, a gradient that depends on what was saved in the forward pass comes out as a constant, without a word.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.compiler.is_compiling():  # compiled graphs refuse second derivatives themselves
            return backward(ctx, *gradients)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        depends_on = (*gradients, *ctx.saved_tensors) if torch.is_grad_enabled() else ()
        if not any(isinstance(one, Tensor) and one.requires_grad for one in depends_on):
            return found
        parts = found if isinstance(found, tuple) else (found,)
        attached = _Undifferentiable.apply(*(None if p is None else p.detach().requires_grad_() for p in parts))
        return attached if isinstance(found, tuple) else attached[0]

    return checked
