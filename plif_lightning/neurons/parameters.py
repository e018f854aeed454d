"""Parameters of a neuron: declared in its class, within their range by construction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from plif_lightning.errors import UserError

Within = Literal["real", "positive", "unit"]
Distribution = Literal["uniform", "normal", "lognormal", "gamma", "exponential", "beta"]
# A number, or values that are drawn: {"gamma": [3, 5]}.
Initial = float | dict[Distribution, list[float]]
# Draws of values within a range, of which a distribution should give one at least.
_ATTEMPTS = 1000


def drawn(initial: Any, shape: Sequence[int], low: float, high: float, name: str) -> Any:
    """A number as it is; values that are drawn from a distribution, float32 of a shape, each above `low`, below `high`.

    Values outside are drawn again. The seed is PyTorch's.

    Args:
        initial: a number; or the name of a distribution of `numpy.random.Generator` and its arguments, such as
            {"gamma": [3, 5]} of shape 3 and scale 5.
        shape: of the values.
        low: lower end of their range.
        high: upper end.
        name: of the parameter, for messages.

    Raises:
        UserError: the distribution is unknown, or has no values in the range.
        TypeError: NumPy's distribution takes other arguments; ValueError: other values of them.
    """
    if not isinstance(initial, Mapping):
        return initial
    (kind, arguments), *others = initial.items() or [("", ())]
    random = np.random.default_rng(int(torch.randint(2**62, (), device="cpu")))
    if others or kind not in get_args(Distribution):
        raise UserError(f"{name} must be a number or one of {', '.join(get_args(Distribution))}, got {initial!r}.")
    values = np.full(shape, np.nan)
    for _ in range(_ATTEMPTS):
        outside = ~((low < values) & (values < high))
        if not outside.any():
            return torch.empty(*shape).copy_(torch.from_numpy(values))
        values[outside] = getattr(random, kind)(*arguments, size=int(outside.sum()))
    raise UserError(f"{name}={initial!r} gives hardly a value between {low} and {high}.")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a neuron's equations, see `learned` and `fixed`.

    As an attribute of a neuron it is its current value, a scalar or [channels].
    """

    initial: Any  # a number, or a value per channel [channels]
    within: Within = "real"
    is_learned: bool = True
    stored_as: str = ""
    ends: tuple[float, float] | None = None
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "stored_as", self.stored_as or f"{name}_raw")

    def at(self, value: Any, shape: Sequence[int]) -> "Parameter":
        """The same with another initial value: a number, drawn values (see `drawn`), or a tensor of this shape.

        Raises:
            UserError: the value lies outside the range.
        """
        low, high, expected = {
            "real": (-math.inf, math.inf, "a finite number"),
            "positive": (0.0, math.inf, "a positive number"),
            "unit": (0.0, 1.0, "between 0 and 1"),
        }[self.within]
        if self.ends is not None:
            (low, high), expected = self.ends, f"from {self.ends[0]:.4g} to {self.ends[1]:.4g}"
        value = drawn(value, shape, low, high, self.name)
        if isinstance(value, Tensor):
            return replace(self, initial=value)
        is_inside = low < value < high or (self.ends is not None and value in self.ends)
        if isinstance(value, bool) or not is_inside:
            raise UserError(f"{self.name} must be {expected}, got {value!r}.")
        return replace(self, initial=float(value))

    def raw(self, shape: list[int]) -> Tensor:
        """The tensor that is stored: any number in it is a value within the range."""
        start = self.initial
        if isinstance(start, Tensor):
            real = start.double()
            given = {"real": real, "positive": real.log(), "unit": -(1 / real - 1).log()}[self.within]
            return given.to(torch.get_default_dtype())
        if self.within != "real":
            start = math.log(start) if self.within == "positive" else -math.log(1 / start - 1)
        return torch.full(shape, start)

    def values(self, shape: list[int]) -> Tensor:
        """The initial value of each channel."""
        return self.initial.clone() if isinstance(self.initial, Tensor) else torch.full(shape, self.initial)

    def value(self, raw: Tensor) -> Tensor:
        """The parameter, from the tensor that is stored."""
        if self.within == "unit":
            return torch.sigmoid(raw)
        if self.within == "positive":
            return torch.exp(raw)
        return raw if self.ends is None else raw.clamp(*self.ends)

    def __get__(self, neuron: Any, owner: type) -> Any:
        return self if neuron is None else neuron.value_of(self.name)

    def __set__(self, neuron: Any, value: Any) -> None:
        kind, name = type(neuron).__name__, self.name
        raise UserError(f"{name} is a parameter of {kind}: give it when the layer is made, {kind}({name}=...).")


def learned(
    initial: float, within: Within = "real", stored_as: str = "", ends: tuple[float, float] | None = None
) -> Any:
    """Declare a learned parameter of a neuron.

    Args:
        initial: its value before training.
        within: real (any number), positive, or unit (between 0 and 1); it never leaves this range.
        stored_as: name of the tensor in the layer; by default the parameter's with `_raw`.
        ends: lowest and highest value of a real parameter. Beyond an end it is the end, without gradient.
    """
    return Parameter(initial, within, stored_as=stored_as, ends=ends)


def fixed(initial: float, within: Within = "real", stored_as: str = "") -> Any:
    """Declare a constant of a neuron, which its layer's argument `learn` can make a learned parameter.

    Args:
        initial: its value.
        within: real (any number), positive, or unit (between 0 and 1).
        stored_as: name of the tensor in the layer; by default the constant's with `_raw`.
    """
    return Parameter(initial, within, is_learned=False, stored_as=stored_as)
