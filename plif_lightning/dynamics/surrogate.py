"""Surrogate derivatives of the Heaviside step, by name.

Each is a density g of unit area, scaled by a width w [units of the membrane potential]:
sigma'(u) = g(u / w) / w with u = H - V_th. Its antiderivative sigma rises from 0 to 1 and is the
smooth function that replaces the step in the backward pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from plif_lightning.errors import UserError

SurrogateName = Literal["atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid"]


def _atan(z: Tensor) -> Tensor:
    return (math.pi * z).square_().add_(1).reciprocal_()


def _sigmoid(z: Tensor) -> Tensor:
    e = torch.exp(-z.abs())  # s(z) s(-z), because s (1 - s) cancels in float32 for large |z|
    return e / (1 + e).square_()


def _triangle(z: Tensor) -> Tensor:
    return (1 - z.abs()).clamp_(min=0)


def _rectangle(z: Tensor) -> Tensor:
    return (z.abs() < 0.5).to(z.dtype)


def _fast_sigmoid(z: Tensor) -> Tensor:
    return z.abs().add_(1).square_().reciprocal_().mul_(0.5)


# name -> g
_DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "atan": _atan,
    "sigmoid": _sigmoid,
    "triangle": _triangle,
    "rectangle": _rectangle,
    "fast_sigmoid": _fast_sigmoid,
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
        if self.name not in _DENSITIES:
            raise UserError(f"surrogate must be one of {', '.join(get_args(SurrogateName))}, got {self.name!r}.")
        if not (0 < self.width < math.inf):
            raise UserError(f"surrogate_width must be a positive number, got {self.width}.")

    def derivative(self, u: Tensor) -> Tensor:
        """sigma'(u) for u = H - V_th of any shape."""
        density = _DENSITIES[self.name]
        return density(u) if self.width == 1.0 else density(u / self.width) / self.width
