"""Estimate operations, memory traffic and energy per sample, and compare with a conventional network.

Energies are for a 45 nm process (Horowitz, "Computing's energy problem", ISSCC 2014): they compare designs and do
not predict the energy of a real processor. Counting arithmetic alone, as most papers do, flatters spiking networks:
they trade multiplications for time-steps, potentials and memory. Memory is therefore estimated too,
for both extremes of hardware: every operation fetches its weight from the memory that holds the layer's weights, or
each weight is fetched once (in a spiking network at most once per time-step) into a buffer of 8 KiB.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from plif_lightning.errors import UserError
from plif_lightning.layers.blocks import WITH_NEURON, ResidualBlock
from plif_lightning.layers.recurrent import Recurrent, RecurrentLinear
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.inspect import forward_hooks, restore_modes
from plif_lightning.network.stepping import unwrapped
from plif_lightning.neurons import Neuron
from plif_lightning.runtime.batches import has_time
from plif_lightning.signals.hooks import package_of
from plif_lightning.signals.signal import Layer
from plif_lightning.structure.shapes import every_layer

# pJ. float32: multiplication and addition; addition. Below: 8-bit integers with 32-bit sums.
MAC, AC = 3.7 + 0.9, 0.9
MAC_INT8, AC_INT8 = 0.2 + 0.1, 0.1
# (size in bytes, pJ per byte fetched) of on-chip memories; anything larger is DRAM.
_MEMORIES = ((8 * 2**10, 10 / 8), (32 * 2**10, 20 / 8), (2**20, 100 / 8))
_DRAM = 1600 / 8


def picojoules_a_byte(size: int) -> float:
    """The energy to fetch a byte from the smallest memory that holds `size` bytes [pJ]."""
    return next((energy for limit, energy in _MEMORIES if size <= limit), _DRAM)


class LayerCost(NamedTuple):
    """Operations and memory of a layer for a sample, over all T steps.

    Attributes:
        layer: name of the layer; `fc1.recurrent` for the recurrent products of `fc1`.
        spikes: the input is spikes, or a neuron's counts of them, so operations are accumulates; otherwise they are
            multiply-accumulates. Always False for layers that take the network's input directly.
        firing: fraction of the inputs that are non-zero; of counts their mean, the spikes of an input and step.
        dense: operations without skipping, a pair of input and weight each.
        actual: operations of non-zero inputs, one for each spike of a count.
        once: operations of a conventional layer of this shape on one input.
        runs: executions per sample: T, or 1 if the input is static.
        updates: neurons times steps.
        parameters: number of parameters of the layer and its neurons.
        state: numbers kept between steps: for most neurons the potential, for some more.
        states: how many of them for a neuron, or for a value of a delay.
        moved: how many of these are read and written at a step.
        inputs: inputs of the conventional layer: T of a sequence [T, N, F], which it sees step by step; otherwise a
            single frame, on which it has no recurrence.
    """

    layer: str
    spikes: bool
    firing: float
    dense: float
    actual: float
    once: float
    runs: int
    updates: float
    parameters: int
    state: int
    states: int = 1
    moved: int = 1
    inputs: int = 1

    @property
    def macs(self) -> float:
        """Multiply-accumulates, including a neuron update per neuron and step, whatever its equations."""
        return (0.0 if self.spikes else self.actual) + self.updates

    @property
    def accumulates(self) -> float:
        return self.actual if self.spikes else 0.0

    @property
    def arithmetic(self) -> float:
        """Energy of float32 arithmetic at the measured firing [pJ]."""
        return MAC * self.macs + AC * self.accumulates

    @property
    def arithmetic_dense(self) -> float:
        """Energy of float32 arithmetic if every operation were a multiply-accumulate and none were skipped [pJ]."""
        return MAC * (self.dense + self.updates)

    @property
    def traffic(self) -> float:
        """Bytes moved: an 8-bit weight per operation, and a read and write of each state (4 bytes) per step."""
        return self.actual + 8 * self.updates * self.moved

    def with_memory(self, reuse: bool) -> float:
        """The energy with 8-bit weights of weight fetches, potentials (read and written) and arithmetic [pJ].

        Args:
            reuse: fetch a weight at most once per time-step instead of once per operation.
        """
        per_operation = AC_INT8 if self.spikes else MAC_INT8
        fetched = min(self.actual, self.parameters * self.runs)
        potentials = 8 * self.updates * self.moved * picojoules_a_byte(4 * self.state)
        computed = per_operation * self.actual + MAC_INT8 * self.updates
        return self._weights(self.actual, fetched, reuse) + potentials + computed

    def conventional(self, reuse: bool) -> float:
        """The energy of a conventional 8-bit layer of this shape on its inputs, memory included [pJ]."""
        outputs = self.state // self.states
        activations = 2 * outputs * picojoules_a_byte(outputs)
        weights = self._weights(self.once, min(self.once, self.parameters), reuse)
        return self.inputs * (weights + MAC_INT8 * self.once + activations)

    def _weights(self, operations: float, fetched: float, reuse: bool) -> float:
        of_memory = picojoules_a_byte(self.parameters)
        return fetched * of_memory + operations * picojoules_a_byte(1) if reuse else operations * of_memory


@dataclass(frozen=True)
class Cost:
    """Cost of a network for a sample.

    Attributes:
        layers: costs of the layers, from input to output.
        samples: number of samples that firing was measured on.
        time_steps: T.
        not_counted: `name: class` of each module whose operations are in no layer: with weights, or of the user's.
    """

    layers: tuple[LayerCost, ...]
    samples: int
    time_steps: int
    not_counted: tuple[str, ...] = ()

    def total(self, field: str, *arguments: bool) -> float:
        """The sum of an attribute or method of `LayerCost` over all layers."""
        values = [getattr(layer, field) for layer in self.layers]
        return sum(value(*arguments) if callable(value) else value for value in values)

    def summary(self) -> dict[str, Any]:
        """Costs that a run records, per sample: neurons times steps of each layer, operations, energies [pJ]."""
        updates: dict[str, float] = {}
        for layer in self.layers:  # a layer that is used twice is there twice
            updates[layer.layer] = updates.get(layer.layer, 0.0) + layer.updates
        return {
            "samples": self.samples,
            "time_steps": self.time_steps,
            "updates": updates,
            "macs": self.total("macs"),
            "accumulates": self.total("accumulates"),
            "pj_arithmetic": self.total("arithmetic"),
            "pj_int8_fetched": self.total("with_memory", False),
            "pj_int8_reused": self.total("with_memory", True),
        }


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The cost of a sample, averaged over costs of a network with a sample each."""
    layers = []
    for same in zip(*(cost_of_sample.layers for cost_of_sample in costs), strict=True):
        firing, actual = (fmean(getattr(layer, name) for layer in same) for name in ("firing", "actual"))
        spikes = all(layer.spikes for layer in same)
        layers.append(same[0]._replace(spikes=spikes, firing=firing, actual=actual))
    return Cost(tuple(layers), len(costs), costs[0].time_steps, costs[0].not_counted)


Products = Mapping[str, Mapping[Any, float]]
# Layers with weights, and their names in a block.
_WEIGHTED: tuple[tuple[Any, str], ...] = (((nn.Conv1d, nn.Conv2d), "conv"), (nn.Linear, "fc"))
# Layers of a user-defined network that are counted by themselves, and the dimensions of a sample that they see.
_FEATURES: dict[Any, int] = {nn.Conv1d: 2, nn.Conv2d: 3, nn.Linear: 1}


@torch.no_grad()
def cost(net: nn.Module, x: Tensor) -> Cost:
    """Estimate the cost of a network per sample, averaged over the samples in `x`.

    Args:
        net: trained network. Of a user-defined network, convolutions, FC layers and neurons are counted individually,
            and all other products, such as attention's, together as `other products`.
        x: frames [T, N, C, H, W], a sequence [T, N, F], or static images [N, C, H, W], for which the first convolution
            runs once.

    Raises:
        UserError: there is no layer.
    """
    net = unwrapped(net)
    counter = _StructureCounter(net, x) if isinstance(net, SpikingNetwork) else _ModuleCounter(net, x)
    with restore_modes(net):
        net.eval()
        with forward_hooks(counter.layers, counter.count):
            votes = net(counter.x)
        products = counter.products()
    frames = counter.frames(votes)
    layer_costs = tuple(layer._replace(updates=layer.updates * frames) for layer in counter.layer_costs)
    if not layer_costs:
        raise UserError(f"{type(net).__name__} has no layers that are counted: pass the network, not a deployed one.")
    if rest := _other_products(products, type(net).__name__, counter.layers) / counter.samples:
        layer_costs += (LayerCost("other products", False, 1.0, rest, rest, rest / frames, frames, 0.0, 0, 0),)
    if x.dim() == 3:
        layer_costs = tuple(layer._replace(inputs=frames) for layer in layer_costs)
    return Cost(layer_costs, counter.samples, frames, tuple(_not_counted(net, counter.layers, products)))


def _not_counted(net: nn.Module, layers: Mapping[str, nn.Module], products: Products) -> Iterator[str]:
    """`name: class` of modules whose operations no row has: with weights, or without layers in them and not ours."""
    counted = {*layers.values()}
    for block in layers.values():
        parts = [getattr(block, name, None) for name in ("conv", "fc", "neuron", "recurrent")]
        counted.update(module for part in parts if isinstance(part, nn.Module) for module in part.modules())
    for name, module in net.named_modules():
        has_weights = any(True for _ in module.parameters(recurse=False)) and not isinstance(module, _BatchNorm)
        is_users = not package_of(module) and not [*module.children()]
        in_row = module in counted or products.get(".".join(filter(None, [type(net).__name__, name])))
        if (has_weights or is_users) and not in_row:
            yield f"{name or 'the network'}: {type(module).__name__}"


def _other_products(products: Products, net: str, layers: Mapping[str, nn.Module]) -> float:
    """Multiply-accumulates outside of the layers that are counted individually, such as attention's."""
    counted = sum(sum(products.get(f"{net}.{name}", {}).values()) for name in layers)
    return (sum(products.get("Global", {}).values()) - counted) / 2


class _Counter:
    """Counts the layers of a network as they are called.

    Attributes:
        layers: counted layers, by name.
        layer_costs: their costs so far, with the updates of a step.
        samples: N.
    """

    layers: dict[str, nn.Module]

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.x = x
        self.has_counts = any(isinstance(neuron, Neuron) and not neuron.fires for neuron in net.modules())
        self.sample_axis = int(has_time(x, getattr(net, "input_shape", None)))
        self.samples = x.shape[self.sample_axis]
        self.layer_costs: list[LayerCost] = []

    def frames(self, votes: Tensor) -> int:
        """T of a call that gave these votes."""
        raise NotImplementedError

    def products(self) -> Products:
        """Operations of PyTorch's products in a call, by module; empty if the layers have all of them."""
        raise NotImplementedError

    def may_be_spikes(self, name: str, x: Tensor) -> bool:
        """False if the input of a layer is the network's, which is never counted as spikes."""
        raise NotImplementedError

    def count(self, name: str, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Add the cost of a call."""
        x = inputs[0]
        spikes = self.may_be_spikes(name, x) and self._are_spikes(x)
        features = next((number for kind, number in _FEATURES.items() if isinstance(block, kind)), None)
        if features is not None:
            x = self._by_steps(x, features)
        self.layer_costs.append(_layer_cost(name, block, x, spikes, self.samples))
        recurrent = getattr(block, "recurrent", None)
        if isinstance(recurrent, RecurrentLinear):
            before = torch.cat([torch.zeros_like(output[:1]), output[:-1]])
            spikes = self._are_spikes(before)
            row = _layer_cost(f"{name}.recurrent", recurrent, before, spikes, self.samples)
            self.layer_costs.append(row._replace(inputs=0))

    def _are_spikes(self, x: Tensor) -> bool:
        """True for zeros and ones; in a network whose neurons count, for whole numbers, but not for sums of spikes."""
        return bool(((x >= 0) & (x == x.round()) if self.has_counts else (x == 0) | (x == 1)).all())

    def _by_steps(self, x: Tensor, features: int) -> Tensor:
        """The input of a plain layer as [T, N, *]: it may see steps and samples as a single dimension."""
        if x.dim() - 2 >= features and x.shape[1] == self.samples:
            return x
        if x.dim() - 1 >= features and len(x) % self.samples == 0:
            return x.unflatten(0, (-1, self.samples))
        return x.reshape(-1, self.samples, *x.shape[x.dim() - features :])


class _StructureCounter(_Counter):
    """Counts a network from a structure by its placed layers."""

    def __init__(self, net: SpikingNetwork, x: Tensor) -> None:
        # As the network does, so that its input is known again.
        super().__init__(net, x.to(next(net.parameters()).dtype))
        self.time_steps = net.time_steps
        self.of_spikes = {spec.name: spec.from_neurons for spec in every_layer(net.layer_specs)}
        self.layers = {name: block for name, block in net.layers().items() if _has_row(block)}
        # The neurons behind a sum see the sum; the layers in its branches count themselves.
        self.layers |= {
            n: b.neuron for n, b in self.layers.items() if isinstance(b, ResidualBlock) and b.neuron is not None
        }

    def frames(self, votes: Tensor) -> int:
        return self.time_steps

    def products(self) -> Products:
        return {}

    def may_be_spikes(self, name: str, x: Tensor) -> bool:
        return self.of_spikes[name] or not _is_input(x, self.x)


def _has_row(block: nn.Module) -> bool:
    """True for a block with weights, neurons or a memory of its own."""
    return bool(getattr(block, "kept", 0)) or any(
        getattr(block, name, None) is not None for name in ("conv", "fc", "neuron")
    )


class _ModuleCounter(_Counter):
    """Counts the blocks of a user-defined network, and layers and neurons outside of them."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__(net, x)
        self.net = net
        blocks = {name: module for name, module in net.named_modules() if isinstance(module, (*WITH_NEURON, Recurrent))}
        in_blocks = {module for block in blocks.values() for module in block.modules()}
        counted = (*_FEATURES, Neuron)
        outside = {n: p for n, p in net.named_modules() if p not in in_blocks}
        free = {n for n, p in outside.items() if isinstance(p, counted) or (isinstance(p, Layer) and p.kept)}
        self.layers = {name: module for name, module in net.named_modules() if name in {*blocks, *free}}

    def frames(self, votes: Tensor) -> int:
        return len(self.x if self.sample_axis else votes)

    def products(self) -> Products:
        # In a call without counting's products. PyTorch knows attention only as the products that it is made of.
        with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
            self.net(self.x)
        return flops.get_flop_counts()

    def may_be_spikes(self, name: str, x: Tensor) -> bool:
        return bool(self.layer_costs) and not _is_input(x, self.x)


def _is_input(x: Tensor, of_network: Tensor) -> bool:
    """True for a view of the network's input."""
    return x.untyped_storage().data_ptr() == of_network.untyped_storage().data_ptr()


def _layer_cost(name: str, block: nn.Module, x: Tensor, spikes: bool, samples: int) -> LayerCost:
    """The cost of a layer for a sample; `updates` is that of a step, which the caller multiplies by T."""
    fired, steps = (x if spikes else x != 0).float(), len(x)  # 1 for a static input
    conv, fc = (block if isinstance(block, kind) else getattr(block, name, None) for kind, name in _WEIGHTED)
    if conv is not None:
        images = fired.flatten(0, 1)
        actual, once = _pairs(conv, images) / samples, _pairs(conv, torch.ones_like(images[:1]))
        out = conv.forward(images[:1].to(conv.weight.dtype))[0].numel()  # not a call, which would be counted
    elif fc is not None:
        out = fc.out_features
        actual, once = fired.sum(dtype=torch.float64).item() * out / samples, float(x[0, 0].numel() * out)
    else:
        out, actual, once = x[0, 0].numel(), 0.0, 0.0
    # BN folds into the weights; a recurrent weight has a row of its own.
    elsewhere = getattr(block, "norm", None), getattr(block, "recurrent", None)
    uncounted = {p for module in elsewhere if isinstance(module, nn.Module) for p in module.parameters()}
    parameters = sum(p.numel() for p in block.parameters() if p not in uncounted)
    neuron = block if isinstance(block, Neuron) else getattr(block, "neuron", None)
    kept = block.kept if isinstance(block, Layer) else 0
    neurons = out if neuron is not None or kept else 0
    moved = len(neuron.equations.state) if isinstance(neuron, Neuron) else 1
    states = kept or moved
    return LayerCost(
        *(name, spikes, fired.mean().item(), once * steps, actual, once, steps),
        *(float(neurons), parameters, neurons * states, states, moved),
    )


def _pairs(conv: Any, fired: Tensor) -> float:
    """Number of (input, weight) pairs of a convolution of ones [N, C, *]; zeros around have none."""
    sizes: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    convolve: Any = F.conv1d if isinstance(conv, nn.Conv1d) else F.conv2d
    ones = torch.ones(1, *conv.weight.shape[1:], device=fired.device)
    pairs = convolve(fired.unflatten(1, (conv.groups, -1)).sum(1), ones, **sizes).sum(dtype=torch.float64).item()
    return pairs * len(conv.weight) / conv.groups
