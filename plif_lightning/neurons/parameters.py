"""Parameters of a neuron: declared in its class, within their range by construction."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

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
    name: str = ""

    def __post_init__(self) -> None:
        if self.within not in get_args(Within):
            raise UserError(f"within must be one of {', '.join(get_args(Within))}, got {self.within!r}.")

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    def at(self, value: Any) -> "Parameter":
        """The same with another initial value.

        Raises:
            UserError: the value lies outside the range.
        """
        ranges = {"real": (-math.inf, math.inf), "positive": (0.0, math.inf), "unit": (0.0, 1.0)}
        low, high = ranges[self.within]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
            expected = {"real": "a finite number", "positive": "a positive number", "unit": "between 0 and 1"}
            raise UserError(f"{self.name} must be {expected[self.within]}, got {value!r}.")
        return replace(self, initial=float(value))

    def raw(self, shape: list[int]) -> Tensor:
        """The tensor that is stored: any number in it is a value within the range."""
        start = self.initial
        if self.within != "real":
            start = math.log(start) if self.within == "positive" else math.log(start / (1 - start))
        return torch.full(shape, start)

    def value(self, raw: Tensor) -> Tensor:
        """The parameter, from the tensor that is stored."""
        if self.within == "unit":
            return torch.sigmoid(raw)
        return raw if self.within == "real" else torch.exp(raw)

    def __get__(self, neuron: Any, owner: type) -> Any:
        return self if neuron is None else neuron.value_of(self.name)

    def __set__(self, neuron: Any, value: Any) -> None:
        kind = type(neuron).__name__
        raise UserError(
            f"{self.name} is a parameter of {kind}: give it when the layer is made, as {kind}({self.name}=...). It is "
            f"stored as {self.name}_raw where it is learned, as {self.name}_value where it is fixed."
        )


def learned(initial: float, within: Within = "real") -> Any:
    """Declare a learned parameter of a neuron.

    Args:
        initial: its value before training.
        within: real (any number), positive, or unit (between 0 and 1); it never leaves this range.
    """
    return Parameter(initial, within)


def fixed(initial: float, within: Within = "real") -> Any:
    """Declare a constant of a neuron, which can be learned too (`learn`); arguments as `learned`."""
    return Parameter(initial, within, is_learned=False)
