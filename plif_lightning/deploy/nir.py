"""Export networks as NIR graphs for other simulators and hardware.

Neurons are discretised as `convert.nir` reads them. NIR (Pedersen et al. 2024) has neither batch normalisation nor
max-pooling. BN is therefore folded, and a 2x2 maximum of spikes becomes a sum and a memoryless threshold: a LIF neuron
with tau = 2 dt and r = 2 that fires above 0.1 and ends each step at zero. It is a sum because Norse cannot read average
pooling; the threshold is below half a spike because Norse assumes r = 1.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.convert.nir import DT, exceeded, nir_package
from plif_lightning.deploy.folding import fold
from plif_lightning.errors import UserError
from plif_lightning.layers.delay import Delay as DelayLayer
from plif_lightning.layers.recurrent import is_recurrent
from plif_lightning.network import SpikingNetwork
from plif_lightning.neurons import LIF, PLIF, Neuron
from plif_lightning.structure.layers import FC, Conv, Delay, LayerSpec, Neurons, Pool, Residual
from plif_lightning.structure.sizes import pair

_log = logging.getLogger(__name__)


def write_nir(net: SpikingNetwork, file: Path) -> None:
    """Write `to_nir` of a network into a file."""
    nir_package().write(file, to_nir(net))


def readers_of(net: SpikingNetwork) -> dict[str, str | None]:
    """For each simulator, return None if it reproduces every spike of the network's NIR graph, otherwise the reason.

    Measured with SpikingJelly 2.0, snnTorch 1.0 and Norse 1.1 (repeated by the tests). Norse must be passed the graph's
    dt.

    Args:
        net: network of neurons with a leak and a hard reset.
    """
    neurons = [neuron for _, neuron in net.neurons()]
    taus = any(isinstance(neuron, LIF) and _differ(neuron.tau) for neuron in neurons)
    thresholds = any(_differ(torch.as_tensor(neuron.firing.v_threshold)) for neuron in neurons)
    resets = any(neuron.firing.v_reset != 0 for neuron in neurons)
    averages = any(isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)) for module in net.modules())
    integrates, delays = net.voting.init_tau is not None, any(isinstance(m, DelayLayer) for m in net.modules())
    of_formats: dict[str, list[tuple[bool, str]]] = {
        "SpikingJelly": [
            (delays, "cannot read delays"),
            (taus, "refuses a tau per channel"),
            (thresholds, "refuses a V_th per channel"),
            (integrates, "cannot read the leaky integral of a readout"),
        ],
        "snnTorch": [
            (delays, "cannot read delays"),
            (is_recurrent(net), "cannot read recurrent layers"),
            (resets, "refuses a V_reset other than 0"),
            (thresholds, "refuses a V_th per channel"),
            (taus, "fires different spikes without a warning if tau differs per channel"),
            (integrates, "cannot read the leaky integral of a readout"),
        ],
        "Norse": [
            (delays, "drops delays, and fires other spikes without a warning"),
            (averages, "cannot read average pooling"),
            (integrates, "computes another leaky integral of a readout, without a warning"),
            (resets, "fires different spikes without a warning if V_reset is not 0"),
        ],
    }
    return {name: next((reason for holds, reason in of if holds), None) for name, of in of_formats.items()}


def _differ(values: Tensor) -> bool:
    return values.detach().unique().numel() > 1


def to_nir(net: SpikingNetwork, dt: float = DT) -> Any:
    """Convert the network, with BN folded, to a `nir.NIRGraph` from a frame [C, H, W] to votes [num_classes].

    A warning names the simulators that do not reproduce every spike, see `readers_of`. The graph has no `LAST`: it
    gives the numbers of every step.

    Args:
        net: network of neurons with a leak and a hard reset.
        dt: duration of a time-step [s].

    Raises:
        UserError: a part of the network has no NIR equivalent, or the package is missing.
    """
    nir = nir_package()
    net = fold(net)
    if net.inputs.name != "direct":
        raise UserError(
            f"input_encoder={net.inputs.name!r} cannot be part of a NIR graph: pass its spikes to the simulator."
        )
    writer = _Writer(net, dt)
    flat = next(i for i, spec in enumerate(net.layer_specs) if isinstance(spec.layer, FC))
    outputs, shape = writer.layers(net.layer_specs[:flat], ["input"]), net.layer_specs[flat].before
    if len(shape) == 3:
        # Negative dimensions, so that a simulator may prepend a batch dimension.
        outputs = writer.add("flatten", nir.Flatten({"input": np.array(shape)}, -3, -1), outputs)
    outputs = writer.layers(net.layer_specs[flat:], outputs)
    classes = net.num_classes
    if (per_class := net.voting.votes_per_class) > 1:
        mean = np.full((1, per_class), 1 / per_class, np.float32)
        outputs = writer.add("voting", nir.Linear(np.kron(np.eye(classes, dtype=np.float32), mean)), outputs)
    elif net.voting.init_tau is not None:
        ones = np.ones(classes, np.float32)
        outputs = writer.add("voting", nir.LI(net.voting.init_tau * np.float32(dt) * ones, ones, 0 * ones), outputs)
    writer.add("output", nir.Output(np.array((classes,))), outputs)
    if net.voting.is_last_step:
        _log.warning("The NIR graph gives the numbers of every step: LAST, the last step's, is for its reader to take.")
    if failing := [f"{name} {reason}" for name, reason in readers_of(net).items() if reason is not None]:
        _log.warning("Not every simulator reproduces this NIR graph: %s.", "; ".join(failing))
    return nir.NIRGraph(writer.nodes, writer.edges)


class _Writer:
    """Collects the nodes of a graph. A signal is the names of nodes, the sum of their outputs.

    Attributes:
        nodes: by name.
        edges: pairs of names; a node's input is the sum of all nodes before it.
    """

    def __init__(self, net: SpikingNetwork, dt: float) -> None:
        self.dt = dt
        self.blocks: dict[str, Any] = net.layers()
        self.nodes: dict[str, Any] = {"input": nir_package().Input(np.array(net.input_shape))}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: Any, before: list[str]) -> list[str]:
        self.nodes[name] = node
        self.edges += [(source, name) for source in before]
        return [name]

    def layers(self, layers: Sequence[LayerSpec], outputs: list[str]) -> list[str]:
        """Add layers behind the nodes `outputs`; returns the names of the last ones."""
        for spec in layers:
            name, layer = spec.name, spec.layer
            match layer:
                case Conv():
                    outputs = self.conv(spec, layer, outputs)
                case FC():
                    fc = self.blocks[name].fc
                    has_bias = fc.bias is not None
                    node = nir_package().Affine(_array(fc.weight), _array(fc.bias)) if has_bias else None
                    outputs = self.add(f"{name}_fc", node or nir_package().Linear(_array(fc.weight)), outputs)
                    if layer.neurons is not None:
                        outputs = self.neurons(name, spec.after, outputs)
                    if layer.recurrent:  # a cycle: in a simulator, spikes arrive a step later
                        weight = nir_package().Linear(_array(self.blocks[name].recurrent.weight))
                        (recurrent,) = self.add(f"{name}_recurrent", weight, outputs)
                        self.edges.append((recurrent, outputs[0]))
                case Neurons():
                    outputs = self.neurons(name, spec.after, outputs)
                case Delay():
                    outputs = self.delay(name, spec.after, outputs)
                case Pool():
                    outputs = self.pool(name, layer, spec.before, spec.after, outputs, spec.from_neurons)
                case Residual():
                    outputs = self.residual(spec, layer, outputs)
                case _:
                    assert_never(layer)
        return outputs

    def residual(self, spec: LayerSpec, layer: Residual, outputs: list[str]) -> list[str]:
        if layer.combination != "ADD":
            raise UserError(f"{spec.name} combines by {layer.combination}, and NIR only adds: export ADD.")
        branch, shortcut = (self.layers(specs, outputs) for specs in (spec.branch, spec.shortcut))
        if twice := set(branch) & set(shortcut):
            raise UserError(
                f"{spec.name} adds the output of {', '.join(sorted(twice))} twice, which NIR cannot write: a branch "
                "must have layers of its own."
            )
        outputs = [*branch, *shortcut]
        return outputs if layer.neurons is None else self.neurons(spec.name, spec.after, outputs)

    def conv(self, spec: LayerSpec, layer: Conv, outputs: list[str]) -> list[str]:
        name, conv = spec.name, self.blocks[spec.name].conv
        _require_square(name, layer.kernel)
        bias = torch.zeros(layer.channels) if conv.bias is None else conv.bias
        # NIR's type check does not know groups: their weights are written with the zeros between them.
        weight = torch.block_diag(*conv.weight.flatten(1).chunk(conv.groups)) if conv.groups > 1 else conv.weight
        weight = weight.view(len(weight), -1, *conv.kernel_size)
        stride, padding, dilation = pair(layer.stride), pair(layer.explicit_padding), pair(layer.dilation)
        arguments = spec.before[1:], _array(weight), stride, padding, dilation, 1
        outputs = self.add(f"{name}_conv", nir_package().Conv2d(*arguments, _array(bias)), outputs)
        shape = layer.convolved_shape(spec.before)
        if layer.neurons is not None:
            outputs = self.neurons(name, shape, outputs)
        return outputs if layer.pool is None else self.pool(name, layer.pool, shape, spec.after, outputs, True)

    def neurons(self, name: str, shape: tuple[int, ...], outputs: list[str]) -> list[str]:
        return self.add(f"{name}_neuron", _neuron(name, self.blocks[name].neuron, shape, self.dt), outputs)

    def delay(self, name: str, shape: tuple[int, ...], outputs: list[str]) -> list[str]:
        steps = self.blocks[name].used().detach()
        if not torch.equal(steps, steps.round()):
            raise UserError(
                f"{name} delays by parts of a time-step, which NIR's simulators cannot: export it with "
                "--round_delays (deploy.round_delays), or train with rounds=true."
            )
        seconds = steps.double().numpy().reshape(-1, *[1] * (len(shape) - 1)) * self.dt
        return self.add(name, nir_package().Delay(np.broadcast_to(seconds, shape).astype(np.float32)), outputs)

    def pool(
        self, name: str, pool: Pool, before: tuple[int, ...], after: tuple[int, ...], outputs: list[str], spikes: bool
    ) -> list[str]:
        """A pool; a maximum of spikes takes two nodes."""
        nir = nir_package()
        window: Any = (before[1:], before[1:], 0) if pool.kernel is None else (pool.kernel, pool.stride, pool.padding)
        arrays = [np.array(pair(size)) for size in window]
        if pool.kind == "AP":
            return self.add(f"{name}_pool", nir.AvgPool2d(*arrays), outputs)
        if not spikes or arrays[2].any():
            raise UserError(
                f"{name} takes the maximum of what are not spikes, or pads it, which NIR lacks: put a pool without "
                "padding behind neurons."
            )
        outputs = self.add(f"{name}_pool", nir.SumPool2d(*arrays), outputs)
        ones = np.ones(after, np.float32)
        over = nir.LIF(2 * self.dt * ones, 2 * ones, 0 * ones, np.float32(0.1) * ones, 0 * ones)
        return self.add(f"{name}_max", over, outputs)


def _require_square(name: str, kernel: Any) -> None:
    if len(set(pair(kernel))) > 1:
        raise UserError(f"{name} has a kernel of {kernel}, and NIR's reader takes kernels for squares.")


def _array(x: Tensor) -> Any:
    return x.detach().float().numpy()


def _neuron(name: str, neuron: Neuron, shape: tuple[int, ...], dt: float) -> Any:
    firing = neuron.firing
    if type(neuron) not in (PLIF, LIF) or firing.reset == "soft":
        raise UserError(
            f"{name} consists of {type(neuron).__name__} with a {firing.reset} reset, and NIR describes leaky neurons "
            "with a hard reset: export plif or lif."
        )

    def full(values: Any) -> Any:
        values = torch.as_tensor(values).detach().double()
        values = values.reshape(-1, *[1] * (len(shape) - 1))
        return np.broadcast_to(values.numpy(), shape).astype(np.float32)

    # X - (V - V_reset) is v_leak - V + r X for v_leak = V_reset and r = 1.
    v_reset, below = full(firing.v_reset), exceeded(full(firing.v_threshold))
    return nir_package().LIF(full(neuron.tau) * np.float32(dt), np.ones(shape, np.float32), v_reset, below, v_reset)
