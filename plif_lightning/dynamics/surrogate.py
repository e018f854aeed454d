"""Surrogate derivatives of the Heaviside step: functions of u = H - V_th and a width, by name or import path."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.expression import Value, record
from plif_lightning.errors import UserError, require_one_of

SurrogateName = Literal["atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid", "boxcar"]
Derivative = Callable[[Any, float], Any]
if TYPE_CHECKING:
    AnySurrogate = str | Derivative
else:
    AnySurrogate = SurrogateName | str  # on the command line, where the names are shown
_F = TypeVar("_F", bound=Derivative)


def surrogate(function: _F) -> _F:
    """Declare a function (u, width) of a module a surrogate derivative; `module.function` is its name in settings.

    It is written like an equation of neurons, with sums, products and functions of PyTorch, and compiled like one.

    Args:
        function: sigma'(u) for u = H - V_th of any shape, and the width [units of the potential].

    >>> @surrogate
    ... def superspike(u, width):
    ...     return 1 / (1 + u.abs() / width).square()
    """
    function.is_surrogate = True  # type: ignore[attr-defined]
    return function


def _density(g: Callable[[Any], Any]) -> Derivative:
    """The derivative g(u / width) / width of a density g of unit area."""
    return lambda u, width: g(u) if width == 1.0 else g(u / width) / width


_DERIVATIVES: dict[str, Derivative] = {
    "atan": _density(lambda z: 1 / ((math.pi * z).square() + 1)),
    # s (1 - s) cancels for large |z|
    "sigmoid": _density(lambda z: (-z.abs()).exp() / (1 + (-z.abs()).exp()).square()),
    "triangle": _density(lambda z: (1 - z.abs()).clamp(min=0)),
    "rectangle": _density(lambda z: (z.abs() < 0.5).to(z.dtype)),
    "fast_sigmoid": _density(lambda z: 0.5 / (z.abs() + 1).square()),
    "boxcar": lambda u, width: (u.abs() < width / 2).to(u.dtype),
}


def surrogate_name(name: AnySurrogate) -> str:
    """The name of a surrogate, or the import path of a function that is declared one.

    Raises:
        UserError: there is none of this name, or a function cannot be found again under its name.
    """
    if callable(name):
        path = f"{name.__module__}.{name.__qualname__}"
        if _imported(path) is not name:
            raise UserError(f"surrogate {path} must be a function of a module, so that checkpoints can name it.")
        return path
    if "." not in str(name):
        require_one_of("surrogate", name, SurrogateName)
    _imported(name)
    return name


def _imported(name: str) -> Derivative:
    """The function of a name. Nothing that a file names is called but functions that are declared surrogates."""
    if name in get_args(SurrogateName):
        return _DERIVATIVES[name]
    module, _, attribute = name.rpartition(".")
    try:
        function = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UserError(f"surrogate {name} cannot be imported ({error}): run the command where it lies.") from error
    if not getattr(function, "is_surrogate", False):
        raise UserError(f"surrogate {name} is not declared one: write @plif_lightning.surrogate above the function.")
    return function


@dataclass(frozen=True)
class Surrogate:
    """A surrogate derivative sigma'(u) by its name and width.

    Densities g of unit area give sigma'(u) = g(u / width) / width, so that sigma, which replaces the step in the
    backward pass, rises from 0 to 1:

    | name | g(z) | sigma, with z = u / width |
    |---|---|---|
    | `atan` | 1 / (1 + (pi z)^2) | arctan(pi z) / pi + 1/2 |
    | `sigmoid` | s(z) s(-z) | s(z) = 1 / (1 + exp(-z)) |
    | `triangle` | max(0, 1 - abs(z)) | (1 + z)^2 / 2 on [-1, 0], 1 - (1 - z)^2 / 2 on [0, 1] |
    | `rectangle` | 1 where abs(z) < 1/2 | z + 1/2, clamped to [0, 1] |
    | `fast_sigmoid` | 1 / (2 (1 + abs(z))^2) | 1/2 + z / (2 (1 + abs(z))) |

    `boxcar` is 1 where abs(u) < width / 2, a rectangle of height 1 for any width, as in STBP's code (Wu et al. 2018)
    and many later ones. Functions of your own are declared by `surrogate`.

    Names in other libraries: SpikingJelly's SoftSign(alpha) is `fast_sigmoid` of width 1 / alpha; snnTorch's
    fast_sigmoid(slope) is the same without normalisation to unit area, and so is Norse's SuperSpike at width 1 (Norse
    1.1 ignores its alpha). BrainCog's QGateGrad(alpha) is `triangle` of width 1 / alpha; snnTorch's `triangular` is a
    different function, 1 below the threshold and -1 above it.

    Args:
        name: shape of the surrogate, or a declared function or its import path; the paper uses `atan` with width 1.
        width: scale along the membrane potential, > 0.

    Raises:
        UserError: the name is unknown or the width is not positive and finite.

    Source: Fang et al. 2021, S-Sec. 6 (`atan`); Zenke and Ganguli 2018 (`fast_sigmoid`), which Herranz-Celotti and
    Rouat 2022, "Surrogate Gradient Design for LIF networks", found best on their tasks and networks, which differ from
    this paper's; Neftci et al. 2019 (the others).

    >>> Surrogate("atan").derivative(torch.tensor([0.0]))
    tensor([1.])
    """

    name: AnySurrogate = "atan"
    width: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", surrogate_name(self.name))
        if not 0 < self.width < math.inf:
            raise UserError(f"surrogate_width must be a positive number, got {self.width}.")

    def derivative(self, u: Tensor) -> Tensor:
        """sigma'(u) for u = H - V_th of any shape."""
        function = _imported(cast("str", self.name))
        derivative: Tensor = (
            record(function, u=u, width=self.width) if isinstance(u, Value) else function(u, self.width)
        )
        return derivative

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
