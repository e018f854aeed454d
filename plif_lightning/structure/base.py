"""What a part of the notation and a layer of a network answer for themselves.

`notation.parse` reads parts, which join the layers before them; `shapes.layer_specs` gives layers their places.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

from plif_lightning.structure.reader import Reader
from plif_lightning.structure.sizes import Shape


class Part(ABC):
    """What stands between two dashes of the notation.

    Attributes:
        pattern: how it begins; a complete word.
        example: for the error that names what may stand at a place.
        takes_dropout: it may follow DP.
    """

    pattern: ClassVar[re.Pattern[str]]
    example: ClassVar[str]
    takes_dropout: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        """The part that begins at a place with a match of its pattern, which has been taken."""

    @abstractmethod
    def join(self, group: "Group", at: int) -> None:
        """Add it to the layers before it; `at` is its place, for errors."""


class NotationBase:
    """A layer of the notation, or what a network makes of its output; `str()` writes it.

    Attributes:
        may_end: it may be the last layer of a network.
    """

    may_end: ClassVar[bool] = True

    def missing(self) -> str:
        """What it lacks when its sequence has ended; empty for nothing."""
        return ""


def substituted(layers: Any, kind: type[Any], change: Callable[[Any], Any]) -> Any:
    """A layer, or a tuple of layers, with what `change` makes of each layer of a kind in it; inner layers first."""
    if isinstance(layers, tuple):
        return tuple(substituted(layer, kind, change) for layer in layers)
    if not isinstance(layers, NotationBase):  # another value of a layer
        return layers
    fields: dict[str, Any] = {name: substituted(value, kind, change) for name, value in vars(layers).items()}
    layer: Any = replace(cast(Any, layers), **fields)
    return change(layer) if isinstance(layer, kind) else layer


def every_within(layers: Any) -> Iterator[NotationBase]:
    """The layers in a layer, or in a tuple of layers, in the order of the notation; inner layers first."""
    if isinstance(layers, tuple):
        for layer in layers:
            yield from every_within(layer)
    elif isinstance(layers, NotationBase):
        yield from every_within(tuple(vars(layers).values()))
        yield layers


class PlacedBase(NotationBase, ABC):
    """A layer that has a place in a network, with a name and shapes.

    Attributes:
        prefix: `conv` of the names conv1, conv2, ...
        takes_maps: its input is [C, H, W].
        needs_time_gradient: it learns from gradients that pass from a step to earlier ones.
    """

    prefix: ClassVar[str]
    takes_maps: ClassVar[bool] = False
    needs_time_gradient: ClassVar[bool] = False

    @abstractmethod
    def is_fired(self, spikes: bool) -> bool:
        """True if its output is what neurons fire: spikes, or counts of such as ILIF; `spikes`: its input is."""

    @abstractmethod
    def place(self, placing: Any, name: str, before: Shape, spikes: bool) -> Any:
        """The `LayerSpec` of the layer under a name, for an input [C, H, W] or [features]; `placing` places its own."""


class Group:
    """The layers of a sequence, to which BN, neurons, dropout and pools are attached.

    Attributes:
        is_outermost: it is no part of a residual block.
        layers: the layers so far.
        drop: place and probability (None: the network's) of dropout that waits for its FC layer.
        has_fc: an FC layer was added.
        has_ended: nothing may follow.
    """

    def __init__(self, reader: Reader, is_outermost: bool) -> None:
        self.reader, self.is_outermost = reader, is_outermost
        self.layers: list[NotationBase] = []
        self.drop: tuple[int, float | None] | None = None
        self.has_fc = self.has_ended = False

    @property
    def last(self) -> NotationBase | None:
        return self.layers[-1] if self.layers else None

    def add(self, at: int, part: Part) -> None:
        if self.has_ended:
            self.reader.refuse(at, "nothing may follow the votes, LI or LAST of a network")
        if not part.takes_dropout:
            self.require_no_drop()
        part.join(self, at)

    def append(self, at: int, layer: NotationBase, name: str) -> None:
        """Add a layer that stands before FC layers; `name` names it in an error."""
        if self.has_fc:
            self.reader.refuse(at, f"{name} must come before the first FC layer")
        self.layers.append(layer)

    def finish(self) -> tuple[NotationBase, ...]:
        self.require_no_drop()
        for layer in self.layers:
            if missing := layer.missing():
                self.reader.refuse(len(self.reader.text), missing)
        if self.is_outermost and not self.has_fc:
            end = len(self.reader.text)
            self.reader.refuse(end, "a network ends with FC layers: add -FC10, or -FC100-PLIF-APk10s10")
        if self.is_outermost and self.last is not None and not self.last.may_end:
            self.reader.refuse(len(self.reader.text), f"a layer must follow {self.last}")
        return tuple(self.layers)

    def require_no_drop(self) -> None:
        if self.drop is not None:
            self.reader.refuse(self.drop[0], "DP must stand before an FC layer")

    def require_outermost(self, at: int, noun: str) -> None:
        if not self.is_outermost:
            self.reader.refuse(at, f"{noun} cannot be a part of a residual block")
