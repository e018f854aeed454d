"""Layers of a deployed network as plain calls, and the network made of them.

For one sample, PyTorch's modules around a layer take longer than the layer itself. Results equal those of the folded
network to the bit.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.layers import refuses_containers
from plif_lightning.deploy.weights import Rows, Weights
from plif_lightning.errors import UserError
from plif_lightning.kernels import EventBlock, FrozenFire, Pool, SparseMaps, at_a_time, linear_of_bits, unpack
from plif_lightning.kernels.operators import not_traced
from plif_lightning.network import SpikingNetwork, step
from plif_lightning.network.blocks import FCBlock
from plif_lightning.network.conv import ConvBlock, images_channels_last
from plif_lightning.network.hooks import Hear, listening
from plif_lightning.network.network import require_input
from plif_lightning.network.output import Integral
from plif_lightning.network.stepping import foreign_state
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import LayerState, carrying, packed, unpacked

Maps = Tensor | SparseMaps
State = dict[str, LayerState]


def _pooled(maps: Tensor, pool: Pool) -> Tensor:
    if pool == "none":
        return maps
    return F.avg_pool2d(maps, 2) if pool == "avg" else F.max_pool2d(maps, 2)


class Layer(Protocol):
    """A layer as a plain call.

    Attributes:
        neurons: names of its neurons in the network.
    """

    neurons: tuple[str, ...]

    def __call__(self, x: Maps, length: int, steps: int, hear: Hear | None) -> Maps:
        """Its output [T N, *] for x [length N, *], length being T, or 1 for an input that is held."""

    def step(self, x: Maps, state: Mapping[str, LayerState] | None, hear: Hear | None) -> tuple[Maps, State]:
        """Its output [N, *] and its potentials after one time-step."""


class ConvLayer:
    """A folded convolutional block with its weight in some form.

    Args:
        name: of its neurons.
        block: one that the kernels know.
        weights: its weight.
    """

    def __init__(self, name: str, block: ConvBlock, weights: Weights) -> None:
        self.neurons: tuple[str, ...] = (name,)
        neuron, bias, pool = block.neuron, block.conv.bias, block.kernel_pool
        assert neuron is not None
        self._weights, self._pool = weights, pool
        self._fire, self._fire_unpooled = (FrozenFire(neuron.dynamics, bias, p) for p in (pool, "none"))
        self._events = self._events_unpooled = None
        if isinstance(weights, Rows) and pool != "avg":
            of_neurons = partial(EventBlock.of_neurons, weights.table, weights.scale, bias, neuron.dynamics)
            self._events, self._events_unpooled = (of_neurons(p, weights.stride) for p in (pool, "none"))

    @property
    def event_driven(self) -> bool:
        """True if its convolution's output is never stored, and its spikes are handed on as bits."""
        return self._events is not None

    def __call__(self, x: Maps, length: int, steps: int, hear: Hear | None = None) -> Maps:
        if hear is not None:
            spikes = _dense(self._run(x, length, steps, self._events_unpooled, self._fire_unpooled))
            hear(self.neurons[0], spikes.unflatten(0, (steps, -1)))
            return _pooled(spikes, self._pool)
        return self._run(x, length, steps, self._events, self._fire)

    def _run(self, x: Maps, length: int, steps: int, events: EventBlock | None, fire: FrozenFire) -> Maps:
        if events is not None and length == steps:
            return events(self._sparse(x), steps)
        maps = self._sums(x)
        spikes = fire(maps.view(length, len(maps) // length, *maps.shape[1:]), steps)
        return spikes.flatten(0, 1).permute(0, 3, 1, 2)

    def step(self, x: Maps, state: Mapping[str, LayerState] | None, hear: Hear | None = None) -> tuple[Maps, State]:
        (name,) = self.neurons
        before = None if state is None else _together([_channels_innermost(v) for v in unpacked(state[name])])
        if self._events is not None and hear is None:
            pooled, after = self._events.step(self._sparse(x), before)
            return pooled, {name: _channels_first(after)}
        if self._events_unpooled is not None:
            bits, after = self._events_unpooled.step(self._sparse(x), before)
            spikes = bits.images(torch.float32)
        else:
            fired, after = self._fire_unpooled.step(self._sums(x), before)
            spikes = fired.permute(0, 3, 1, 2)
        if hear is not None:
            hear(name, spikes[None])
        return _pooled(spikes, self._pool), {name: _channels_first(after)}

    def _sums(self, x: Maps) -> Tensor:
        """[N, H, W, C]."""
        return _channels_innermost(self._weights.sums(_dense(x, self._weights.takes)))

    def _sparse(self, x: Maps) -> SparseMaps:
        assert isinstance(self._weights, Rows)
        return x if isinstance(x, SparseMaps) else SparseMaps.of(x, self._weights.binary)


class FCLayer:
    """The same of an FC block, for rows or for maps."""

    def __init__(self, name: str, block: FCBlock, weights: Weights) -> None:
        self.neurons: tuple[str, ...] = (name,)
        self._weights = weights
        assert block.neuron is not None
        self._fire = FrozenFire(block.neuron.dynamics)

    def __call__(self, x: Maps, length: int, steps: int, hear: Hear | None = None) -> Tensor:
        totals = self._sums(x)
        spikes = self._fire(totals.view(length, len(totals) // length, 1, 1, -1), steps).view(-1, totals.shape[1])
        if hear is not None:
            hear(self.neurons[0], spikes.unflatten(0, (steps, -1)))
        return spikes

    def step(self, x: Maps, state: Mapping[str, LayerState] | None, hear: Hear | None = None) -> tuple[Tensor, State]:
        (name,), totals = self.neurons, self._sums(x)
        rows = len(totals), 1, 1, totals.shape[1]
        before = None if state is None else _together([v.reshape(rows) for v in unpacked(state[name])])
        spikes, after = self._fire.step(totals.view(rows), before)
        spikes = spikes.view(totals.shape)
        if hear is not None:
            hear(name, spikes[None])
        return spikes, {name: packed(tuple(after[i].view(totals.shape) for i in range(after.shape[0])))}

    def _sums(self, x: Maps) -> Tensor:
        if not isinstance(x, SparseMaps):
            return self._weights.sums(x.flatten(1))
        bits, inputs = x.flattened(), math.prod(x.shape[1:])
        if isinstance(self._weights, Rows):
            return linear_of_bits(bits, inputs, self._weights.table, self._weights.scale)
        return self._weights.sums(unpack(bits, inputs, self._weights.takes))


class ModuleLayer:
    """A block of another kind, or with hooks, called as the module that it is.

    Args:
        prefix: its name in the network.
        block: the block.
        flat: it takes rows.
    """

    def __init__(self, prefix: str, block: nn.Module, flat: bool) -> None:
        self._block, self._flat = block, flat
        self._named = {f"{prefix}.{n}": part for n, part in block.named_modules() if isinstance(part, Neuron)}
        self.neurons = tuple(self._named)

    def __call__(self, x: Maps, length: int, steps: int, hear: Hear | None = None) -> Tensor:
        dense = _dense(x)
        given = (dense.flatten(1) if self._flat else dense).unflatten(0, (length, -1))
        with listening(self._named, hear):
            return self._block(given).flatten(0, 1)

    def step(self, x: Maps, state: Mapping[str, LayerState] | None, hear: Hear | None = None) -> tuple[Tensor, State]:
        before: dict[nn.Module, LayerState] = {}
        if state is not None:
            before = {neuron: state[name] for name, neuron in self._named.items()}
        with carrying(before) as carried:
            spikes = self(x, 1, 1, hear)
        return spikes, {name: carried.after[neuron] for name, neuron in self._named.items()}


def _dense(x: Maps, dtype: torch.dtype = torch.float32) -> Tensor:
    return x.images(dtype) if isinstance(x, SparseMaps) else x


def _channels_innermost(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] as [N, H, W, C]; a view where they lie so in memory."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _channels_first(states: Tensor) -> LayerState:
    """Inverse of `_channels_innermost`, for the states of a layer [S, N, H, W, C]."""
    return packed(tuple(states[i].permute(0, 3, 1, 2) for i in range(states.shape[0])))


def _together(states: list[Tensor]) -> Tensor:
    """States as one tensor, without a copy if there is one."""
    return states[0][None] if len(states) == 1 else torch.stack(states)


# The state of a readout's leaky integral, by the name of its module.
_INTEGRAL = "voting"


def _layer_of(neuron: str) -> str:
    """The layer that neurons belong to, by the name of their module: `encoder.res1.branch.conv2.neuron`."""
    *_, layer, last = neuron.split(".")
    return layer if last == "neuron" else neuron.split(".")[1]


class DeployedNetwork(nn.Module):
    """A network that only infers, on a CPU, in float32: its layers, one after another; see `deployed`.

    It is immutable: it has no parameters, no submodules and no training mode.

    Args:
        net: folded; not used for anything else. One with a forward, or a container, of its own is called as it is.
        layers: of its blocks, in order.
        forms: of each block.

    Attributes:
        forms: of each block: dense or events; of integers `int8 dense`, `int8 events` and so on.
    """

    def __init__(self, net: SpikingNetwork, layers: list[Layer], forms: dict[str, str]) -> None:
        super().__init__()
        self.forms = forms
        self.input_shape, self.num_classes, self.time_steps = net.input_shape, net.num_classes, net.time_steps
        self._layers = layers
        # In a tuple: not registered as a submodule.
        self._modules_of = (net.inputs, net.voting)
        self._whole: tuple[SpikingNetwork, ...] = (net,) if refuses_containers(net) else ()
        self._largest_map = net.largest_map
        self._hear: Hear | None = None
        self._shapes: dict[str, list[tuple[int, ...]]] | None = None  # of one sample's states

    @not_traced
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or static images [N, C, H, W], of any numeric type."""
        require_input(x, self.time_steps, self.input_shape)
        x = (x[None] if x.dim() == 4 else x).to("cpu", torch.float32)
        some = self._samples_at_a_time(x)
        with torch.autocast("cpu", enabled=False):
            if x.shape[1] <= some:
                return self._votes(x)
            return torch.cat([self._votes(part) for part in x.split(some, 1)], 1)

    def _samples_at_a_time(self, x: Tensor) -> int:
        """Number of samples whose first feature map, if it is stored, fits into the memory limit of a convolution."""
        first = self._layers[0] if self._layers else None
        if not x.shape[1] or not isinstance(first, ConvLayer) or first.event_driven:
            return x.shape[1]
        return max(1, at_a_time(x.device) // (len(x) * self._largest_map))

    def _votes(self, x: Tensor) -> Tensor:
        if not x.shape[1]:
            return torch.zeros(self.time_steps, 0, self.num_classes)
        if self._whole:
            with self._listening_to_whole():
                return self._whole[0](x if len(x) == self.time_steps else x[0])
        inputs, voting = self._modules_of
        x = inputs(x)
        length = len(x)
        maps: Maps = images_channels_last(x.flatten(0, 1))
        for layer in self._layers:
            maps = layer(maps, length, self.time_steps, self._hear)
            length = maps.shape[0] // x.shape[1]  # 1 until neurons have seen time
        y = _dense(maps).flatten(1).unflatten(0, (length, -1))
        return voting(y if length == self.time_steps else y.expand(self.time_steps, *y.shape[1:]))

    @not_traced
    @torch.no_grad()
    def step(self, frame: Tensor, state: Mapping[str, LayerState] | None = None) -> tuple[Tensor, State]:
        """One time-step, as `plif_lightning.step`: votes [N, num_classes] and the potential of each neuron.

        Raises:
            UserError: another shape of frame, or a state of another network or batch.
        """
        if frame.dim() != 4 or frame.shape[1:] != self.input_shape:
            c, h, w = self.input_shape
            raise UserError(f"x must be one step [N, {c}, {h}, {w}], got {list(frame.shape)}.")
        frame = frame.to("cpu", torch.float32)
        with torch.autocast("cpu", enabled=False):
            if self._whole:
                with self._listening_to_whole():
                    return step(self._whole[0], frame, state)
            self._require_state(frame, state)
            return self._step(frame, state)

    def _step(self, frame: Tensor, state: Mapping[str, LayerState] | None) -> tuple[Tensor, State]:
        inputs, voting = self._modules_of
        integral = {} if state is None or _INTEGRAL not in state else {voting: state[_INTEGRAL]}
        with carrying(integral) as carried:
            frame = inputs(frame[None])[0]  # refuses what draws all steps at once
            maps: Maps = images_channels_last(frame)
            after: State = {}
            for layer in self._layers:
                maps, potentials = layer.step(maps, state, self._hear)
                after |= potentials
            votes = voting(_dense(maps).flatten(1)[None])[0]
        if isinstance(voting, Integral):
            after[_INTEGRAL] = carried.after[voting]
        return votes, after

    def _require_state(self, frame: Tensor, state: Mapping[str, LayerState] | None) -> None:
        names = [name for layer in self._layers for name in layer.neurons]
        names += [_INTEGRAL] if isinstance(self._modules_of[1], Integral) else []
        if state is None:
            return
        if list(state) != names:
            raise foreign_state(state, names)
        if self._shapes is None:
            after = self._step(torch.zeros(1, *self.input_shape, dtype=torch.float32, device="cpu"), None)[1]
            self._shapes = {name: [tuple(v.shape[1:]) for v in unpacked(of)] for name, of in after.items()}
        # The kernels read as many values as there are neurons, whatever they are given.
        for name, shapes in self._shapes.items():
            states = unpacked(state[name])
            if len(states) != len(shapes):
                raise UserError(f"{name} has {len(shapes)} states, got {len(states)}.")
            for v, shape in zip(states, shapes, strict=True):
                if v.shape != (len(frame), *shape) or v.dtype != torch.float32 or v.device.type != "cpu":
                    raise UserError(
                        f"v must have the shape of one step, {[len(frame), *shape]} in float32 on the CPU for {name}, "
                        f"got {list(v.shape)} in {str(v.dtype)[6:]} on {v.device}."
                    )

    @contextmanager
    def listening(self, hear: Hear) -> Iterator[None]:
        """Calls `hear(layer, spikes)` with each layer's spikes [T, N, *], before its pool, while the context lasts."""
        self._hear = lambda name, spikes: hear(_layer_of(name), spikes)
        try:
            yield
        finally:
            self._hear = None

    def _listening_to_whole(self) -> AbstractContextManager[None]:
        return listening({f"whole.{name}": neuron for name, neuron in self._whole[0].neurons()}, self._hear)

    def train(self, mode: bool = True) -> "DeployedNetwork":
        """Stays in evaluation mode: there is nothing to train."""
        return super().train(False)
