"""Make the modules of a structure."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.utils import _pair

from plif_lightning.errors import UserError
from plif_lightning.network.blocks import Blocks, FCBlock, NeuronBlock, Residual, gives_whole
from plif_lightning.network.conv import ConvBlock, fires
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.network.norm import NormHeld, NormStatistics, TimeBatchNorm2d
from plif_lightning.network.pooling import Pooling, PoolTies, SpikeMaxPool2d, TiedMaxPool2d
from plif_lightning.neurons import Neuron
from plif_lightning.structure import FC, Conv, Neurons, Placed, Pool
from plif_lightning.structure import Residual as ResidualLayer
from plif_lightning.structure.shapes import padding_of

MakeNeuron = Callable[[Neurons, int], Neuron]


@dataclass
class Builder:
    """Makes blocks from placed layers.

    Attributes:
        time_steps: T.
        make_neuron: a layer of neurons from its name and arguments, for a number of channels.
        dropouts: drop probability of each `DP` without one, in order.
        pooling: avg puts an average pool in the place of every max-pool.
        pool_ties: see `SpikingNetwork`; norm_statistics, norm_held and folded likewise.
    """

    time_steps: int
    make_neuron: MakeNeuron
    dropouts: Iterator[float]
    pooling: Pooling
    pool_ties: PoolTies
    norm_statistics: NormStatistics
    norm_held: NormHeld
    folded: bool

    def blocks(self, placed: Sequence[Placed], whole: bool = False) -> Blocks:
        """A sequence of blocks, by name; `whole`: its input holds whole numbers."""
        found: OrderedDict[str, nn.Module] = OrderedDict()
        for one in placed:
            found[one.name] = self.block(one, whole)
            whole = gives_whole(found[one.name], whole)
        return Blocks(found)

    def block(self, placed: Placed, whole: bool) -> nn.Module:
        match placed.layer:
            case Conv():
                return self.conv(placed, placed.layer)
            case FC():
                return self.fc(placed, placed.layer)
            case Pool():
                return Pool2d(self.pool(placed.layer, of_spikes=False, whole=whole))
            case Neurons():
                neuron = self.make_neuron(placed.layer, placed.after[0])
                return NeuronBlock(neuron, time_steps=self.time_steps)
            case ResidualLayer():
                branch, shortcut = (self.blocks(part, whole) for part in (placed.branch, placed.shortcut))
                return Residual(placed.layer.how, branch, shortcut)
        raise UserError(f"a network cannot be built with {placed.layer}, which the notation does not have.")

    def conv(self, placed: Placed, layer: Conv) -> ConvBlock:
        norm = layer.norm and not self.folded
        sizes: dict[str, Any] = {
            "stride": layer.stride, "padding": padding_of(layer), "dilation": layer.dilation, "groups": layer.groups
        }  # fmt: skip
        conv = nn.Conv2d(placed.before[0], layer.channels, layer.kernel, bias=not norm, **sizes)
        neuron = None if layer.neurons is None else self.make_neuron(layer.neurons, layer.channels)
        of_spikes = fires(neuron)
        return ConvBlock(
            conv,
            TimeBatchNorm2d(layer.channels, self.norm_statistics, self.norm_held) if norm else None,
            neuron,
            Pool2d(self.pool(layer.pool, of_spikes, of_spikes)) if isinstance(layer.pool, Pool) else None,
            time_steps=self.time_steps,
        )

    def fc(self, placed: Placed, layer: FC) -> FCBlock:
        dropout = next(self.dropouts) if layer.dropout is None else layer.dropout
        neuron = None if layer.neurons is None else self.make_neuron(layer.neurons, layer.features)
        return FCBlock(
            TimeDropout(dropout), nn.Linear(math.prod(placed.before), layer.features, bias=layer.bias), neuron
        )

    def pool(self, layer: Pool, of_spikes: bool, whole: bool) -> nn.Module:
        average = layer.kind == "AP" or self.pooling == "avg"
        if layer.kernel is None:
            return nn.AdaptiveAvgPool2d(1) if average else nn.AdaptiveMaxPool2d(1)
        if average:
            return nn.AvgPool2d(layer.kernel, layer.stride, layer.padding)
        halves = _pair(layer.kernel) == _pair(layer.stride) == (2, 2) and not layer.padding
        if halves and of_spikes:
            return SpikeMaxPool2d(self.pool_ties)
        return TiedMaxPool2d(layer.kernel, layer.stride, layer.padding, self.pool_ties, whole)
