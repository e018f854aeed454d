"""Names and shapes of a structure's layers for an input, and the mistakes that shapes show."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, assert_never

from plif_lightning.errors import UserError
from plif_lightning.structure.layers import (
    FC,
    Conv,
    Neurons,
    NotationLayer,
    Pool,
    Readout,
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


class LayerSpec(NamedTuple):
    """A layer of a network.

    Attributes:
        name: conv1, conv2, ... in the order of the notation; res1, pool1, neuron1, fc1 likewise.
        layer: the layer.
        before: shape of a sample's input at a step, (C, H, W) or (features,).
        after: shape of its output.
        branch: layers of a residual block's branch.
        shortcut: layers of its shortcut.
        spikes_in: the input is spikes: zeros and ones.
    """

    name: str
    layer: NotationLayer
    before: Shape
    after: Shape
    branch: tuple["LayerSpec", ...] = ()
    shortcut: tuple["LayerSpec", ...] = ()
    spikes_in: bool = False


def layer_specs(
    structure: Structure, input_shape: Sequence[int], num_classes: int, spikes: bool = False
) -> list[LayerSpec]:
    """The layers of a structure with their names and shapes; `spikes`: the network's input is zeros and ones.

    Raises:
        UserError: a map shrinks to nothing, a residual block adds unequal shapes, groups do not divide channels, or the
            output has another number of classes; names the layer.
    """
    shape = tuple(input_shape)
    specs = list(_Placing(shape).specs_of(structure.layers, shape, spikes))
    require_classes(structure, num_classes)
    return specs


def every_layer(layers: Iterable[LayerSpec]) -> Iterator[LayerSpec]:
    """Layer specs in order; a residual block follows its layers."""
    for spec in layers:
        yield from every_layer((*spec.branch, *spec.shortcut))
        yield spec


def require_classes(structure: Structure, num_classes: int) -> None:
    """Refuse an output of another number of classes than the data's."""
    last = max(i for i, layer in enumerate(structure.layers) if isinstance(layer, FC))
    fc, votes = structure.layers[last], structure.layers[-1]
    assert isinstance(fc, FC)
    per_class = votes.per_class if isinstance(votes, Votes) else 1
    if fc.features == per_class * num_classes:
        return
    layers = list(structure.layers)
    layers[last] = replace(fc, features=per_class * num_classes)
    of_each = f" ({per_class} for each class)" if per_class > 1 else ""
    raise UserError(
        f"the last layer, FC{fc.features}, gives {fc.features / per_class:g} classes{of_each}, but the data has "
        f"{num_classes}: pass --model.structure '{Structure(tuple(layers))}'."
    )


def window_count(shape: Shape, kernel: Size, stride: Size, padding: Size, dilation: Size = 1) -> Shape:
    """Height and width after a window has moved over a map, as PyTorch counts them."""
    axes = zip(shape[1:], pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    return tuple((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in axes)


def padding_of(conv: Conv) -> Size:
    """The padding of a convolution, half its kernel if none is given."""
    return half_of(conv.kernel) if conv.padding is None else conv.padding


def _conv_output_size(conv: Conv, before: Shape) -> Shape:
    return (conv.channels, *window_count(before, conv.kernel, conv.stride, padding_of(conv), conv.dilation))


def _shortcut_for(before: Shape, after: Shape) -> str:
    """Advice on a shortcut convolution between two shapes; empty if there is none."""
    for stride in range(1, 9):
        if window_count(before, 1, stride, 0) == after[1:]:
            return f": add a shortcut, such as |c{after[0]}k1s{stride}-BN-PLIF"
    return ""


class _Placing:
    """Numbers each kind of layer, in the order of the notation."""

    def __init__(self, shape: Shape) -> None:
        self.input, self.numbers = shape, dict[str, int]()

    def name(self, kind: str) -> str:
        self.numbers[kind] = self.numbers.get(kind, 0) + 1
        return f"{kind}{self.numbers[kind]}"

    def specs_of(self, layers: Sequence[NotationLayer], shape: Shape, spikes: bool) -> Iterator[LayerSpec]:
        for layer in layers:
            if isinstance(layer, (Conv, Pool)) and len(shape) != 3:
                raise UserError(
                    f"{layer} takes maps [C, H, W], and the data has features {list(shape)}: begin with an FC layer, "
                    "such as RFC256-PLIF, or give maps."
                )
            match layer:
                case Conv():
                    specs = self.conv(layer, shape)
                case Pool():
                    name = self.name("pool")
                    specs = LayerSpec(name, layer, shape, self.pool_output(name, layer, shape))
                case Residual():
                    specs = self.residual(layer, shape, spikes)
                case Neurons():
                    specs = LayerSpec(self.name("neuron"), layer, shape, shape)
                case FC():
                    specs = LayerSpec(self.name("fc"), layer, shape, (layer.features,))
                case Votes() | Readout():
                    continue  # they belong to the output
                case _:
                    assert_never(layer)
            yield specs._replace(spikes_in=spikes)
            shape, spikes = specs.after, gives_spikes([layer], spikes)

    def conv(self, layer: Conv, before: Shape) -> LayerSpec:
        name = self.name("conv")
        for side, number in (("output", layer.channels), ("input", before[0])):
            if number % layer.groups:
                raise UserError(
                    f"{name} ({layer.convolution}): {layer.groups} groups do not divide its {number} {side} channels."
                )
        shape = self.require_nonempty(f"{name} ({layer.convolution})", before, _conv_output_size(layer, before))
        if layer.pool is not None:
            shape = self.pool_output(name, layer.pool, shape)
        return LayerSpec(name, layer, before, shape)

    def pool_output(self, name: str, pool: Pool, before: Shape) -> Shape:
        if pool.kernel is None:
            return before[0], 1, 1
        after = (before[0], *window_count(before, pool.kernel, pool.stride, pool.padding))
        return self.require_nonempty(f"{pool} of {name}", before, after)

    def require_nonempty(self, operation: str, before: Shape, after: Shape) -> Shape:
        if min(after) < 1:
            height, width = self.input[1:]
            raise UserError(
                f"{operation} leaves nothing of a map of {before[1]}x{before[2]}, from an input of {height}x{width}: "
                "take fewer pools or strides."
            )
        return after

    def residual(self, layer: Residual, shape: Shape, spikes: bool) -> LayerSpec:
        name = self.name("res")
        branch, shortcut = (tuple(self.specs_of(layers, shape, spikes)) for layers in (layer.branch, layer.shortcut))
        shapes = [layers[-1].after if layers else shape for layers in (branch, shortcut)]
        if shapes[0] != shapes[1]:
            branch_size, shortcut_size = ("x".join(map(str, end)) for end in shapes)
            advice = "" if shortcut else _shortcut_for(shape, shapes[0])
            text = str(layer)
            excerpt = text if len(text) <= 60 else f"{text[:57]}..."
            raise UserError(
                f"{name}, {excerpt}: its branch ends with maps of {branch_size}, its shortcut with "
                f"{shortcut_size}{advice}."
            )
        return LayerSpec(name, layer, shape, shapes[0], branch, shortcut)
