"""A deployed network's layers as plain calls, one after another: what PyTorch's modules do around them is left out.

For one sample that is more than the layers themselves. The numbers are those of the modules, to the bit.
"""

from collections.abc import Callable
from typing import Any

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


class Prepared:
    """Plain calls of a folded network that `is_plain`, whose layers may have been replaced by `Rows` or `Packed`.

    Args:
        net: in evaluation mode; what is changed in it later is not seen.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        self.net = net
        self._parts = list(net.modules())
        self._convs: list[tuple[Sums, FrozenFire]] = []
        self._fcs: list[tuple[Sums, FrozenFire]] = []
        for block in net.blocks().values():
            layer: Any = block.get_submodule(weighted(block))
            neuron: Any = block.get_submodule("neuron")
            pool = (block.pool_name or "none") if isinstance(block, ConvBlock) else "none"
            fire = FrozenFire(neuron.k, neuron.firing, layer.bias, pool)
            (self._convs if isinstance(block, ConvBlock) else self._fcs).append((_sums(layer), fire))
        self._channels = net.structure.channels

    def fits(self, x: Tensor) -> bool:
        """Whether this serves x now: frames or images of the network in float32, few, and nobody listens."""
        net = self.net
        steps = 1 if x.dim() == 4 else len(x)
        return (
            x.dtype == torch.float32
            and x.dim() in (4, 5)
            and x.shape[-3:] == net.input_shape
            and steps == (1 if x.dim() == 4 else net.time_steps)
            and 0 < x.numel() // net.input_shape[0] * self._channels <= at_a_time(x.device)
            and not net.training
            and carried() is None
            and not any(map(has_hooks, self._parts))
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes]."""
        steps, samples, length = self.net.time_steps, x.shape[-4], 1 if x.dim() == 4 else len(x)
        images = images_channels_last(x if x.dim() == 4 else x.flatten(0, 1))
        for sums, fire in self._convs:
            maps = sums(images).permute(0, 2, 3, 1).contiguous()
            spikes = fire(maps.view(length, samples, *maps.shape[1:]), steps)
            images, length = spikes.flatten(0, 1).permute(0, 3, 1, 2), steps
        rows = images.flatten(1)
        for sums, fire in self._fcs:
            totals = sums(rows)
            rows = fire(totals.view(steps, samples, 1, 1, -1), steps).view(totals.shape)
        return self.net.voting(rows.view(steps, samples, -1))


def _sums(layer: Any) -> Sums:
    """A layer without its bias."""
    if isinstance(layer, (Packed, Rows)):
        return layer.sums  # type: ignore[return-value]
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        return lambda images: F.conv2d(images, weight, padding=1)
    return lambda rows: F.linear(rows, weight)
