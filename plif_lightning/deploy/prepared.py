"""A deployed network's layers as plain calls, one after another: what PyTorch's modules do around them is left out.

For one sample that is more than the layers themselves. The numbers are those of the modules, to the bit.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.integers import Packed
from plif_lightning.deploy.layers import weighted
from plif_lightning.deploy.rows import Rows
from plif_lightning.kernels import FrozenFire, at_a_time
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import ConvBlock, has_hooks, images_channels_last
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
    """Plain calls of a folded network that `is_plain`, whose layers may have been replaced by `Rows` or `Packed`.

    Args:
        net: in evaluation mode; what is changed in it later is not seen.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        self.net = net
        self._parts = list(net.modules())
        self._convs: list[_Layer] = []
        self._fcs: list[_Layer] = []
        names = {part: name for name, part in net.named_modules()}
        for block in net.blocks().values():
            layer: Any = block.get_submodule(weighted(block))
            neuron: Any = block.get_submodule("neuron")
            pool = (block.pool_name or "none") if isinstance(block, ConvBlock) else "none"
            pooled, alone = (FrozenFire(neuron.k, neuron.firing, layer.bias, kind) for kind in (pool, "none"))
            of_kind = self._convs if isinstance(block, ConvBlock) else self._fcs
            of_kind.append(_Layer(names[neuron], _sums(layer), pooled, alone, _POOLS[pool]))
        self._channels = net.structure.channels

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
            and not any(map(has_hooks, self._parts))
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes]."""
        steps, samples, length = self.net.time_steps, x.shape[-4], 1 if x.dim() == 4 else len(x)
        images = images_channels_last(x if x.dim() == 4 else x.flatten(0, 1))
        for layer in self._convs:
            maps = _channels_innermost(layer.sums(images))
            spikes = layer.fire(maps.view(length, samples, *maps.shape[1:]), steps)
            images, length = spikes.flatten(0, 1).permute(0, 3, 1, 2), steps
        rows = images.flatten(1)
        for layer in self._fcs:
            totals = layer.sums(rows)
            rows = layer.fire(totals.view(steps, samples, 1, 1, -1), steps).view(totals.shape)
        return self.net.voting(rows.view(steps, samples, -1))

    def goes_on(self, frame: Tensor, state: Mapping[str, Tensor] | None) -> bool:
        """Whether `step` serves this frame from these potentials."""
        if state is None:
            return self.fits(frame)
        known = [layer.neuron for layer in (*self._convs, *self._fcs)]
        return (
            list(state) == known
            and all(v.dtype == torch.float32 and len(v) == len(frame) for v in state.values())
            and self.fits(frame)
        )

    def step(self, frame: Tensor, state: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """`plif_lightning.step` of the network: votes [N, num_classes] and potentials."""
        after: dict[str, Tensor] = {}
        images = images_channels_last(frame)
        for layer in self._convs:
            v = None if state is None else _channels_innermost(state[layer.neuron])
            spikes, v = layer.fire_unpooled.step(_channels_innermost(layer.sums(images)), v)
            after[layer.neuron] = v.permute(0, 3, 1, 2)
            images = spikes.permute(0, 3, 1, 2)
            images = images if layer.pool is None else layer.pool(images)
        rows = images.flatten(1)
        for layer in self._fcs:
            totals = layer.sums(rows)
            v = None if state is None else state[layer.neuron].contiguous().view(len(rows), 1, 1, -1)
            spikes, v = layer.fire_unpooled.step(totals.view(len(rows), 1, 1, -1), v)
            rows, after[layer.neuron] = spikes.view(totals.shape), v.view(totals.shape)
        return self.net.voting(rows[None])[0], after


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
