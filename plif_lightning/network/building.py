"""Make the modules of a structure."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from torch import nn
from torch.nn.modules.utils import _pair

from plif_lightning.errors import UserError, require_known_arguments
from plif_lightning.layers.blocks import Blocks, NeuronBlock, ResidualBlock
from plif_lightning.layers.delay import Delay as DelayLayer
from plif_lightning.layers.norm import NormHeld, NormStatistics, TimeBatchNorm
from plif_lightning.layers.plan import ConvBlock, FCBlock
from plif_lightning.layers.pooling import Pool2d, PoolTies, SpikeMaxPool2d, TimeDropout
from plif_lightning.layers.recurrent import RecurrentLinear
from plif_lightning.neurons import Neuron
from plif_lightning.structure.layers import FC, Conv, Delay, LayerSpec, Neurons, Pool, Residual

MakeNeuron = Callable[[Neurons, int], Neuron]


@dataclass
class Builder:
    """Builds blocks from layer specs.

    Attributes:
        make_neuron: a layer of neurons from its name and arguments, for a number of channels.
        dropouts: drop probability of each `DP` without a value, in order.
        pool_ties: see `SpikingNetwork`; norm_statistics, norm_held and folded likewise.
    """

    make_neuron: MakeNeuron
    dropouts: Iterator[float]
    pool_ties: PoolTies
    norm_statistics: NormStatistics
    norm_held: NormHeld
    folded: bool

    def blocks(self, specs: Sequence[LayerSpec]) -> Blocks:
        """A sequence of blocks, by name."""
        return Blocks(OrderedDict((spec.name, self.block(spec)) for spec in specs))

    def block(self, spec: LayerSpec) -> nn.Module:
        match spec.layer:
            case Conv():
                return self.conv(spec, spec.layer)
            case FC():
                return self.fc(spec, spec.layer)
            case Pool():
                return Pool2d(self.pool(spec.layer, of_spikes=spec.from_neurons))
            case Neurons():
                neuron = self.neuron(spec.layer, spec.after[0], of_maps=len(spec.after) == 3)
                assert neuron is not None
                return NeuronBlock(neuron)
            case Delay(arguments):
                return self.delay(spec, dict(arguments))
            case Residual(how, neurons=neurons):
                parts = self.blocks(spec.branch), self.blocks(spec.shortcut)
                return ResidualBlock(how, *parts, self.neuron(neurons, spec.after[0], of_maps=True))
        assert_never(spec.layer)

    def conv(self, spec: LayerSpec, layer: Conv) -> ConvBlock:
        norm = layer.norm and not self.folded
        sizes: dict[str, Any] = {"stride": layer.stride, "padding": layer.explicit_padding}
        sizes |= {"dilation": layer.dilation, "groups": layer.groups}
        conv = nn.Conv2d(spec.before[0], layer.channels, layer.kernel, bias=not norm, **sizes)
        return ConvBlock(
            conv,
            self.norm(layer.channels, of_maps=True) if norm else None,
            self.neuron(layer.neurons, layer.channels, of_maps=True),
            None if layer.pool is None else Pool2d(self.pool(layer.pool, of_spikes=True)),
        )

    def fc(self, spec: LayerSpec, layer: FC) -> FCBlock:
        dropout = next(self.dropouts) if layer.dropout is None else layer.dropout
        return FCBlock(
            TimeDropout(dropout),
            nn.Linear(math.prod(spec.before), layer.features, bias=layer.bias or (layer.norm and self.folded)),
            self.neuron(layer.neurons, layer.features),
            RecurrentLinear(layer.features) if layer.recurrent else None,
            self.norm(layer.features, of_maps=False) if layer.norm and not self.folded else None,
        )

    def norm(self, channels: int, of_maps: bool) -> TimeBatchNorm:
        return TimeBatchNorm(channels, self.norm_statistics, self.norm_held, of_maps)

    def delay(self, spec: LayerSpec, arguments: dict[str, Any]) -> DelayLayer:
        require_known_arguments("DELAY", arguments, [*inspect.signature(DelayLayer).parameters][1:])
        if "max_delay" not in arguments:
            raise UserError(f"{spec.name}: DELAY needs max_delay, in time-steps: DELAY(max_delay=20).")
        return DelayLayer(spec.before[0], **arguments)

    def neuron(self, layer: Neurons | None, channels: int, of_maps: bool = False) -> Neuron | None:
        """The neurons of a layer; None if it has none.

        Raises:
            UserError: maps with parameters of each neuron.
        """
        neuron = None if layer is None else self.make_neuron(layer, channels)
        if of_maps and neuron is not None and neuron.tau_per == "neuron":
            raise UserError(f"{layer}: tau_per=neuron is for layers of features; neurons of maps have tau_per=channel.")
        return neuron

    def pool(self, layer: Pool, of_spikes: bool) -> nn.Module:
        if layer.kernel is None:
            return nn.AdaptiveAvgPool2d(1) if layer.kind == "AP" else nn.AdaptiveMaxPool2d(1)
        if layer.kind == "AP":
            return nn.AvgPool2d(layer.kernel, layer.stride, layer.padding)
        halves = _pair(layer.kernel) == _pair(layer.stride) == (2, 2) and not layer.padding
        if halves and of_spikes:
            return SpikeMaxPool2d(self.pool_ties)
        return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
