"""Parameters of a neuron: declared in its class, within their range by construction."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from plif_lightning.errors import UserError

Within = Literal["real", "positive", "unit"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a neuron's equations, see `learned` and `fixed`.

    As an attribute of a neuron it is its current value, a scalar or [channels].
    """

    initial: float
    within: Within = "real"
    is_learned: bool = True
    stored_as: str = ""
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "stored_as", self.stored_as or f"{name}_raw")

    def at(self, value: Any) -> "Parameter":
        """The same with another initial value.

        Raises:
            UserError: the value lies outside the range.
        """
        low, high, expected = {
            "real": (-math.inf, math.inf, "a finite number"),
            "positive": (0.0, math.inf, "a positive number"),
            "unit": (0.0, 1.0, "between 0 and 1"),
        }[self.within]
        if isinstance(value, bool) or not low < value < high:
            raise UserError(f"{self.name} must be {expected}, got {value!r}.")
        return replace(self, initial=float(value))

    def raw(self, shape: list[int]) -> Tensor:
        """The tensor that is stored: any number in it is a value within the range."""
        start = self.initial
        if self.within != "real":
            start = math.log(start) if self.within == "positive" else -math.log(1 / start - 1)
        return torch.full(shape, start)

    def value(self, raw: Tensor) -> Tensor:
        """The parameter, from the tensor that is stored."""
        if self.within == "unit":
            return torch.sigmoid(raw)
        return raw if self.within == "real" else torch.exp(raw)

    def __get__(self, neuron: Any, owner: type) -> Any:
        return self if neuron is None else neuron.value_of(self.name)

    def __set__(self, neuron: Any, value: Any) -> None:
        kind, name = type(neuron).__name__, self.name
        raise UserError(f"{name} is a parameter of {kind}: give it when the layer is made, {kind}({name}=...).")


def learned(initial: float, within: Within = "real", stored_as: str = "") -> Any:
    """Declare a learned parameter of a neuron.

    Args:
        initial: its value before training.
        within: real (any number), positive, or unit (between 0 and 1); it never leaves this range.
        stored_as: name of the tensor in the layer; by default the parameter's with `_raw`.
    """
    return Parameter(initial, within, stored_as=stored_as)


def fixed(initial: float, within: Within = "real", stored_as: str = "") -> Any:
    """Declare a constant of a neuron, which its layer's argument `learn` can make a learned parameter.

    Args:
        initial: its value.
        within: real (any number), positive, or unit (between 0 and 1).
        stored_as: name of the tensor in the layer; by default the constant's with `_raw`.
    """
    return Parameter(initial, within, is_learned=False, stored_as=stored_as)
