"""Layers of a network as plain values; `str()` writes them in the notation of Table S1."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

Size = int | tuple[int, int]
ArgumentValue = float | int | bool | str | None
Combine = Literal["ADD", "AND", "IAND"]


def pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def half_of(size: Size) -> Size:
    """Half a kernel, rounded down: the padding that keeps the size of a map at stride 1."""
    height, width = (side // 2 for side in pair(size))
    return height if height == width else (height, width)


def written_size(size: Size) -> str:
    """`3`, or `3x5` for a height and a width that differ."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def written_value(value: ArgumentValue) -> str:
    """A value as the notation writes it."""
    names = {True: "true", False: "false", None: "null"}
    return names[value] if isinstance(value, bool) or value is None else str(value)


@dataclass(frozen=True)
class Neurons:
    """Neurons by their class, or its import path, with arguments: `PLIF`, `LIF(init_tau=3.0)`."""

    name: str
    arguments: tuple[tuple[str, ArgumentValue], ...] = ()

    def __str__(self) -> str:
        written_arguments = ",".join(f"{name}={written_value(value)}" for name, value in self.arguments)
        return f"{self.name}({written_arguments})" if written_arguments else self.name


@dataclass(frozen=True)
class Pool:
    """A pool of maps: `MPk2s2`, `APk3s2p1`; `AP` over the full map if kernel is None."""

    kind: Literal["MP", "AP"]
    kernel: Size | None = None
    stride: Size = 1
    padding: Size = 0

    def __str__(self) -> str:
        if self.kernel is None:
            return self.kind
        padding = f"p{written_size(self.padding)}" if self.padding else ""
        return f"{self.kind}k{written_size(self.kernel)}s{written_size(self.stride)}{padding}"


@dataclass(frozen=True)
class Conv:
    """A convolution with its BN, neurons and pool: `c128k3s1-BN-PLIF-MPk2s2`. It has a bias if no BN follows.

    Attributes:
        padding: None for half the kernel, which keeps the size of a map at stride 1.
        norm: BN follows.
        neurons: None for a convolution without spiking output.
        pool: of the neurons' spikes; None without neurons.
    """

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


@dataclass(frozen=True)
class FC:
    """An FC layer with its dropout and neurons: `DP-FC2048-PLIF`.

    Attributes:
        bias: `FC10b`.
        dropout: drop probability before it; None for `DP`, that of the network; 0 for none.
        neurons: None for a readout without spikes.
        recurrent: `RFC10`: its neurons also see their spikes of the previous step.
    """

    features: int
    bias: bool = False
    dropout: float | None = 0.0
    neurons: Neurons | None = None
    recurrent: bool = False

    def __str__(self) -> str:
        drop = "DP" if self.dropout is None else f"DP({self.dropout})"
        fc = f"{'R' if self.recurrent else ''}FC{self.features}{'b' if self.bias else ''}"
        parts = [*([] if self.dropout == 0 else [drop]), fc]
        return "-".join([*parts, *([] if self.neurons is None else [str(self.neurons)])])


@dataclass(frozen=True)
class Residual:
    """Two branches, combined: `ADD(c64k3s1-BN-PLIF)`, `ADD(c64k3s2-BN-PLIF|c64k1s2-BN-PLIF)`.

    Attributes:
        how: ADD, the sum; AND, the product; IAND, (1 - branch) shortcut.
        branch: layers of the branch.
        shortcut: layers of the shortcut; none for the input itself.
        neurons: of the result: `ADD(c64k3s1-BN)-PLIF`; None without.

    Source: Fang et al. 2021, "Deep Residual Learning in Spiking Neural Networks" (SEW-ResNet), Table 1.
    """

    combination: Combine
    branch: tuple["NotationLayer", ...]
    shortcut: tuple["NotationLayer", ...] = ()
    neurons: Neurons | None = None

    def __str__(self) -> str:
        shortcut = f"|{written(self.shortcut)}" if self.shortcut else ""
        suffix = "" if self.neurons is None else f"-{self.neurons}"
        return f"{self.combination}({written(self.branch)}{shortcut}){suffix}"


@dataclass(frozen=True)
class Votes:
    """The mean of the M output neurons of each class: `APk10s10`."""

    per_class: int

    def __str__(self) -> str:
        return f"APk{self.per_class}s{self.per_class}"


@dataclass(frozen=True)
class Readout:
    """What a network gives of its readout: the leaky integral `LI`, `LI(init_tau=4.0)`, or the `LAST` step."""

    name: str
    arguments: tuple[tuple[str, ArgumentValue], ...] = ()

    def __str__(self) -> str:
        return str(Neurons(self.name, self.arguments))


NotationLayer = Conv | FC | Residual | Pool | Neurons | Votes | Readout


@dataclass(frozen=True)
class Structure:
    """The layers of a network from its input to its output; `parse` is the inverse of `str()`.

    Attributes:
        layers: an entry per convolution, FC layer or residual block, its BN and neurons included.
    """

    layers: tuple[NotationLayer, ...]

    def __str__(self) -> str:
        return written(self.layers)


def neurons_in(layers: Iterable[NotationLayer]) -> Iterator[Neurons]:
    """The neurons of layers, in the order of the notation."""
    for layer in layers:
        if isinstance(layer, Residual):
            yield from neurons_in((*layer.branch, *layer.shortcut))
        if isinstance(layer, Neurons):
            yield layer
        elif isinstance(layer, (Conv, FC, Residual)) and layer.neurons is not None:
            yield layer.neurons


def substitute(
    layers: Iterable[NotationLayer], neurons: Callable[[Neurons], Neurons], pool: Callable[[Pool], Pool]
) -> Iterator[NotationLayer]:
    """Layers with other neurons and pools in the places of theirs."""
    for layer in layers:
        match layer:
            case Residual(how, branch, shortcut, own):
                on_branch, on_shortcut = (tuple(substitute(side, neurons, pool)) for side in (branch, shortcut))
                yield Residual(how, on_branch, on_shortcut, None if own is None else neurons(own))
            case Neurons():
                yield neurons(layer)
            case Pool():
                yield pool(layer)
            case Conv() | FC() if layer.neurons is not None:
                layer = replace(layer, neurons=neurons(layer.neurons))
                yield replace(layer, pool=pool(layer.pool)) if isinstance(layer, Conv) and layer.pool else layer
            case Conv() | FC() | Votes() | Readout():
                yield layer
            case _:
                assert_never(layer)


def gives_spikes(layers: Iterable[NotationLayer], spikes: bool) -> bool:
    """True if the output of a sequence of layers is binary; `spikes`: its input is."""
    return functools.reduce(_gives_spikes, layers, spikes)


def _gives_spikes(spikes: bool, layer: NotationLayer) -> bool:
    match layer:
        case Conv(neurons=None) | FC(neurons=None) | Conv(pool=Pool(kind="AP")) | Pool(kind="AP"):
            return False
        case Pool():
            return spikes
        case Residual(how, branch, shortcut, neurons=None):
            return how != "ADD" and gives_spikes(branch, spikes) and gives_spikes(shortcut, spikes)
        case Conv() | FC() | Neurons() | Residual():
            return True
        case Votes() | Readout():
            return False
    assert_never(layer)


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
