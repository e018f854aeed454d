"""Surrogate derivatives of the Heaviside step, by name.

Each is a density g of unit area, scaled by a width w [units of the membrane potential]:
sigma'(u) = g(u / w) / w with u = H - V_th. Its antiderivative sigma rises from 0 to 1 and is the
smooth function that replaces the step in the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.errors import UserError, require_one_of

SurrogateName = Literal["atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid"]


# name -> g, as an equation of z = u / width (see `dynamics/expression.py`).
_DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "atan": lambda z: 1 / ((math.pi * z).square() + 1),
    "sigmoid": lambda z: (-z.abs()).exp() / (1 + (-z.abs()).exp()).square(),  # s (1 - s) cancels for large |z|
    "triangle": lambda z: (1 - z.abs()).clamp(min=0),
    "rectangle": lambda z: (z.abs() < 0.5).to(z.dtype),
    "fast_sigmoid": lambda z: 0.5 / (z.abs() + 1).square(),
}


@dataclass(frozen=True)
class Surrogate:
    """A surrogate derivative sigma'(u) = g(u / width) / width.

    | name | g(z) | sigma, with z = u / width |
    |---|---|---|
    | `atan` | 1 / (1 + (pi z)^2) | arctan(pi z) / pi + 1/2 |
    | `sigmoid` | s(z) s(-z) | s(z) = 1 / (1 + exp(-z)) |
    | `triangle` | max(0, 1 - abs(z)) | (1 + z)^2 / 2 on [-1, 0], 1 - (1 - z)^2 / 2 on [0, 1] |
    | `rectangle` | 1 where abs(z) < 1/2 | z + 1/2, clamped to [0, 1] |
    | `fast_sigmoid` | 1 / (2 (1 + abs(z))^2) | 1/2 + z / (2 (1 + abs(z))) |

    Names in other libraries: SpikingJelly's SoftSign(alpha) is `fast_sigmoid` of width 1 / alpha; snnTorch's
    fast_sigmoid(slope) is the same without normalisation to unit area, and so is Norse's SuperSpike at width 1 (Norse
    1.1 ignores its alpha). BrainCog's QGateGrad(alpha) is `triangle` of width 1 / alpha; snnTorch's `triangular` is a
    different function, 1 below the threshold and -1 above it.

    Args:
        name: shape of the surrogate; the paper uses `atan` with width 1.
        width: scale along the membrane potential, > 0.

    Raises:
        UserError: the name is unknown or the width is not positive and finite.

    Source: Fang et al. 2021, S-Sec. 6 (`atan`); Zenke and Ganguli 2018 (`fast_sigmoid`), which Herranz-Celotti and
    Rouat 2022, "Surrogate Gradient Design for LIF networks", found best on their tasks and networks, which differ from
    this paper's; Neftci et al. 2019 (the others).

    >>> Surrogate("atan").derivative(torch.tensor([0.0]))
    tensor([1.])
    """

    name: SurrogateName = "atan"
    width: float = 1.0

    def __post_init__(self) -> None:
        require_one_of("surrogate", self.name, SurrogateName)
        if not 0 < self.width < math.inf:
            raise UserError(f"surrogate_width must be a positive number, got {self.width}.")

    def derivative(self, u: Tensor) -> Tensor:
        """sigma'(u) for u = H - V_th of any shape."""
        density = _DENSITIES[self.name]
        return density(u) if self.width == 1.0 else density(u / self.width) / self.width

    def spike(self, u: Tensor) -> Tensor:
        """1 where u = H - V_th >= 0, else 0, in the type of u; its gradient is `derivative`.

        >>> u = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
        >>> Surrogate("triangle").spike(u)
        tensor([0., 1., 1.], grad_fn=<SpikeBackward>)
        """
        return spike(u, 0.0, self)


class Spike(torch.autograd.Function):
    """The step function with a surrogate gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, threshold: Tensor | float, surrogate: Surrogate) -> Tensor:
        return torch.ge(h, threshold).to(h.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        h, threshold, ctx.surrogate = inputs
        learned = isinstance(threshold, Tensor)
        ctx.save_for_backward(h, threshold if learned else None)
        ctx.threshold = None if learned else threshold

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold = ctx.saved_tensors
        by_h = ctx.surrogate.derivative(h - (ctx.threshold if threshold is None else threshold)) * grad
        return by_h, None if threshold is None else -by_h.sum_to_size(threshold.shape), None


def spike(h: Tensor, threshold: Tensor | float, surrogate: Surrogate) -> Tensor:
    """1 where a potential reaches the threshold, else 0; differentiated as sigma(h - threshold)."""
    return Spike.apply(h, threshold, surrogate)
