"""Names and shapes of a structure's layers for an input, and the mistakes that shapes show."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, assert_never

from plif_lightning.errors import UserError
from plif_lightning.structure.layers import (
    FC,
    Conv,
    Integrator,
    Layer,
    Neurons,
    Pool,
    Residual,
    Size,
    Structure,
    Votes,
    gives_spikes,
    half_of,
    pair,
)

Shape = tuple[int, ...]
# Arguments of a network that its data determine.
FROM_DATA = ("input_shape", "num_classes", "time_steps")


class Placed(NamedTuple):
    """A layer of a network.

    Attributes:
        name: conv1, conv2, ... in the order of the notation; res1, pool1, neuron1, fc1 likewise.
        layer: the layer.
        before: shape of one sample's input at a step, (C, H, W) or (features,).
        after: shape of its output.
        branch: layers of a residual block's branch.
        shortcut: layers of its shortcut.
        spikes_in: the input is spikes: zeros and ones.
    """

    name: str
    layer: Layer
    before: Shape
    after: Shape
    branch: tuple["Placed", ...] = ()
    shortcut: tuple["Placed", ...] = ()
    spikes_in: bool = False


def placed(structure: Structure, input_shape: Sequence[int], num_classes: int, spikes: bool = False) -> list[Placed]:
    """The layers of a structure with their names and shapes; `spikes`: the network's input is zeros and ones.

    Raises:
        UserError: a map shrinks to nothing, a residual block adds unequal shapes, groups do not divide channels, or the
            output has another number of classes; names the layer.
    """
    shape = tuple(input_shape)
    found = list(_Placing(shape).place(structure.layers, shape, spikes))
    require_classes(structure, num_classes)
    return found


def every_layer(layers: Iterable[Placed]) -> Iterator[Placed]:
    """Placed layers in order; those of a residual block before it."""
    for one in layers:
        yield from every_layer((*one.branch, *one.shortcut))
        yield one


def require_classes(structure: Structure, num_classes: int) -> None:
    """Refuse an output of another number of classes than the data's."""
    last = max(i for i, layer in enumerate(structure.layers) if isinstance(layer, FC))
    fc, votes = structure.layers[last], structure.layers[-1]
    assert isinstance(fc, FC)
    per_class = votes.per_class if isinstance(votes, Votes) else 1
    if fc.features == per_class * num_classes:
        return
    layers = list(structure.layers)
    layers[last] = FC(per_class * num_classes, fc.bias, fc.dropout, fc.neurons)
    of_each = f" ({per_class} for each class)" if per_class > 1 else ""
    raise UserError(
        f"the last layer, FC{fc.features}, gives {fc.features / per_class:g} classes{of_each}, but the data has "
        f"{num_classes}: pass --model.structure '{Structure(tuple(layers))}'."
    )


def swept(shape: Shape, kernel: Size, stride: Size, padding: Size, dilation: Size = 1) -> Shape:
    """Height and width after a window has moved over a map, as PyTorch counts them."""
    given = zip(shape[1:], pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in given)


def padding_of(conv: Conv) -> Size:
    """The padding of a convolution, half its kernel if none is given."""
    return half_of(conv.kernel) if conv.padding is None else conv.padding


def _convolved(conv: Conv, before: Shape) -> Shape:
    return (conv.channels, *swept(before, conv.kernel, conv.stride, padding_of(conv), conv.dilation))


def _shortcut_for(before: Shape, after: Shape) -> str:
    """Advice on a shortcut of one convolution between two shapes; empty if there is none."""
    for stride in range(1, 9):
        if swept(before, 1, stride, 0) == after[1:]:
            return f": add a shortcut, such as |c{after[0]}k1s{stride}-BN-PLIF"
    return ""


class _Placing:
    """Gives each kind of layer its own numbers, in the order of the notation."""

    def __init__(self, shape: Shape) -> None:
        self.input, self.numbers = shape, dict[str, int]()

    def name(self, kind: str) -> str:
        self.numbers[kind] = self.numbers.get(kind, 0) + 1
        return f"{kind}{self.numbers[kind]}"

    def place(self, layers: Sequence[Layer], shape: Shape, spikes: bool) -> Iterator[Placed]:
        for layer in layers:
            match layer:
                case Conv():
                    found = self.conv(layer, shape)
                case Pool():
                    name = self.name("pool")
                    found = Placed(name, layer, shape, self.pooled(name, layer, shape))
                case Residual():
                    found = self.residual(layer, shape, spikes)
                case Neurons():
                    found = Placed(self.name("neuron"), layer, shape, shape)
                case FC():
                    found = Placed(self.name("fc"), layer, shape, (layer.features,))
                case Votes() | Integrator():
                    continue  # they belong to the output
                case _:
                    assert_never(layer)
            yield found._replace(spikes_in=spikes)
            shape, spikes = found.after, gives_spikes([layer], spikes)

    def conv(self, layer: Conv, before: Shape) -> Placed:
        name = self.name("conv")
        for what, number in (("output", layer.channels), ("input", before[0])):
            if number % layer.groups:
                raise UserError(
                    f"{name} ({layer.convolution}): {layer.groups} groups do not divide its {number} {what} channels."
                )
        shape = self.of_some_size(f"{name} ({layer.convolution})", before, _convolved(layer, before))
        if layer.pool is not None:
            shape = self.pooled(name, layer.pool, shape)
        return Placed(name, layer, before, shape)

    def pooled(self, name: str, pool: Pool, before: Shape) -> Shape:
        if pool.kernel is None:
            return before[0], 1, 1
        after = (before[0], *swept(before, pool.kernel, pool.stride, pool.padding))
        return self.of_some_size(f"{pool} of {name}", before, after)

    def of_some_size(self, what: str, before: Shape, after: Shape) -> Shape:
        if min(after) < 1:
            height, width = self.input[1:]
            raise UserError(
                f"{what} leaves nothing of a map of {before[1]}x{before[2]}, from an input of {height}x{width}: take "
                "fewer pools or strides."
            )
        return after

    def residual(self, layer: Residual, shape: Shape, spikes: bool) -> Placed:
        name = self.name("res")
        branch, shortcut = (tuple(self.place(part, shape, spikes)) for part in (layer.branch, layer.shortcut))
        ends = [part[-1].after if part else shape for part in (branch, shortcut)]
        if ends[0] != ends[1]:
            one, other = ("x".join(map(str, end)) for end in ends)
            advice = "" if shortcut else _shortcut_for(shape, ends[0])
            text = str(layer)
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise UserError(f"{name}, {shown}: its branch ends with maps of {one}, its shortcut with {other}{advice}.")
        return Placed(name, layer, shape, ends[0], branch, shortcut)
