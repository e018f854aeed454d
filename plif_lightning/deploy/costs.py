"""What a network computes and moves for a sample, and what that would cost, beside a conventional network.

Energies are those of a 45 nm process (Horowitz, "Computing's energy problem", ISSCC 2014): they compare designs, and
say nothing of a processor that you can buy. Counting arithmetic alone, as most papers do, flatters networks that fire:
what they save in multiplications they spend in time-steps, potentials and memory. So memory is counted beside it, at
both ends of what hardware does: every operation fetches its weight from the memory that holds the layer's weights, or
each weight is fetched once (for a network that fires: once a time-step at most) into a buffer of 8 KiB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.deploy.layers import network_of
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import FCBlock
from plif_lightning.network.conv_block import ConvBlock

# pJ. float32: a multiplication and an addition; an addition. Integers of 8 bits into sums of 32.
MAC, AC = 3.7 + 0.9, 0.9
MAC_INT8, AC_INT8 = 0.2 + 0.1, 0.1
# pJ to fetch a byte from a memory of so many bytes; beyond them it is DRAM.
_MEMORIES = ((8 * 2**10, 10 / 8), (32 * 2**10, 20 / 8), (2**20, 100 / 8))
_DRAM = 1600 / 8


def picojoules_a_byte(size: int) -> float:
    """To fetch a byte from the smallest memory that holds `size` bytes."""
    return next((energy for limit, energy in _MEMORIES if size <= limit), _DRAM)


class LayerCost(NamedTuple):
    """What a layer does for one sample, all T steps together.

    Attributes:
        layer: its name.
        spikes: whether its input was zeros and ones alone, a network's own input aside; else its operations are
            multiply-accumulates.
        firing: share of its inputs that are not zero.
        dense: operations if nothing is skipped, one for each input and weight that meet.
        actual: those of inputs that are not zero.
        once: operations of a conventional layer of this shape, on one frame.
        runs: how often it runs for a sample: T, or 1 where its input is held.
        updates: neurons times steps.
        parameters: of the layer and its neurons.
        state: potentials that are kept between steps.
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

    @property
    def macs(self) -> float:
        """Multiply-accumulates, neurons' leak included."""
        return (0.0 if self.spikes else self.actual) + self.updates

    @property
    def accumulates(self) -> float:
        return self.actual if self.spikes else 0.0

    @property
    def arithmetic(self) -> float:
        """pJ of float32 arithmetic as it fires."""
        return MAC * self.macs + AC * self.accumulates

    @property
    def arithmetic_dense(self) -> float:
        """pJ of float32 arithmetic if every operation were a multiply-accumulate and none were skipped."""
        return MAC * (self.dense + self.updates)

    @property
    def traffic(self) -> float:
        """Bytes moved: a weight of one byte for each operation, and each potential (4 bytes) read and written."""
        return self.actual + 8 * self.updates

    def with_memory(self, reuse: bool) -> float:
        """pJ with weights of 8 bits and memory: of weights, potentials (read and written) and arithmetic.

        Args:
            reuse: whether a weight is fetched once a time-step at most, instead of for each operation.
        """
        per_operation = AC_INT8 if self.spikes else MAC_INT8
        fetched = min(self.actual, self.parameters * self.runs)
        potentials = 8 * self.updates * picojoules_a_byte(4 * self.state)
        computed = per_operation * self.actual + MAC_INT8 * self.updates
        return self._weights(self.actual, fetched, reuse) + potentials + computed

    def conventional(self, reuse: bool) -> float:
        """pJ of a conventional layer of this shape on one frame, 8 bits, with memory; activations written and read."""
        activations = 2 * self.state * picojoules_a_byte(self.state)
        return self._weights(self.once, min(self.once, self.parameters), reuse) + MAC_INT8 * self.once + activations

    def _weights(self, operations: float, fetched: float, reuse: bool) -> float:
        of_memory = picojoules_a_byte(self.parameters)
        return fetched * of_memory + operations * picojoules_a_byte(1) if reuse else operations * of_memory


@dataclass(frozen=True)
class Cost:
    """Of a network, for one sample: see `LayerCost`.

    Attributes:
        layers: from input to output.
        samples: that firing was measured on.
        time_steps: T.
    """

    layers: tuple[LayerCost, ...]
    samples: int
    time_steps: int

    def total(self, what: str, *arguments: bool) -> float:
        """Of an attribute or method of the layers, over all of them."""
        values = [getattr(layer, what) for layer in self.layers]
        return sum(value(*arguments) if callable(value) else value for value in values)


@torch.no_grad()
def cost(net: SpikingNetwork, x: Tensor) -> Cost:
    """What a network does for a sample, on average over some.

    Args:
        net: trained.
        x: frames [T, N, C, H, W], or static images [N, C, H, W], whose first convolution runs once.

    Raises:
        UserError: a layer was replaced by another kind; there is no sample.
    """
    net = network_of(net)
    if x.numel() == 0:
        raise UserError(f"a cost is an average over samples, and there are none in x {list(x.shape)}.")
    found: list[LayerCost] = []
    # What comes after the first layer is zeros and ones, or not, whatever kind of neurons fired it.
    analog = next(iter(net.blocks())) if net.inputs.name == "direct" else None
    samples = x.shape[0] if x.dim() == 4 else x.shape[1]

    def listener(name: str) -> Callable[..., None]:
        def listen(block: nn.Module, given: tuple[Any, ...]) -> None:
            spikes = name != analog and bool(((given[0] == 0) | (given[0] == 1)).all())
            found.append(_of_layer(name, block, given[0], spikes, net.time_steps, samples))

        return listen

    hooks = []
    for name, block in net.blocks().items():
        if not isinstance(block, (ConvBlock, FCBlock)):
            raise UserError(f"{name} is a {type(block).__name__}, whose operations are not known.")
        hooks.append(block.register_forward_pre_hook(listener(name)))
    training = [part for part in net.modules() if part.training]
    try:
        net.eval()(x)
    finally:
        for part in training:
            part.training = True
        for hook in hooks:
            hook.remove()
    return Cost(tuple(found), samples, net.time_steps)


def _of_layer(name: str, block: nn.Module, x: Tensor, spikes: bool, time_steps: int, samples: int) -> LayerCost:
    fired = (x != 0).float()
    steps = len(x)  # 1 where an input is held
    if isinstance(block, ConvBlock):
        conv = block.conv
        sizes: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}

        def met(values: Tensor) -> float:
            """Pairs of an input and a weight; at the border there are fewer."""
            values = values.unflatten(1, (conv.groups, -1)).sum(1)
            ones = torch.ones(1, *conv.weight.shape[1:], device=x.device)
            pairs = F.conv2d(values, ones, **sizes).sum(dtype=torch.float64).item()
            return pairs * len(conv.weight) / conv.groups

        images = fired.flatten(0, 1)
        actual, once = met(images) / samples, met(torch.ones_like(images[:1]))
        out = F.conv2d(images[:1], conv.weight, groups=conv.groups, **sizes)[0].numel()
        weights = [conv.weight, *([] if conv.bias is None else [conv.bias])]
    else:
        assert isinstance(block, FCBlock)
        out = block.fc.out_features
        actual, once = fired.sum(dtype=torch.float64).item() * out / samples, float(x[0, 0].numel() * out)
        weights = [block.fc.weight]
    parameters = sum(w.numel() for w in weights) + sum(p.numel() for p in block.neuron.parameters())
    return LayerCost(
        name, spikes, fired.mean().item(), once * steps, actual, once, steps, float(out * time_steps), parameters, out
    )
