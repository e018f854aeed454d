"""A deployed network's layers as plain calls, one after another: what PyTorch's modules do around them is left out.

For one sample that is more than the layers themselves. The numbers are those of the modules, to the bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.integers import Packed, PackedConv, PackedLinear
from plif_lightning.deploy.rows import Rows, RowsConv, RowsLinear
from plif_lightning.kernels import EventBlock, FrozenFire, SparseMaps, at_a_time, linear_of_bits, unpack
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import (
    Blocks,
    ConvBlock,
    FCBlock,
    has_hooks,
    hooks_on_all,
    images_channels_last,
    is_usual_neuron,
)
from plif_lightning.network.inputs import InputEncoder
from plif_lightning.network.network import Voting
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carried

Sums = Callable[[Tensor], Tensor]


_POOLS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "max_first": partial(F.max_pool2d, kernel_size=2),
    "max_random": partial(F.max_pool2d, kernel_size=2),
    "avg": partial(F.avg_pool2d, kernel_size=2),
}


class PlainConv:
    """A convolutional block, its layer in any of the forms, as a plain call.

    Args:
        block: one of the paper's, folded.
        form: of its layer; the block's own where it is None.
    """

    def __init__(self, block: ConvBlock, form: nn.Module | None = None) -> None:
        layer: Any = form or block.conv
        neuron = block.neuron
        pool = block.pool_name or "none"
        self._sums = _sums(layer)
        self._fire, self._fire_unpooled = (FrozenFire(neuron.k, neuron.firing, layer.bias, p) for p in (pool, "none"))
        self._pool = _POOLS[pool]
        self._takes = torch.uint8 if isinstance(layer, Packed) else torch.float32
        self._binary = not isinstance(layer, RowsConv) or layer.binary
        self._events: EventBlock | None = None
        if isinstance(layer, RowsConv) and pool != "avg":
            self._events = EventBlock.of_neurons(layer.table, layer.scale, layer.bias, neuron.k, neuron.firing, pool)

    @property
    def writes_sums(self) -> bool:
        """Whether the convolution's output is there as a whole."""
        return self._events is None

    def __call__(self, x: Tensor | SparseMaps, length: int, steps: int) -> Tensor | SparseMaps:
        """Pooled spikes [T N, C', H', W'] of maps [length N, C, H, W], of which one step may be held for T."""
        if self._events is not None and length == steps:
            return self._events(self._sparse(x), steps)
        maps = _channels_innermost(self._sums(self._dense(x)))
        spikes = self._fire(maps.view(length, len(maps) // length, *maps.shape[1:]), steps)
        return spikes.flatten(0, 1).permute(0, 3, 1, 2)

    def step(self, x: Tensor | SparseMaps, v: Tensor | None) -> tuple[Tensor | SparseMaps, Tensor]:
        """Pooled spikes [N, C', H', W'] and potential [N, C', H, W] after one time-step."""
        v = None if v is None else _channels_innermost(v)
        if self._events is not None:
            bits, after = self._events.step(self._sparse(x), v)
            return bits, after.permute(0, 3, 1, 2)
        fired, after = self._fire_unpooled.step(_channels_innermost(self._sums(self._dense(x))), v)
        spikes = fired.permute(0, 3, 1, 2)
        return spikes if self._pool is None else self._pool(spikes), after.permute(0, 3, 1, 2)

    def _sparse(self, x: Tensor | SparseMaps) -> SparseMaps:
        return x if isinstance(x, SparseMaps) else SparseMaps.of(x, self._binary)

    def _dense(self, x: Tensor | SparseMaps) -> Tensor:
        return x.images(self._takes) if isinstance(x, SparseMaps) else x


class _PlainFC:
    """The same of an FC block."""

    def __init__(self, block: FCBlock) -> None:
        layer: Any = block.fc
        self._layer = layer
        self._sums = _sums(layer)
        self._takes = torch.uint8 if isinstance(layer, Packed) else torch.float32
        self.fire = FrozenFire(block.neuron.k, block.neuron.firing, layer.bias)

    def sums(self, x: Tensor | SparseMaps) -> Tensor:
        """Of rows [R, K], or of maps [R, C, H, W] as rows."""
        if not isinstance(x, SparseMaps):
            return self._sums(x)
        bits, inputs = x.flattened(), math.prod(x.shape[1:])
        if isinstance(self._layer, RowsLinear):
            return linear_of_bits(bits, inputs, self._layer.table, self._layer.scale)
        return self._sums(unpack(bits, inputs, self._takes))


class Prepared:
    """Plain calls of a network: of the paper's folded layers, some of which may have become `Rows` or `Packed`.

    Args:
        net: serves as long as this `is_current`.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        self.net = net
        self._parts = list(net.modules())
        self._held = list(_held(net))
        self._channels = net.channels

    def is_current(self) -> bool:
        """Whether the network holds the modules and values that it held when this was made.

        What is written through `Tensor.data` is not noticed.
        """
        return all(of.get(name) is value and _version(value) == then for of, name, value, then in self._held)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether the network is nothing but layers known here, in float32, and takes its input as it comes."""
        net = self.net
        kinds = [(net.inputs, InputEncoder), (net.encoder, Blocks), (net.classifier, Blocks), (net.voting, Voting)]
        return (
            net.inputs.name == "direct"
            and all(type(part) is kind for part, kind in kinds)
            and all(map(_is_known, net.blocks().values()))
            and all(x.device.type == "cpu" for x in (*net.parameters(), *net.buffers()))
            and all(x.dtype == torch.float32 for x in net.parameters())
        )

    @cached_property
    def _layers(self) -> tuple[dict[str, PlainConv], dict[str, _PlainFC]]:
        """Of the encoder, and of the classifier, by the name of the neurons in the network."""
        convs: dict[str, PlainConv] = {}
        fcs: dict[str, _PlainFC] = {}
        names = {part: name for name, part in self.net.named_modules()}
        for block in self.net.blocks().values():
            if isinstance(block, ConvBlock):
                convs[names[block.neuron]] = PlainConv(block)
            elif isinstance(block, FCBlock):
                fcs[names[block.neuron]] = _PlainFC(block)
        return convs, fcs

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one sample's potential in each layer."""
        after = self.step(torch.zeros(1, *self.net.input_shape, dtype=torch.float32, device="cpu"), None)[1]
        return {name: tuple(v.shape[1:]) for name, v in after.items()}

    def fits(self, x: Tensor) -> bool:
        """Whether this serves x now: frames or images of the network in float32, few, and nobody listens."""
        net = self.net
        steps = 1 if x.dim() == 4 else len(x)
        return (
            x.dtype == torch.float32
            and x.device.type == "cpu"
            and x.dim() in (4, 5)
            and x.shape[-3:] == net.input_shape
            and steps == (1 if x.dim() == 4 else net.time_steps)
            and x.numel() > 0
            and not net.training
            and carried() is None
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not hooks_on_all()
            and not any(map(has_hooks, self._parts))
            and self._is_plain
            and (x.numel() // net.input_shape[0] * self._channels <= at_a_time(x.device) or not self._is_large)
        )

    @property
    def _is_large(self) -> bool:
        """Whether a layer before the first pool, where maps are largest, writes one: the network takes it in bands."""
        for block, conv in zip(self.net.encoder, self._layers[0].values(), strict=True):
            if conv.writes_sums:
                return True
            if block.pool is not None:
                break
        return False

    def __call__(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes]."""
        steps, samples, length = self.net.time_steps, x.shape[-4], 1 if x.dim() == 4 else len(x)
        images: Tensor | SparseMaps = images_channels_last(x if x.dim() == 4 else x.flatten(0, 1))
        convs, fcs = self._layers
        for conv in convs.values():
            images, length = conv(images, length, steps), steps
        rows: Any = images if isinstance(images, SparseMaps) else images.flatten(1)
        for layer in fcs.values():
            totals = layer.sums(rows)
            rows = layer.fire(totals.view(steps, samples, 1, 1, -1), steps).view(totals.shape)
        return self.net.voting(rows.view(steps, samples, -1))

    def goes_on(self, frame: Tensor, state: Mapping[str, Tensor] | None) -> bool:
        """Whether `step` serves this frame from these potentials."""
        if frame.dim() != 4 or not self.fits(frame):
            return False
        # The kernel reads as many potentials as there are neurons, whatever it is given.
        return state is None or (
            list(state) == list(self._shapes)
            and all(v.shape == (len(frame), *self._shapes[name]) for name, v in state.items())
            and all(v.dtype == torch.float32 and v.device.type == "cpu" for v in state.values())
        )

    def step(self, frame: Tensor, state: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """`plif_lightning.step` of the network: votes [N, num_classes] and potentials."""
        after: dict[str, Tensor] = {}
        images: Tensor | SparseMaps = images_channels_last(frame)
        convs, fcs = self._layers
        for name, conv in convs.items():
            images, after[name] = conv.step(images, None if state is None else state[name])
        rows: Any = images if isinstance(images, SparseMaps) else images.flatten(1)
        for name, layer in fcs.items():
            totals = layer.sums(rows)
            v = None if state is None else state[name].contiguous().view(len(totals), 1, 1, -1)
            spikes, v = layer.fire.step(totals.view(len(totals), 1, 1, -1), v)
            rows, after[name] = spikes.view(totals.shape), v.view(totals.shape)
        return self.net.voting(rows[None])[0], after


def _version(value: Any) -> int:
    """That of a tensor's values, where they may change."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _held(net: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any, int]]:
    """Every module, tensor and setting of a neuron where it is held, by which name, and the version of a tensor."""
    for part in net.modules():
        settings = {name: v for name, v in vars(part).items() if name[0] != "_"} if isinstance(part, Neuron) else {}
        held: list[tuple[dict[str, Any], dict[str, Any]]] = [(vars(part), settings)]
        held += [(of, of) for of in (part._modules, part._parameters, part._buffers)]
        for of, values in held:
            for name, value in values.items():
                yield of, name, value, _version(value)


def _is_known(block: nn.Module) -> bool:
    """Whether a block is one of the paper's, folded, its layer in any of the forms; hooks are another question."""
    layer: Any
    if type(block) is ConvBlock:
        layer = block.conv
        usual = block.has_usual_conv or type(layer) in (RowsConv, PackedConv)
        return usual and is_usual_neuron(block.neuron) and block.norm is None and block.pool_name is not None
    if type(block) is FCBlock:
        layer = block.fc
        return is_usual_neuron(block.neuron) and (block.has_usual_fc or type(layer) in (RowsLinear, PackedLinear))
    return False


def _channels_innermost(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] as [N, H, W, C]; a view where they lie so in memory."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _sums(layer: Any) -> Sums:
    """A layer without its bias."""
    if isinstance(layer, (Packed, Rows)):
        return layer.sums  # type: ignore[return-value]
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        return lambda images: F.conv2d(images, weight, padding=1)
    return lambda rows: F.linear(rows, weight)
