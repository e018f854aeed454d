"""A trained network for inference on a CPU: frozen, BN folded, weights in float32 or 8 bits.

Layers of spikes, and a first layer of event frames, read index lists of their non-zero inputs and hand each other bits.
For a sample, PyTorch's modules, dispatcher and autograd around a layer would take longer than the layer itself.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.folding import fold
from plif_lightning.dynamics.equations import Dynamics, program, register
from plif_lightning.errors import UserError, require_one_of
from plif_lightning.kernels import EventBlock, Pool, SparseMaps, at_a_time, conv_events, linear_of_bits, ops, table_of
from plif_lightning.kernels.bits import pack_spikes
from plif_lightning.kernels.layout import POOLS, Geometry, rows_of
from plif_lightning.layers.plan import ConvBlock, FCBlock, images_channels_last, refuses_conv
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.network.inspect import OnSpikes, record_spikes
from plif_lightning.network.network import require_input
from plif_lightning.network.stepping import State
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.batches import has_time
from plif_lightning.signals.signal import Layer, Signal, keeps_spikes, output_of, run_layers
from plif_lightning.signals.states import LayerState, advance, as_tuple, run_step, stateful_modules
from plif_lightning.structure import LayerSpec

Engine = Literal["float32", "int8"]
Maps = Tensor | SparseMaps
_log = logging.getLogger(__name__)
_NO_STATES = np.empty((0, 1), np.float32)
# Explicit, because torch.set_default_dtype and set_default_device may differ.
_FACTORY: Any = {"dtype": torch.float32, "device": "cpu"}
# Channels of a frame of events: its polarities.
_POLARITIES = 2


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [O, *] as int8 from -127 to 127, and the scale of each output [O].

    The input is spikes, which are exact, so only the weight is rounded, and no data is needed to choose scales.
    """
    scale = (weight.detach().flatten(1).abs().amax(1) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
    integers = (weight.detach() / scale.view(-1, *[1] * (weight.dim() - 1))).round()
    return integers.to(torch.int8), scale.float()


class _FireStage:
    """Bias, neurons and a 2x2 pool with constant parameters: the kernel of `ops.fire` with low overhead.

    Args:
        dynamics: the neurons.
        bias: of the preceding layer [C], added to its sums; or None.
        pool: none, max_first, max_random or avg.
    """

    def __init__(self, dynamics: Dynamics, bias: Tensor | None = None, pool: Pool = "none") -> None:
        self._bias = None if bias is None else bias.detach()
        self._learned = rows_of(dynamics, torch.empty(0, **_FACTORY)).detach()
        self._program, self._pool = program(dynamics.key), POOLS[pool]
        self._cached: dict[Any, Any] = {}

    def __call__(self, y: Tensor, steps: int, states: Tensor | None = None, last: bool = False) -> tuple[Tensor, Any]:
        """Spikes [T, N, H', W', C] of sums [T or 1, N, H, W, C], contiguous; with `last` the states after them.

        States [S, N, H, W, C], without a pool.
        """
        key = (y.shape, steps, torch.get_num_threads())
        if key not in self._cached:
            self._cached = {**dict(list(self._cached.items())[-7:]), key: self._prepared(y, steps)}
        fire, shape = self._cached[key]
        number = len(self._program.states)
        after = torch.empty(number, *y.shape[1:], **_FACTORY) if last else None
        out = torch.empty(shape, **_FACTORY)
        flat, spikes = y.numpy().reshape(len(y), -1), out.numpy().reshape(steps, -1)
        v_first = _NO_STATES if states is None else states.numpy().reshape(number, -1)
        v_last = _NO_STATES if after is None else after.numpy().reshape(number, -1)
        fire(flat, flat[:0], (v_first, v_last), spikes)
        return out, after

    def _prepared(self, y: Tensor, steps: int) -> tuple[ops.PreparedFire, tuple[int, ...]]:
        """The call for maps of this shape, and the shape of its output."""
        geometry = Geometry(y.permute(0, 1, 4, 2, 3), steps, self._pool, len(self._program.states))
        scale = torch.ones(0 if self._bias is None else 1, geometry.channels, **_FACTORY)
        shift = scale if self._bias is None else self._bias[None]
        fire = ops.PreparedFire.of(geometry, scale, shift, self._learned, register(self._program), torch.float32)
        halve = 2 if geometry.pooled else 1
        _, n, height, width, channels = y.shape
        return fire, (steps, n, height // halve, width // halve, channels)


class Frozen(Layer):
    """A layer as a plain call: `run` for tensors [T, N, *] and `SparseMaps` [T N, C, H, W].

    Attributes:
        neurons: its neurons by the names of their layers.
        form: event-driven, dense, or `as it is` for a module; with the type of its weight.
        gives_spikes: its output is spikes.
        on_spikes: called with a layer's name and its spikes [T, N, *], before its pool; None for nobody.
    """

    neurons: dict[str, Neuron]
    form: str
    gives_spikes: bool
    on_spikes: OnSpikes | None = None

    def run(self, x: Signal) -> Maps:
        (neuron,) = self.neurons.values()
        return advance(neuron, partial(self._spikes, x, x.is_step))  # type: ignore[arg-type]

    def keeps_spikes(self, spikes: bool) -> bool:
        return self.gives_spikes

    def _tell(self, spikes: Tensor) -> None:
        (name,) = self.neurons
        assert self.on_spikes is not None
        self.on_spikes(name, spikes)

    def _spikes(
        self, x: Signal, last: bool, before: tuple[Tensor, ...] | None
    ) -> tuple[Maps, tuple[Tensor, ...] | None]:
        """Spikes of the layer's neurons from the states `before`, and with `last` the states after them."""
        raise NotImplementedError


class _Conv(Frozen):
    """A convolution with its bias, neurons and pool."""

    def __init__(self, name: str, block: ConvBlock, events: bool, int8: bool) -> None:
        neuron, weight, bias = block.neuron, block.conv.weight.detach(), block.conv.bias
        assert neuron is not None
        self.neurons = {name: neuron}
        self._conv, self._pool = block.conv, block.pool_name or "none"
        self.form = "dense" if not events else "event-driven, int8" if int8 else "event-driven"
        self._fuses_pool = neuron.fires  # the kernels pool and pack spikes, not numbers
        pools: tuple[Pool, Pool] = (self._pool if neuron.fires else "none", "none")
        self._fire, self._fire_unpooled = (_FireStage(neuron.dynamics, bias, pool) for pool in pools)
        self._events: tuple[EventBlock, EventBlock] | None = None
        integers, scale = quantize(weight) if int8 else (weight, None)
        self._table = table_of(integers) if events else None
        self._scale: Tensor | None = scale
        if self._table is not None and self._pool != "avg" and neuron.fires:
            unit_scale = torch.ones(1, len(weight), **_FACTORY)
            shift = torch.zeros_like(unit_scale) if bias is None else bias[None]
            rows = (
                unit_scale if scale is None else scale[None],
                shift,
                rows_of(neuron.dynamics, unit_scale),
                neuron.dynamics.key,
            )
            event_blocks = [EventBlock(self._table, *rows, pool, block.conv.stride[0]) for pool in pools]
            self._events = event_blocks[0], event_blocks[1]

    def _spikes(
        self, x: Signal, last: bool, before: tuple[Tensor, ...] | None
    ) -> tuple[Maps, tuple[Tensor, ...] | None]:
        first = None if before is None else _together([_channels_innermost(v) for v in before])
        maps: Maps  # [T N, C, H, W]
        if self._events is not None and not x.is_held:
            is_pooled = self.on_spikes is None
            maps, after = self._events[0 if is_pooled else 1](_sparse(x.values), x.steps, first, last)
        else:
            is_pooled = self._fuses_pool and self.on_spikes is None and not last
            fired, after = (self._fire if is_pooled else self._fire_unpooled)(self._sums(x), x.steps, first, last)
            maps = fired.flatten(0, 1).permute(0, 3, 1, 2)
        if self.on_spikes is not None:
            maps = _images(maps)
            self._tell(_over_time(maps, x.steps))
        if not is_pooled and self._pool != "none":
            maps = (F.avg_pool2d if self._pool == "avg" else F.max_pool2d)(_images(maps), 2)
        spikes = maps if isinstance(maps, SparseMaps) else _over_time(maps, x.steps)
        return spikes, None if after is None else tuple(v.permute(0, 3, 1, 2) for v in after)

    def _sums(self, x: Signal) -> Tensor:
        """[T or 1, N, H, W, C], without the bias."""
        conv = self._conv
        if self._table is None:
            images = images_channels_last(_dense(x.values, x.steps).flatten(0, 1))
            sums = F.conv2d(images, conv.weight, None, conv.stride, conv.padding)
        else:
            sums = conv_events(_sparse(x.values), self._table, torch.float32, self._scale, conv.stride[0])
        n, channels, height, width = sums.shape
        length = 1 if x.is_held else x.steps
        return _channels_innermost(sums).view(length, n // length, height, width, channels)


class _FC(Frozen):
    """An FC layer of spikes, or of other numbers, with its neurons, for rows or for maps."""

    def __init__(self, name: str, block: FCBlock, of_spikes: bool, int8: bool) -> None:
        assert block.neuron is not None
        self.neurons, self._of_spikes = {name: block.neuron}, of_spikes
        self.form = "event-driven, int8" if int8 else "event-driven"
        self._scale: Tensor | None
        weight, self._scale = quantize(block.fc.weight) if int8 else (block.fc.weight, None)
        self._table, self._fire = table_of(weight), _FireStage(block.neuron.dynamics, block.fc.bias)

    def _spikes(
        self, x: Signal, last: bool, before: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        totals = self._sums(x.values)
        length, (rows, outputs) = 1 if x.is_held else x.steps, totals.shape
        shape = length, rows // length, 1, 1, outputs
        first = None if before is None else _together([v.reshape(shape[1:]) for v in before])
        fired, after = self._fire(totals.view(shape), x.steps, first, last)
        spikes = fired.view(x.steps, -1, outputs)
        if self.on_spikes is not None:
            self._tell(spikes)
        return spikes, None if after is None else tuple(v.view(spikes.shape[1:]) for v in after)

    def _sums(self, x: Maps) -> Tensor:
        """[T N or N, O], without the bias."""
        if isinstance(x, SparseMaps):
            return linear_of_bits(x.flattened(), math.prod(x.shape[1:]), self._table, self._scale)
        rows = x.flatten(0, 1).flatten(1)
        if self._of_spikes:
            return linear_of_bits(pack_spikes(rows).words, rows.shape[1], self._table, self._scale)
        return conv_events(SparseMaps.of(rows[:, :, None, None]), self._table, torch.float32).flatten(1)


class _AsItIs(Frozen):
    """A block of another kind, called as the module that it is.

    Args:
        block: the block.
        neurons: its neurons by the names of their layers.
        flat: it takes rows.
    """

    form = "as it is"

    def __init__(self, block: nn.Module, neurons: dict[str, Neuron], flat: bool) -> None:
        self._block, self.neurons, self._flat = block, neurons, flat

    def run(self, x: Signal) -> Maps:
        dense = _dense(x.values, x.steps)
        signal = x._replace(values=dense.flatten(2) if self._flat else dense)
        with nullcontext() if self.on_spikes is None else record_spikes(self.neurons, self.on_spikes):
            return output_of(self._block, signal)


def _images(maps: Maps) -> Tensor:
    """Maps [T N, C, H, W] as a tensor."""
    return maps.images(torch.float32) if isinstance(maps, SparseMaps) else maps


def _dense(x: Maps, steps: int) -> Tensor:
    """Values of a signal as a tensor [T, N, *]."""
    return _over_time(x.images(torch.float32), steps) if isinstance(x, SparseMaps) else x


def _over_time(images: Tensor, steps: int) -> Tensor:
    """[T N, *] as [T, N, *]."""
    n, *of_image = images.shape
    return images.view(steps, n // steps, *of_image)


def _sparse(x: Maps) -> SparseMaps:
    return x if isinstance(x, SparseMaps) else SparseMaps.of(x.flatten(0, 1))


def _channels_innermost(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] as [N, H, W, C]; a view where they lie so in memory."""
    return maps.permute(0, 2, 3, 1).contiguous()


def _together(states: list[Tensor]) -> Tensor:
    """States as a single tensor, without a copy for a single state."""
    return states[0][None] if len(states) == 1 else torch.stack(states)


class DeployedNetwork(nn.Module):
    """An inference-only network on a CPU, in float32: a sequence of layers; see `deployed`.

    It has no parameters and no submodules, so that nothing trains, moves or converts it.

    Args:
        net: folded; not used for anything else.
        layers: of its blocks, in order, by name.

    Attributes:
        forms: for each block.
    """

    def __init__(self, net: SpikingNetwork, layers: dict[str, Frozen]) -> None:
        super().__init__()
        self.forms = {name: layer.form for name, layer in layers.items()}
        self.input_shape, self.num_classes, self.time_steps = net.input_shape, net.num_classes, net.time_steps
        self._layers = list(layers.values())
        # In a list, a tuple and a dictionary: not registered as submodules.
        self._inputs, self._voting = ([] if net.inputs.name == "direct" else [net.inputs]), (net.voting,)
        self._stateful = stateful_modules(net)
        first = net.layer_specs[0]
        # 0 unless the first layer is dense: only then is its output, the largest map, stored, and a batch split.
        stored = self._layers[0].form == "dense"
        self._largest_map = math.prod((first.after[0], *first.before[1:])) if stored else 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Votes [T, N, num_classes] for x [T, N, C, H, W] or static images [N, C, H, W], of any numeric type."""
        require_input(x, self.time_steps, self.input_shape)
        x = (x if has_time(x, self.input_shape) else x[None]).to("cpu", torch.float32)
        some = max(1, x.shape[1])
        if self._largest_map and self._layers[0].on_spikes is None:  # who listens hears a layer once, with all samples
            some = min(some, max(1, at_a_time(x.device) // (len(x) * self._largest_map)))
        votes = [self._run(Signal(chunk, self.time_steps)) for chunk in x.split(some, 1)]
        return votes[0] if len(votes) == 1 else torch.cat(votes, 1)

    @torch.no_grad()
    def step(self, frame: Tensor, state: Mapping[str, LayerState] | None = None) -> tuple[Tensor, State]:
        """One time-step, as `plif_lightning.step`: votes [N, num_classes] and the states of its layers by name.

        Raises:
            UserError: another shape of frame, or a state of another network or batch.
        """
        sizes = {len(v) for of_layer in (state or {}).values() for v in as_tuple(of_layer)}
        if frame.shape[1:] != self.input_shape or sizes - {len(frame)}:
            sample, samples = ", ".join(map(str, self.input_shape)), ", ".join(map(str, sorted(sizes)))
            of_state = f" and a state of {samples} samples" if sizes else ""
            raise UserError(
                f"a step takes a frame [N, {sample}] and the state that the step before returned for as many samples, "
                f"got {list(frame.shape)}{of_state}."
            )
        signal = Signal(frame.to("cpu", torch.float32)[None], 1)
        votes, after = run_step(self._stateful, state, lambda: self._run(signal))
        return votes[0], after

    def _run(self, x: Signal) -> Tensor:
        """Votes [T, N, classes] of x [T or 1, N, C, H, W]."""
        if not x.values.shape[1]:
            return torch.zeros(x.steps, 0, self.num_classes)
        with torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext():
            y = run_layers((*self._inputs, *self._layers), x)
            rows = y._replace(values=_dense(y.values, x.steps).flatten(2))
            return output_of(self._voting[0], rows._replace(values=rows.every_step()))

    @contextmanager
    def record_spikes(self, on_spikes: OnSpikes) -> Iterator[None]:
        """Call `on_spikes(layer, spikes)` with each layer's spikes [T, N, *], before its pool, in the context."""
        for layer in self._layers:
            layer.on_spikes = on_spikes
        try:
            yield
        finally:
            for layer in self._layers:
                layer.on_spikes = None


def _frozen(
    net: SpikingNetwork, spec: LayerSpec, block: Any, is_spikes: bool, engine: Engine,
    neurons: Mapping[Any, str],
) -> Frozen:  # fmt: skip
    """A layer of a folded network in the fastest form that runs it.

    Args:
        net: the network.
        spec: the layer.
        block: its module.
        is_spikes: its input is spikes.
        engine: see `deployed`.
        neurons: all neurons of the network, with the names of their layers.
    """
    # Counts of neurons are zero as often as spikes.
    of_neurons = spec.from_neurons and all(neuron.runs_equations for neuron in neurons)
    int8 = engine == "int8" and of_neurons and is_spikes
    neuron = getattr(block, "neuron", None)
    layer: Frozen = _AsItIs(
        block, {neurons[m]: m for m in block.modules() if m in neurons}, flat=isinstance(block, FCBlock)
    )
    if neuron is not None and neuron.runs_equations:
        if isinstance(block, ConvBlock) and not refuses_conv(block) and block.pool_name is not None:
            is_first = spec.name == net.layer_specs[0].name and net.inputs.name == "direct"
            layer = _Conv(spec.name, block, of_neurons or (is_first and net.input_shape[0] == _POLARITIES), int8)
        elif isinstance(block, FCBlock) and block.recurrent is None and of_neurons:
            layer = _FC(spec.name, block, is_spikes, int8)
    return layer


def deployed(net: nn.Module, engine: Engine = "float32") -> DeployedNetwork:
    """A frozen copy of a network for inference on a CPU.

    Args:
        net: trained, from a structure.
        engine: `float32`, or `int8`: weights of layers of spikes in 8 bits.

    Layers of spikes are event-driven, and so is a first convolution of two channels, the polarities of events; their
    sums are bit-identical to the network's with `sparse="always"`. Other convolutions are PyTorch's. A layer that the
    kernels do not know stays as it is.

    Raises:
        UserError: an unknown engine; or as `folding.require_structure`.
    """
    require_one_of("engine", engine, Engine)
    return freeze(fold(net, torch.float32).cpu(), engine)


def freeze(folded: SpikingNetwork, engine: Engine) -> DeployedNetwork:
    """`deployed` of a folded network on a CPU in float32, which is used up."""
    use_backend(folded.requires_grad_(False), "cpu", "never")
    neurons, blocks = {neuron: name for name, neuron in folded.neurons()}, folded.blocks()
    layers, is_spikes = {}, keeps_spikes(folded.inputs, spikes=False)
    for spec in folded.layer_specs:
        block = blocks[spec.name]
        layers[spec.name] = _frozen(folded, spec, block, is_spikes, engine, neurons)
        is_spikes = layers[spec.name].gives_spikes = keeps_spikes(block, is_spikes)
    if engine == "int8" and not any("int8" in layer.form for layer in layers.values()):
        _log.warning("int8: no layer has weights in 8 bits. Recurrent layers, and layers without spikes, keep theirs.")
    return DeployedNetwork(folded, layers)
