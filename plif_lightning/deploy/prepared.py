"""A deployed network's layers as plain calls, one after another: what PyTorch's modules do around them is left out.

For one sample that is more than the layers themselves. The numbers are those of the modules, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.integers import Packed, PackedConv, PackedLinear
from plif_lightning.deploy.layers import weighted
from plif_lightning.deploy.rows import Rows, RowsConv, RowsLinear
from plif_lightning.kernels import FrozenFire, at_a_time
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import Blocks, ConvBlock, FCBlock, has_hooks, images_channels_last, is_usual_neuron
from plif_lightning.network.inputs import InputEncoder
from plif_lightning.network.network import Voting
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carried

Sums = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    neuron: str  # its name in the network
    sums: Sums
    fire: FrozenFire
    fire_unpooled: FrozenFire
    pool: Callable[[Tensor], Tensor] | None


_POOLS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "max_first": partial(F.max_pool2d, kernel_size=2),
    "max_random": partial(F.max_pool2d, kernel_size=2),
    "avg": partial(F.avg_pool2d, kernel_size=2),
}


class Prepared:
    """Plain calls of a network: of the paper's folded layers, some of which may have become `Rows` or `Packed`.

    Args:
        net: serves as long as this `is_current`.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        self.net = net
        self._parts = list(net.modules())
        self._held = list(_held(net))
        self._channels = net.structure.channels

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
    def _layers(self) -> tuple[list[_Layer], list[_Layer]]:
        """Of the encoder, and of the classifier."""
        convs: list[_Layer] = []
        fcs: list[_Layer] = []
        names = {part: name for name, part in self.net.named_modules()}
        for block in self.net.blocks().values():
            layer: Any = block.get_submodule(weighted(block))
            neuron: Any = block.get_submodule("neuron")
            pool = (block.pool_name or "none") if isinstance(block, ConvBlock) else "none"
            pooled, alone = (FrozenFire(neuron.k, neuron.firing, layer.bias, kind) for kind in (pool, "none"))
            of_kind = convs if isinstance(block, ConvBlock) else fcs
            of_kind.append(_Layer(names[neuron], _sums(layer), pooled, alone, _POOLS[pool]))
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
            and 0 < x.numel() // net.input_shape[0] * self._channels <= at_a_time(x.device)
            and not net.training
            and carried() is None
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not any(map(has_hooks, self._parts))
            and self._is_plain
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes]."""
        steps, samples, length = self.net.time_steps, x.shape[-4], 1 if x.dim() == 4 else len(x)
        images = images_channels_last(x if x.dim() == 4 else x.flatten(0, 1))
        convs, fcs = self._layers
        for layer in convs:
            maps = _channels_innermost(layer.sums(images))
            spikes = layer.fire(maps.view(length, samples, *maps.shape[1:]), steps)
            images, length = spikes.flatten(0, 1).permute(0, 3, 1, 2), steps
        rows = images.flatten(1)
        for layer in fcs:
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
        images = images_channels_last(frame)
        convs, fcs = self._layers
        for layer in convs:
            v = None if state is None else _channels_innermost(state[layer.neuron])
            spikes, v = layer.fire_unpooled.step(_channels_innermost(layer.sums(images)), v)
            after[layer.neuron] = v.permute(0, 3, 1, 2)
            images = spikes.permute(0, 3, 1, 2)
            images = images if layer.pool is None else layer.pool(images)
        rows = images.flatten(1)
        for layer in fcs:
            totals = layer.sums(rows)
            v = None if state is None else state[layer.neuron].contiguous().view(len(rows), 1, 1, -1)
            spikes, v = layer.fire_unpooled.step(totals.view(len(rows), 1, 1, -1), v)
            rows, after[layer.neuron] = spikes.view(totals.shape), v.view(totals.shape)
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
