"""Export networks as NIR graphs for other simulators and hardware, and run NIR graphs here.

NIR (Pedersen et al. 2024) defines neurons in continuous time. Discretised with a step dt, a LIF neuron is

    H = V + dt / tau (v_leak - V + r X), spike where H > v_threshold, then v_reset.

NIR has neither batch normalisation nor max-pooling. BN is therefore folded, and a 2x2 maximum of spikes becomes a sum
and a memoryless threshold: a LIF neuron with tau = 2 dt and r = 2 that fires above 0.1 and ends each step at zero. It
is a sum because Norse cannot read average pooling; the threshold is below half a spike because Norse assumes r = 1.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.dynamics import Firing
from plif_lightning.dynamics.reference import integrate_and_fire
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import FCBlock, refuses_block
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.layers import Pool2d
from plif_lightning.network.pooling import SpikeMaxPool2d
from plif_lightning.neurons import IF, LIF, PLIF, Neuron

_log = logging.getLogger(__name__)
# Time-step that the simulators assume when they read NIR [s].
DT = 1e-4


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise UserError("NIR needs the package nir: pip install nir.") from error
    return nir


def readers(net: SpikingNetwork) -> dict[str, str | None]:
    """For each simulator, return None if it reproduces every spike of the network's NIR graph, otherwise the reason.

    Measured with SpikingJelly 2.0, snnTorch 1.0 and Norse 1.1 (repeated by the tests). Norse must be passed the graph's
    dt.

    Args:
        net: network whose neurons have a leak and a hard reset.
    """
    neurons = [neuron for _, neuron in net.neurons()]
    taus = any(isinstance(neuron, (PLIF, LIF)) and _differ(neuron.tau) for neuron in neurons)
    thresholds = any(_differ(torch.as_tensor(neuron.firing.v_threshold)) for neuron in neurons)
    resets = any(neuron.firing.v_reset != 0 for neuron in neurons)
    averages = any(isinstance(block, ConvBlock) and block.pool_name == "avg" for block in net.blocks().values())
    found: dict[str, list[tuple[bool, str]]] = {
        "SpikingJelly": [
            (taus, "refuses a tau per channel"),
            (thresholds, "refuses a V_th per channel"),
        ],
        "snnTorch": [
            (resets, "refuses a V_reset other than 0"),
            (thresholds, "refuses a V_th per channel"),
            (taus, "fires different spikes without a warning if tau differs per channel"),
        ],
        "Norse": [
            (averages, "cannot read average pooling"),
            (resets, "fires different spikes without a warning if V_reset is not 0"),
        ],
    }
    return {name: next((reason for holds, reason in of if holds), None) for name, of in found.items()}


def _differ(values: Tensor) -> bool:
    return values.detach().unique().numel() > 1


def to_nir(net: SpikingNetwork, dt: float = DT) -> Any:
    """Convert the network, with BN folded, to a `nir.NIRGraph` from one frame [C, H, W] to votes [num_classes].

    A warning names the simulators that do not reproduce every spike, see `readers`.

    Args:
        net: network whose neurons have a leak and a hard reset.
        dt: duration of a time-step [s].

    Raises:
        UserError: a part of the network has no NIR equivalent, or the package is missing.
    """
    nir = _nir()
    net = fold(net)
    _require_known_parts(net)
    shape = tuple(net.input_shape)
    nodes: dict[str, Any] = {"input": nir.Input(np.array(shape))}
    for name, block in net.encoder.named_children():
        assert isinstance(block, ConvBlock)
        conv = block.conv
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        nodes[f"{name}_conv"] = nir.Conv2d(shape[1:], _array(conv.weight), 1, 1, 1, 1, _array(bias))
        shape = (conv.out_channels, *shape[1:])
        nodes[f"{name}_neuron"] = _neuron(name, block.neuron, shape, dt)
        if block.pool is not None:
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
            nodes |= _pool_nodes(name, block.pool, shape, dt)
    # Negative dimensions, so that a simulator may prepend a batch dimension.
    nodes["flatten"] = nir.Flatten({"input": np.array(shape)}, -3, -1)
    features = 0
    for name, block in net.classifier.named_children():
        assert isinstance(block, FCBlock)
        features = block.fc.out_features
        nodes[f"{name}_fc"] = nir.Linear(_array(block.fc.weight))
        nodes[f"{name}_neuron"] = _neuron(name, block.neuron, (features,), dt)
    per_class = net.voting.votes_per_class
    classes = features // per_class
    mean = np.full((1, per_class), 1 / per_class, np.float32)
    nodes["voting"] = nir.Linear(np.kron(np.eye(classes, dtype=np.float32), mean))
    nodes["output"] = nir.Output(np.array([classes]))
    if failing := [f"{name} {reason}" for name, reason in readers(net).items() if reason is not None]:
        _log.warning("Not every simulator reproduces this NIR graph: %s.", "; ".join(failing))
    return nir.NIRGraph(nodes, list(itertools.pairwise(nodes)))


def _require_known_parts(net: SpikingNetwork) -> None:
    if net.inputs.name != "direct":
        raise UserError(
            f"input_encoder={net.inputs.name!r} cannot be part of a NIR graph: pass its spikes to the simulator."
        )
    for name, block in net.blocks().items():
        if (reason := refuses_block(block)) is not None:
            raise UserError(f"{name} cannot be written as NIR: {reason}.")


def _pool_nodes(name: str, pool: nn.Module, shape: tuple[int, ...], dt: float) -> dict[str, Any]:
    """Return the nodes of a 2x2 pool with outputs of a shape [C, H, W]; a maximum of spikes takes two."""
    nir = _nir()
    inner = pool.pool if isinstance(pool, Pool2d) else None
    two = (np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    if isinstance(inner, SpikeMaxPool2d):
        ones = np.ones(shape, np.float32)
        over = nir.LIF(2 * dt * ones, 2 * ones, 0 * ones, np.float32(0.1) * ones, 0 * ones)
        return {f"{name}_pool": nir.SumPool2d(*two), f"{name}_max": over}
    if isinstance(inner, nn.AvgPool2d):
        return {f"{name}_pool": nir.AvgPool2d(*two)}
    raise UserError(f"{name} has a pool without NIR equivalent: {type(pool).__name__}.")


def _array(x: Tensor) -> Any:
    return x.detach().float().numpy()


def _neuron(name: str, neuron: Neuron, shape: tuple[int, ...], dt: float) -> Any:
    firing = neuron.firing
    if isinstance(neuron, IF):
        raise UserError(f"{name} has no leak: simulators interpret NIR's IF differently. Export plif or lif.")
    if not isinstance(neuron, (PLIF, LIF)):
        raise UserError(f"{name} consists of {type(neuron).__name__}, which NIR cannot describe. Export plif or lif.")
    if firing.reset == "soft":
        raise UserError(f"{name} resets by subtraction, which NIR does not have: export a network with a hard reset.")

    def full(values: Any) -> Any:
        values = torch.as_tensor(values).detach().double()
        values = values.reshape(-1, *[1] * (len(shape) - 1))
        return np.broadcast_to(values.numpy(), shape).astype(np.float32)

    # X - (V - V_reset) is v_leak - V + r X for v_leak = V_reset and r = 1. NIR fires above the threshold, we at or
    # above it.
    v_reset = full(firing.v_reset)
    below = np.nextafter(full(firing.v_threshold), np.float32(-np.inf))
    return _nir().LIF(full(neuron.tau) * np.float32(dt), np.ones(shape, np.float32), v_reset, below, v_reset)


class NIRNetwork(nn.Module):
    """A NIR graph without cycles or branches, as a module from [T, N, *] to [T, N, *].

    Supports Conv2d, Affine, Linear, Scale, Flatten, SumPool2d, AvgPool2d, LIF, IF and Threshold. Neurons run in the
    reference implementation, so the module is differentiable.

    Args:
        graph: a `nir.NIRGraph`, or a file.
        dt: duration of a time-step [s].

    Raises:
        UserError: the graph has cycles, branches or other nodes; the file is not a NIR graph.
    """

    def __init__(self, graph: Any, dt: float = DT) -> None:
        super().__init__()
        nir = _nir()
        if isinstance(graph, (str, Path)):
            try:
                graph = nir.read(graph)
            except Exception as error:  # h5py raises many types
                raise UserError(
                    f"{graph} cannot be read as a NIR graph: {' '.join(str(error).split())[:200]}."
                ) from error
        for name, node in _chain(graph):
            part = _part(name, node, dt)
            if part is not None:
                name = name.replace(".", "_")
                while hasattr(self, name):  # the name of another node or of a method
                    name += "_"
                self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [T, N, *] for x [T, N, *]."""
        for part in self.children():
            x = part(x) if isinstance(part, _Neurons) else part(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x


def _chain(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and nodes from input to output."""
    following: dict[str, list[str]] = {}
    for a, b in graph.edges:
        following.setdefault(a, []).append(b)
    at = [name for name, node in graph.nodes.items() if type(node).__name__ == "Input"]
    seen = 0
    while len(at) == 1 and seen <= len(graph.nodes):
        yield at[0], graph.nodes[at[0]]
        seen += 1
        if type(graph.nodes[at[0]]).__name__ == "Output":
            if seen == len(graph.nodes):
                return
            break
        at = sorted(set(following.get(at[0], [])))
    raise UserError("the graph is not a chain from one input to one output: cycles and branches are not supported.")


class _Neurons(nn.Module):
    """Neurons of a LIF or IF node: k = dt / tau [*], input gain r [*], v_leak [*]."""

    def __init__(self, k: Any, r: Any, v_leak: Any, v_threshold: Any, v_reset: Any, leak: bool) -> None:
        super().__init__()
        for name, value in (("k", k), ("r", r), ("v_leak", v_leak), ("v_threshold", v_threshold)):
            values = torch.as_tensor(np.asarray(value, np.float32)).flatten()
            self.register_buffer(name, values[0] if values.numel() == 1 else values)  # Norse writes one value for all
        self.v_reset, self.leak = float(v_reset), leak

    k: Tensor
    r: Tensor
    v_leak: Tensor
    v_threshold: Tensor

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        drive = flat * self.r
        if self.leak:
            drive = drive + (self.v_leak - self.v_reset)
        # NIR fires above the threshold, the reference at or above it.
        threshold = torch.nextafter(self.v_threshold, torch.full_like(self.v_threshold, torch.inf))
        spikes, _ = integrate_and_fire(
            drive, self.k if self.leak else None, firing=Firing(v_threshold=threshold, v_reset=self.v_reset)
        )
        return spikes.view_as(x)


class _Scale(nn.Module):
    scale: Tensor

    def __init__(self, scale: Any) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(np.asarray(scale, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Threshold(nn.Module):
    threshold: Tensor

    def __init__(self, threshold: Any) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.as_tensor(np.asarray(threshold, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)


def _pair(value: Any) -> tuple[int, int]:
    a, b = np.broadcast_to(np.asarray(value), 2).tolist()
    return int(a), int(b)


def _part(name: str, node: Any, dt: float) -> nn.Module | None:
    """Return the module of a node; None for the ends of the graph."""
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return None
    if kind in ("LIF", "IF"):
        return _neurons(name, node, dt)
    if kind not in _MODULES:
        raise UserError(f"{name} is a {kind}, which is not supported.")
    return _MODULES[kind](node)


def _neurons(name: str, node: Any, dt: float) -> _Neurons:
    v_reset = getattr(node, "v_reset", None)
    v_reset = np.asarray(0.0 if v_reset is None else v_reset)
    if v_reset.size > 1 and np.ptp(v_reset):
        raise UserError(f"{name}: v_reset must be the same for all neurons of a layer.")
    common = (node.v_threshold, v_reset.flat[0])
    if type(node).__name__ == "LIF":
        return _Neurons(dt / np.asarray(node.tau), node.r, node.v_leak, *common, leak=True)
    return _Neurons(0.0, dt * np.asarray(node.r), 0.0, *common, leak=False)


def _conv(node: Any) -> nn.Module:
    padding: Any = node.padding if isinstance(node.padding, str) else _pair(node.padding)
    out, inside, *kernel = node.weight.shape
    sizes = {"stride": _pair(node.stride), "dilation": _pair(node.dilation), "padding": padding}
    conv = nn.Conv2d(inside * node.groups, out, tuple(kernel), groups=int(node.groups), **sizes)
    return _filled(conv, node.weight, node.bias)


def _linear(node: Any) -> nn.Module:
    bias = getattr(node, "bias", None)
    out, inside = node.weight.shape
    return _filled(nn.Linear(inside, out, bias is not None), node.weight, bias)


def _flatten(node: Any) -> nn.Module:
    # NIR's dimensions exclude the batch.
    start, end = (int(d) + (d >= 0) for d in (node.start_dim, node.end_dim))
    return nn.Flatten(start, end)


def _pool(node: Any, divisor: int | None = None) -> nn.Module:
    size, stride, padding = (_pair(value) for value in (node.kernel_size, node.stride, node.padding))
    return nn.AvgPool2d(size, stride, padding, divisor_override=divisor)


def _filled(layer: nn.Conv2d | nn.Linear, weight: Any, bias: Any) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(np.asarray(weight, np.float32)))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(np.asarray(0.0 if bias is None else bias, np.float32)))
    return layer


_MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "Conv2d": _conv,
    "Affine": _linear,
    "Linear": _linear,
    "Scale": lambda node: _Scale(node.scale),
    "Threshold": lambda node: _Threshold(node.threshold),
    "Flatten": _flatten,
    "SumPool2d": partial(_pool, divisor=1),
    "AvgPool2d": _pool,
}
