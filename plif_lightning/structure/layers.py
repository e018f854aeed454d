"""Layers of a network as plain values: how each is read, written, placed, and what it makes of spikes."""

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args

from plif_lightning.errors import UserError
from plif_lightning.structure.base import Group, NotationBase, Part, PlacedBase, every_within, substituted
from plif_lightning.structure.reader import ArgumentValue, Reader, written_value
from plif_lightning.structure.sizes import Shape, Size, half_of, pair, window_count, written_size

L = TypeVar("L", bound=NotationBase)
Combine = Literal["ADD", "AND", "IAND"]
# Neurons that have a name: their classes in `neurons.published`; on the command line in lower case.
NEURONS = (
    *("PLIF", "LIF", "IF", "CLIF", "ALIF", "AdLIF", "SE_AdLIF", "QIF", "EIF", "KLIF", "Synaptic", "GLIF", "ILIF"),
)


class LayerSpec(NamedTuple):
    """A layer of a network.

    Attributes:
        name: conv1, conv2, ... in the order of the notation; res1, pool1, neuron1, fc1 likewise.
        layer: the layer.
        before: shape of a sample's input at a step, (C, H, W) or (features,).
        after: shape of its output.
        branch: layers of a residual block's branch.
        shortcut: layers of its shortcut.
        from_neurons: the input is what neurons fire: spikes, or the counts of such as ILIF.
    """

    name: str
    layer: "PlacedLayer"
    before: Shape
    after: Shape
    branch: tuple["LayerSpec", ...] = ()
    shortcut: tuple["LayerSpec", ...] = ()
    from_neurons: bool = False


class Placing:
    """Numbers the layers of each prefix, in the order of the notation.

    Attributes:
        input: shape of the network's input.
    """

    def __init__(self, shape: Shape) -> None:
        self.input, self.numbers = shape, dict[str, int]()

    def name(self, prefix: str) -> str:
        self.numbers[prefix] = self.numbers.get(prefix, 0) + 1
        return f"{prefix}{self.numbers[prefix]}"

    def specs_of(self, layers: Iterable["NotationLayer"], shape: Shape, spikes: bool) -> Iterator[LayerSpec]:
        """Layers in sequence, for an input of a shape; `spikes`: the input is."""
        for layer in layers:
            if not isinstance(layer, PlacedBase):
                continue
            if layer.takes_maps and len(shape) != 3:
                raise UserError(
                    f"{layer} takes maps [C, H, W], and the data has features {list(shape)}: begin with an FC layer, "
                    "such as RFC256-PLIF, or give maps."
                )
            spec = layer.place(self, self.name(layer.prefix), shape, spikes)
            yield spec._replace(from_neurons=spikes)
            shape, spikes = spec.after, layer.is_fired(spikes)

    def require_nonempty(self, operation: str, before: Shape, after: Shape) -> Shape:
        """Refuse a map that shrinks to nothing."""
        if min(after) < 1:
            height, width = self.input[1:]
            raise UserError(
                f"{operation} leaves nothing of a map of {before[1]}x{before[2]}, from an input of {height}x{width}: "
                "take fewer pools or strides."
            )
        return after


def _call(name: str, arguments: Iterable[tuple[str, ArgumentValue]]) -> str:
    """A name with its arguments, `LIF(init_tau=3.0)`; alone where it has none."""
    values = ",".join(f"{argument}={written_value(value)}" for argument, value in arguments)
    return f"{name}({values})" if values else name


@dataclass(frozen=True)
class Norm(Part):
    """BN of the convolution or FC layer before it."""

    pattern = re.compile("BN")
    example = "BN"

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        return cls()

    def join(self, group: Group, at: int) -> None:
        last = group.last
        if not isinstance(last, (Conv, FC)) or last.norm or last.neurons:
            group.reader.refuse(at, "BN must follow a convolution or an FC layer")
        group.layers[-1] = replace(last, norm=True)


@dataclass(frozen=True)
class Drop(Part):
    """Dropout before an FC layer: `DP`, `DP(0.2)`; p is None for that of the network."""

    pattern = re.compile("DP")
    example = "DP"
    p: float | None

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        return cls(reader.probability() if reader.take("(") else None)

    def join(self, group: Group, at: int) -> None:
        group.require_outermost(at, "DP")
        group.drop = at, self.p


@dataclass(frozen=True)
class Neurons(PlacedBase, Part):
    """Neurons by their class, or its import path, with arguments: `PLIF`, `LIF(init_tau=3.0)`."""

    prefix = "neuron"
    pattern = re.compile(r"[A-Za-z_][\w.]*")
    example = "neurons (PLIF)"
    name: str
    arguments: tuple[tuple[str, ArgumentValue], ...] = ()

    def __str__(self) -> str:
        return _call(self.name, self.arguments)

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        name = match[0]
        if name not in NEURONS and "." not in name:
            # Other parts that are words have their names as patterns.
            words = [word for part in PARTS for word in part.pattern.pattern.split("|") if word.isalpha()]
            names = (*NEURONS, *words)
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            near = near or [known for known in NEURONS if known.lower() == name.lower()]
            hint = f"did you mean {near[0]}" if near else f"expected {expected_parts()}"
            reader.refuse(at, f"{name} is no layer: {hint}")
        return cls(name, reader.arguments())

    def join(self, group: Group, at: int) -> None:
        last = group.last
        if isinstance(last, (Conv, FC, Residual)) and last.neurons is None:
            group.layers[-1] = replace(last, neurons=self)
        elif group.has_fc:
            group.reader.refuse(at, "neurons must follow an FC layer")
        else:
            group.layers.append(self)

    def place(self, placing: Placing, name: str, before: Shape, spikes: bool) -> LayerSpec:
        return LayerSpec(name, self, before, before)

    def is_fired(self, spikes: bool) -> bool:
        return True


@dataclass(frozen=True)
class Pool(PlacedBase, Part):
    """A pool of maps: `MPk2s2`, `APk3s2p1`; `AP` over the full map if kernel is None."""

    prefix = "pool"
    takes_maps = True
    pattern = re.compile(r"(MP|AP)(?:k(\d+(?:x\d+)?)s(\d+(?:x\d+)?)(?:p(\d+(?:x\d+)?))?)?")
    example = "a pool (MPk2s2)"
    kind: Literal["MP", "AP"]
    kernel: Size | None = None
    stride: Size = 1
    padding: Size = 0

    def __str__(self) -> str:
        if self.kernel is None:
            return self.kind
        padding = f"p{written_size(self.padding)}" if self.padding else ""
        return f"{self.kind}k{written_size(self.kernel)}s{written_size(self.stride)}{padding}"

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        kind: Any = match[1]
        kernel, stride = reader.size(at, match[2], "the window"), reader.size(at, match[3], "the stride")
        if kernel is None or stride is None:
            return cls(kind)
        padding = reader.size(at, match[4], "the padding", minimum=0) or 0
        if any(2 * p > k for k, p in zip(pair(kernel), pair(padding), strict=True)):
            reader.refuse(at, "the padding of a pool must be at most half of its window")
        return cls(kind, kernel, stride, padding)

    def join(self, group: Group, at: int) -> None:
        last = group.last
        if group.has_fc:
            group.layers.append(self._as_votes(group, at))
            group.has_ended = True
        elif isinstance(last, Conv) and last.neurons is not None and last.pool is None and self.kernel is not None:
            group.layers[-1] = replace(last, pool=self)
        else:
            group.layers.append(self)

    def _as_votes(self, group: Group, at: int) -> "Votes":
        """The voting layer that a pool behind the last FC layer is."""
        k, last, refuse = self.kernel, group.last, group.reader.refuse
        if self.kind != "AP" or not isinstance(k, int) or self.stride != k or self.padding:
            refuse(at, "after FC layers only the votes may follow, such as APk10s10 for 10 neurons a class")
        if not isinstance(last, FC) or last.neurons is None:
            refuse(at, "the votes must follow neurons: FC100-PLIF-APk10s10; a readout FC10 needs none")
        if last.features % k:
            refuse(at, f"the votes do not divide: the {last.features} of FC{last.features} are no multiple of {k}")
        return Votes(k)

    def place(self, placing: Placing, name: str, before: Shape, spikes: bool) -> LayerSpec:
        return LayerSpec(name, self, before, self.output_shape(placing, name, before))

    def output_shape(self, placing: Placing, name: str, before: Shape) -> Shape:
        if self.kernel is None:
            return before[0], 1, 1
        after = (before[0], *window_count(before, self.kernel, self.stride, self.padding))
        return placing.require_nonempty(f"{self} of {name}", before, after)

    def is_fired(self, spikes: bool) -> bool:
        return spikes and self.kind == "MP"


@dataclass(frozen=True)
class Conv(PlacedBase, Part):
    """A convolution with its BN, neurons and pool: `c128k3s1-BN-PLIF-MPk2s2`. It has a bias if no BN follows.

    Attributes:
        padding: None for half the kernel, which keeps the size of a map at stride 1.
        norm: BN follows.
        neurons: None for a convolution without spiking output.
        pool: of the neurons' spikes; None without neurons.
    """

    prefix = "conv"
    takes_maps = True
    pattern = re.compile(
        r"c(\d+)k(\d+(?:x\d+)?)(?:s(\d+(?:x\d+)?))?(?:p(\d+(?:x\d+)?))?(?:d(\d+(?:x\d+)?))?(?:g(\d+))?"
    )
    example = "a convolution (c128k3s1)"
    channels: int
    kernel: Size
    stride: Size = 1
    padding: Size | None = None
    dilation: Size = 1
    groups: int = 1
    norm: bool = True
    neurons: Neurons | None = None
    pool: Pool | None = None

    @property
    def convolution(self) -> str:
        """The convolution alone: `c128k3s1`."""
        more = [("p", self.padding, None), ("d", self.dilation, 1), ("g", self.groups, 1)]
        options = "".join(f"{letter}{written_size(v)}" for letter, v, default in more if v != default and v is not None)
        return f"c{self.channels}k{written_size(self.kernel)}s{written_size(self.stride)}{options}"

    @property
    def notation_without_pool(self) -> str:
        """All but the pool."""
        suffix = [] if self.neurons is None else [str(self.neurons)]
        return "-".join([self.convolution, *(["BN"] if self.norm else []), *suffix])

    def __str__(self) -> str:
        return self.notation_without_pool if self.pool is None else f"{self.notation_without_pool}-{self.pool}"

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        channels, kernel, stride, padding, dilation, groups = match.groups()
        k = reader.size(at, kernel, "the kernel")
        assert k is not None
        p = reader.size(at, padding, "the padding", minimum=0)
        return cls(
            reader.positive(at, channels, "channels"),
            k,
            reader.size(at, stride, "the stride") or 1,
            None if p == half_of(k) else p,
            reader.size(at, dilation, "the dilation") or 1,
            1 if groups is None else reader.positive(at, groups, "groups"),
            norm=False,
        )

    def join(self, group: Group, at: int) -> None:
        group.append(at, self, str(self))

    @property
    def explicit_padding(self) -> Size:
        """The padding, half the kernel if none is given."""
        return half_of(self.kernel) if self.padding is None else self.padding

    def convolved_shape(self, before: Shape) -> Shape:
        """The shape of a map behind the convolution, before the pool."""
        return self.channels, *window_count(before, self.kernel, self.stride, self.explicit_padding, self.dilation)

    def place(self, placing: Placing, name: str, before: Shape, spikes: bool) -> LayerSpec:
        for side, number in (("output", self.channels), ("input", before[0])):
            if number % self.groups:
                raise UserError(
                    f"{name} ({self.convolution}): {self.groups} groups do not divide its {number} {side} channels."
                )
        shape = placing.require_nonempty(f"{name} ({self.convolution})", before, self.convolved_shape(before))
        if self.pool is not None:
            shape = self.pool.output_shape(placing, name, shape)
        return LayerSpec(name, self, before, shape)

    def is_fired(self, spikes: bool) -> bool:
        return self.neurons is not None and (self.pool is None or self.pool.is_fired(True))


@dataclass(frozen=True)
class FC(PlacedBase, Part):
    """An FC layer with its dropout, BN and neurons: `DP-FC2048-PLIF`, `FC128-BN-PLIF`.

    Attributes:
        bias: `FC10b`.
        dropout: drop probability before it; None for `DP`, that of the network; 0 for none.
        neurons: None for a readout without spikes.
        recurrent: `RFC10`: its neurons also see their spikes of the previous step.
        norm: BN follows, of the product with its input alone.
    """

    prefix = "fc"
    pattern = re.compile(r"(R?)FC(\d+)(b?)")
    example = "FC100"
    takes_dropout = True
    features: int
    bias: bool = False
    dropout: float | None = 0.0
    neurons: Neurons | None = None
    recurrent: bool = False
    norm: bool = False

    def __str__(self) -> str:
        drop = "DP" if self.dropout is None else f"DP({self.dropout})"
        fc = f"{'R' if self.recurrent else ''}FC{self.features}{'b' if self.bias else ''}"
        parts = [*([] if self.dropout == 0 else [drop]), fc, *(["BN"] if self.norm else [])]
        return "-".join([*parts, *([] if self.neurons is None else [str(self.neurons)])])

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        return cls(reader.positive(at, match[2], "features"), bool(match[3]), recurrent=bool(match[1]))

    def join(self, group: Group, at: int) -> None:
        group.require_outermost(at, "an FC layer")
        if isinstance(group.last, FC) and group.last.neurons is None:
            before = f"FC{group.last.features} before it"
            group.reader.refuse(at, f"{before} has no neurons: only the last layer may be a readout")
        group.layers.append(replace(self, dropout=group.drop[1] if group.drop else 0.0))
        group.drop, group.has_fc = None, True

    def missing(self) -> str:
        return f"{self} needs neurons, whose spikes return to it" if self.recurrent and self.neurons is None else ""

    def place(self, placing: Placing, name: str, before: Shape, spikes: bool) -> LayerSpec:
        return LayerSpec(name, self, before, (self.features,))

    def is_fired(self, spikes: bool) -> bool:
        return self.neurons is not None


@dataclass(frozen=True)
class Residual(PlacedBase, Part):
    """Two branches, combined: `ADD(c64k3s1-BN-PLIF)`, `ADD(c64k3s2-BN-PLIF|c64k1s2-BN-PLIF)`.

    Attributes:
        combination: ADD, the sum; AND, the product; IAND, (1 - branch) shortcut.
        branch: layers of the branch.
        shortcut: layers of the shortcut; none for the input itself.
        neurons: of the result: `ADD(c64k3s1-BN)-PLIF`; None without.

    Source: Fang et al. 2021, "Deep Residual Learning in Spiking Neural Networks" (SEW-ResNet), Table 1.
    """

    prefix = "res"
    pattern = re.compile("|".join(get_args(Combine)))
    example = "ADD(...)"
    combination: Combine
    branch: tuple["PlacedLayer", ...]
    shortcut: tuple["PlacedLayer", ...] = ()
    neurons: Neurons | None = None

    def __str__(self) -> str:
        shortcut = f"|{written(self.shortcut)}" if self.shortcut else ""
        suffix = "" if self.neurons is None else f"-{self.neurons}"
        return f"{self.combination}({written(self.branch)}{shortcut}){suffix}"

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        combination: Any = match[0]
        reader.require("(", f"( and the layers of {combination}")
        branch = reader.layers(is_outermost=False)
        shortcut = reader.layers(is_outermost=False) if reader.take("|") else ()
        reader.require(")", "-, | and a shortcut, or )")
        if combination != "ADD":
            for side, layers in (("branch", branch), ("shortcut", shortcut)):
                if not is_fired(layers, True):
                    reader.refuse(at, f"{combination} needs spikes, and its {side} ends without neurons")
        return cls(combination, branch, shortcut)

    def join(self, group: Group, at: int) -> None:
        group.append(at, self, self.combination)

    def place(self, placing: Placing, name: str, before: Shape, spikes: bool) -> LayerSpec:
        sides = (self.branch, self.shortcut)
        branch, shortcut = (tuple(placing.specs_of(layers, before, spikes)) for layers in sides)
        shapes = [layers[-1].after if layers else before for layers in (branch, shortcut)]
        if shapes[0] != shapes[1]:
            branch_size, shortcut_size = ("x".join(map(str, end)) for end in shapes)
            advice = "" if shortcut else _shortcut_for(before, shapes[0])
            text = str(self)
            excerpt = text if len(text) <= 60 else f"{text[:57]}..."
            raise UserError(
                f"{name}, {excerpt}: its branch ends with maps of {branch_size}, its shortcut with "
                f"{shortcut_size}{advice}."
            )
        return LayerSpec(name, self, before, shapes[0], branch, shortcut)

    def is_fired(self, spikes: bool) -> bool:
        both = is_fired(self.branch, spikes) and is_fired(self.shortcut, spikes)
        return self.neurons is not None or (self.combination != "ADD" and both)


@dataclass(frozen=True)
class Delay(PlacedBase, Part):
    """A learned delay of each channel: `DELAY(max_delay=20)`, with the arguments of `layers.delay.Delay`."""

    prefix = "delay"
    may_end, needs_time_gradient = False, True
    pattern = re.compile("DELAY")
    example = "DELAY(max_delay=20)"
    arguments: tuple[tuple[str, ArgumentValue], ...]

    def __str__(self) -> str:
        return _call("DELAY", self.arguments)

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        return cls(reader.arguments())

    def join(self, group: Group, at: int) -> None:
        if isinstance(group.last, FC) and group.last.neurons is None:
            group.reader.refuse(
                at, "DELAY must stand before an FC layer or a convolution, and not behind an FC layer without neurons"
            )
        group.layers.append(self)

    def place(self, placing: Placing, name: str, before: Shape, spikes: bool) -> LayerSpec:
        return LayerSpec(name, self, before, before)

    def is_fired(self, spikes: bool) -> bool:
        return spikes and bool(dict(self.arguments).get("rounds"))


def _shortcut_for(before: Shape, after: Shape) -> str:
    """Advice on a shortcut convolution between two shapes; empty if there is none."""
    for stride in range(1, 9):
        if window_count(before, 1, stride, 0) == after[1:]:
            return f": add a shortcut, such as |c{after[0]}k1s{stride}-BN-PLIF"
    return ""


@dataclass(frozen=True)
class Votes(NotationBase):
    """The mean of the M output neurons of each class: `APk10s10`, a pool behind the last FC layer."""

    per_class: int

    def __str__(self) -> str:
        return f"APk{self.per_class}s{self.per_class}"


ReadoutName = Literal["LI", "LAST"]


@dataclass(frozen=True)
class Readout(NotationBase, Part):
    """What a network gives of its readout: the leaky integral `LI`, `LI(init_tau=4.0)`, or the `LAST` step."""

    pattern = re.compile("|".join(get_args(ReadoutName)))
    example = "LI or LAST behind the last FC layer"
    name: ReadoutName
    arguments: tuple[tuple[str, ArgumentValue], ...] = ()

    def __str__(self) -> str:
        return _call(self.name, self.arguments)

    @classmethod
    def read(cls, reader: Reader, at: int, match: re.Match[str]) -> Self:
        name: Any = match[0]
        return cls(name, reader.arguments())

    def join(self, group: Group, at: int) -> None:
        if not isinstance(group.last, FC) or group.last.neurons is not None:
            group.reader.refuse(at, f"{self.name} reads an FC layer without neurons: it must follow one")
        group.layers.append(self)
        group.has_ended = True


PlacedLayer = Conv | FC | Residual | Pool | Neurons | Delay
NotationLayer = PlacedLayer | Votes | Readout
# In this order: a name that is no other part is one of neurons.
PARTS: tuple[type[Part], ...] = (Conv, FC, Pool, Norm, Drop, Delay, Residual, Readout, Neurons)


def expected_parts() -> str:
    """What may stand at a place of the notation, for errors."""
    return f"{', '.join(part.example for part in PARTS)} or {{...}}*2"


@dataclass(frozen=True)
class Structure:
    """The layers of a network from its input to its output; `parse` is the inverse of `str()`.

    Attributes:
        layers: an entry per convolution, FC layer or residual block, its BN and neurons included.
    """

    layers: tuple[NotationLayer, ...]

    def __str__(self) -> str:
        return written(self.layers)

    def substitute(self, kind: type[L], change: Callable[[L], L]) -> "Structure":
        """The structure with what `change` makes of each layer of a kind, such as neurons or pools, in its place."""
        return Structure(substituted(self.layers, kind, change))


def neurons_in(layers: Iterable[NotationLayer]) -> Iterator[Neurons]:
    """The neurons of layers, in the order of the notation."""
    yield from (layer for layer in every_within(tuple(layers)) if isinstance(layer, Neurons))


def is_fired(layers: Iterable[PlacedLayer], spikes: bool) -> bool:
    """True if the output of a sequence of layers is what neurons fire; `spikes`: its input is."""
    return functools.reduce(lambda before, layer: layer.is_fired(before), layers, spikes)


def written(layers: Iterable[NotationLayer]) -> str:
    """Layers in the notation, with repeated ones in braces; a pool ends a stage, and equal stages are merged.

    The last FC layer stands alone, as Table S1 writes it, even if it equals the layers before it.
    """
    layers = tuple(layers)
    last = max((i for i, layer in enumerate(layers) if isinstance(layer, FC)), default=len(layers))
    done: list[str] = []
    stages: list[str] = []
    texts: list[str] = []
    for i, layer in enumerate(layers):
        pool = layer.pool if isinstance(layer, Conv) else layer if isinstance(layer, Pool) and texts else None
        if pool is not None:
            texts += [layer.notation_without_pool] if isinstance(layer, Conv) else []
            stages.append("-".join([*_merge_repeats(texts), str(pool)]))
            texts = []
        elif i == last or isinstance(layer, (Pool, Votes, Readout)):
            done += [*_merge_repeats(stages), *_merge_repeats(texts), str(layer)]
            stages, texts = [], []
        else:
            texts.append(str(layer))
    return "-".join([*done, *_merge_repeats(stages), *_merge_repeats(texts)])


def _merge_repeats(parts: Sequence[str]) -> list[str]:
    """Parts with runs of equal ones merged into `{part}*times`."""
    counted = [(text, len(list(group))) for text, group in itertools.groupby(parts)]
    return [text if times == 1 else f"{{{text}}}*{times}" for text, times in counted]
