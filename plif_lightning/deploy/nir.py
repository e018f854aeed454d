"""Export networks as NIR graphs for other simulators and hardware, and run NIR graphs here.

NIR (Pedersen et al. 2024) defines neurons in continuous time. Discretised with a step dt, a LIF neuron is

    H = V + dt / tau (v_leak - V + r X), spike where H > v_threshold, then v_reset.

NIR has neither batch normalisation nor max-pooling. BN is therefore folded, and a 2x2 maximum of spikes becomes a sum
and a memoryless threshold: a LIF neuron with tau = 2 dt and r = 2 that fires above 0.1 and ends each step at zero. It
is a sum because Norse cannot read average pooling; the threshold is below half a spike because Norse assumes r = 1.
"""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.layers import network_of, refuses_containers
from plif_lightning.dynamics import Firing
from plif_lightning.dynamics.reference import integrate_and_fire
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import WITH_NEURON, Blocks, FCBlock, NeuronBlock, Residual, overrides_forward
from plif_lightning.network.conv import ConvBlock, refuses_class, refuses_neuron
from plif_lightning.network.hooks import has_hooks
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.network.output import Integral, Output, Voting
from plif_lightning.network.pooling import SpikeMaxPool2d, TiedMaxPool2d
from plif_lightning.neurons import IF, LIF, PLIF, Neuron
from plif_lightning.runtime.extras import needed_by

_log = logging.getLogger(__name__)
# Time-step that the simulators assume when they read NIR [s].
DT = 1e-4


def _nir() -> Any:
    with needed_by("a NIR graph"):
        import nir
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
    averages = any(isinstance(part, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)) for part in net.modules())
    integrates = isinstance(net.voting, Integral)
    found: dict[str, list[tuple[bool, str]]] = {
        "SpikingJelly": [
            (taus, "refuses a tau per channel"),
            (thresholds, "refuses a V_th per channel"),
            (integrates, "cannot read the leaky integral of a readout"),
        ],
        "snnTorch": [
            (resets, "refuses a V_reset other than 0"),
            (thresholds, "refuses a V_th per channel"),
            (taus, "fires different spikes without a warning if tau differs per channel"),
            (integrates, "cannot read the leaky integral of a readout"),
        ],
        "Norse": [
            (averages, "cannot read average pooling"),
            (integrates, "computes another leaky integral of a readout, without a warning"),
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
    net = fold(network_of(net))
    _require_known_parts(net)
    made = _Writer(net, dt)
    ends = made.blocks(net.encoder, ["input"])
    if len(made.shape) == 3:
        # Negative dimensions, so that a simulator may prepend a batch dimension.
        ends = made.add("flatten", nir.Flatten({"input": np.array(made.shape)}, -3, -1), ends, (math.prod(made.shape),))
    ends = made.blocks(net.classifier, ends)
    if isinstance(net.voting, Voting):
        per_class = net.voting.votes_per_class
        mean = np.full((1, per_class), 1 / per_class, np.float32)
        votes = np.kron(np.eye(net.num_classes, dtype=np.float32), mean)
        ends = made.add("voting", nir.Linear(votes), ends, (net.num_classes,))
    elif isinstance(net.voting, Integral):
        ones = np.ones(net.num_classes, np.float32)
        ends = made.add("voting", nir.LI(net.voting.init_tau * np.float32(dt) * ones, ones, 0 * ones), ends, made.shape)
    made.add("output", nir.Output(np.array(made.shape)), ends, made.shape)
    if failing := [f"{name} {reason}" for name, reason in readers(net).items() if reason is not None]:
        _log.warning("Not every simulator reproduces this NIR graph: %s.", "; ".join(failing))
    return nir.NIRGraph(made.nodes, made.edges)


class _Writer:
    """Collects the nodes of a graph. A signal is the names of the nodes whose outputs are summed.

    Attributes:
        nodes: by name.
        edges: pairs of names; a node's input is the sum of all nodes before it.
        shape: of the last node's output.
        spikes: that output is binary.
    """

    def __init__(self, net: SpikingNetwork, dt: float) -> None:
        self.dt, self.shape, self.spikes = dt, tuple(net.input_shape), False
        self.nodes: dict[str, Any] = {"input": _nir().Input(np.array(self.shape))}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: Any, before: list[str], shape: tuple[int, ...]) -> list[str]:
        self.nodes[name] = node
        self.edges += [(one, name) for one in before]
        self.shape = shape
        return [name]

    def blocks(self, blocks: nn.Module, ends: list[str]) -> list[str]:
        """Add a sequence of blocks behind the nodes `ends`; returns the names of its last ones."""
        for name, block in blocks.named_children():
            match block:
                case ConvBlock():
                    ends = self.conv(name, block, ends)
                case FCBlock():
                    ends = self.fc(name, block, ends)
                case NeuronBlock():
                    ends = self.neurons(name, block.neuron, ends)
                case Pool2d():
                    ends = self.pool(name, block, ends)
                case Residual():
                    before = self.shape, self.spikes
                    branch, after = self.blocks(block.branch, ends), self.shape
                    self.shape, self.spikes = before
                    shortcut = self.blocks(block.shortcut, ends)
                    if twice := set(branch) & set(shortcut):
                        raise UserError(
                            f"{name} adds the output of {', '.join(sorted(twice))} twice, which NIR cannot write: a "
                            "branch must have layers of its own."
                        )
                    ends = [*branch, *shortcut]
                    self.shape, self.spikes = after, False
        return ends

    def conv(self, name: str, block: ConvBlock, ends: list[str]) -> list[str]:
        conv = block.conv
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        with torch.device("meta"):
            maps = torch.empty(1, *self.shape)
            size = torch.nn.functional.conv2d(
                maps, conv.weight.to("meta"), None, conv.stride, conv.padding, conv.dilation, conv.groups
            ).shape[1:]
        # NIR's own check of types does not know groups: their weights are written with the zeros between them.
        weight = torch.block_diag(*conv.weight.flatten(1).chunk(conv.groups)) if conv.groups > 1 else conv.weight
        weight = weight.view(len(weight), -1, *conv.kernel_size)
        square, padding = _square(name, _array(weight), _pair(conv.padding), _pair(conv.dilation))
        node = _nir().Conv2d(self.shape[1:], square, conv.stride, padding, conv.dilation, 1, _array(bias))
        ends, self.spikes = self.add(f"{name}_conv", node, ends, tuple(size)), False
        if block.neuron is not None:
            ends = self.neurons(name, block.neuron, ends)
        return ends if block.pool is None else self.pool(name, block.pool, ends)

    def fc(self, name: str, block: FCBlock, ends: list[str]) -> list[str]:
        weight, bias = _array(block.fc.weight), block.fc.bias
        node = _nir().Linear(weight) if bias is None else _nir().Affine(weight, _array(bias))
        ends = self.add(f"{name}_fc", node, ends, (block.fc.out_features,))
        return ends if block.neuron is None else self.neurons(name, block.neuron, ends)

    def neurons(self, name: str, neuron: Neuron, ends: list[str]) -> list[str]:
        self.spikes = True
        return self.add(f"{name}_neuron", _neuron(name, neuron, self.shape, self.dt), ends, self.shape)

    def pool(self, name: str, pool: nn.Module, ends: list[str]) -> list[str]:
        """A pool; a maximum of spikes takes two nodes."""
        nir = _nir()
        inner: Any = pool.pool if isinstance(pool, Pool2d) and not overrides_forward(pool) else None
        window: Any = (2, 2, 0)
        if type(inner) is TiedMaxPool2d or (type(inner) is nn.AvgPool2d and _divides_by_window(inner)):
            window = inner.kernel_size, inner.stride, inner.padding
        elif type(inner) in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d) and inner.output_size in (1, (1, 1)):
            window = self.shape[1:], self.shape[1:], 0
        elif type(inner) is not SpikeMaxPool2d:
            why = ", by its ceil_mode, divisor or padding" if type(inner) is nn.AvgPool2d else ""
            raise UserError(f"{name} has a pool without NIR equivalent: {inner or type(pool).__name__}{why}.")
        kernel, stride, padding = (_pair(value) for value in window)
        sides = zip(self.shape[1:], kernel, stride, padding, strict=True)
        shape = (self.shape[0], *((side + 2 * p - k) // s + 1 for side, k, s, p in sides))
        arrays = [np.array(value) for value in (kernel, stride, padding)]
        if isinstance(inner, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            self.spikes = False
            return self.add(f"{name}_pool", nir.AvgPool2d(*arrays), ends, shape)
        if not self.spikes:
            raise UserError(
                f"{name} takes the maximum of what are not spikes, which NIR lacks: put the pool behind neurons."
            )
        total: Any = nir.SumPool2d(*arrays)
        if any(padding):  # which simulators overlook in a SumPool2d
            channels, nothing = self.shape[0], np.zeros(self.shape[0], np.float32)
            weight = np.eye(channels, dtype=np.float32)[:, :, None, None] * np.ones(kernel, np.float32)
            square, wider = _square(name, weight, padding, (1, 1))
            total = nir.Conv2d(self.shape[1:], square, stride, wider, 1, 1, nothing)
        ends = self.add(f"{name}_pool", total, ends, shape)
        ones = np.ones(shape, np.float32)
        over = nir.LIF(2 * self.dt * ones, 2 * ones, 0 * ones, np.float32(0.1) * ones, 0 * ones)
        return self.add(f"{name}_max", over, ends, shape)


def _divides_by_window(pool: nn.AvgPool2d) -> bool:
    """True if an average pool divides all sums by the size of its window, as NIR's does."""
    padded = pool.padding not in (0, (0, 0)) and not pool.count_include_pad
    own = pool.divisor_override not in (None, math.prod(_pair(pool.kernel_size)))
    return not (own or pool.ceil_mode or padded)


def _square(name: str, weight: Any, padding: tuple[int, int], dilation: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """Weight [O, I, K, K] with zeros around one [O, I, H, W], and the padding that belongs to it.

    nir 1.0 takes every kernel for a square.

    Raises:
        UserError: zeros would have to be added on one side more than on the other.
    """
    sides = weight.shape[2:]
    more = [max(sides) - side for side in sides]
    if any(one % 2 for one in more):
        raise UserError(
            f"{name} has a kernel of {sides[0]}x{sides[1]}, and NIR's reader takes kernels for squares: sides that "
            "differ by an even number can be filled up with zeros."
        )
    half = [one // 2 for one in more]
    wider = np.pad(weight, [(0, 0), (0, 0), *((one, one) for one in half)])
    return wider, (padding[0] + dilation[0] * half[0], padding[1] + dilation[1] * half[1])


def _require_known_parts(net: SpikingNetwork) -> None:
    if (reason := refuses_containers(net)) is not None:
        raise UserError(f"{type(net).__name__} cannot be written as NIR: {reason}.")
    if type(net.voting) not in (Voting, Integral, Output):
        raise UserError(f"the voting cannot be written as NIR: it is a {type(net.voting).__name__}.")
    if net.inputs.name != "direct":
        raise UserError(
            f"input_encoder={net.inputs.name!r} cannot be part of a NIR graph: pass its spikes to the simulator."
        )
    for name, part in net.named_modules():
        if isinstance(part, (Residual, Blocks)) and (has_hooks(part) or overrides_forward(part)):
            raise UserError(f"{name} cannot be written as NIR: it has hooks, or a forward of its own.")
        if isinstance(part, Residual) and part.how != "ADD":
            raise UserError(f"{name.rpartition('.')[2]} combines by {part.how}, and NIR only adds: export ADD.")
    for name, block in net.layers().items():
        if (reason := _refuses(block)) is not None:
            raise UserError(f"{name} cannot be written as NIR: {reason}.")


def _refuses(block: nn.Module) -> str | None:
    """Why NIR has no equivalent of a block; None if it has. Neurons and pools are looked at when they are written."""
    if not isinstance(block, (*WITH_NEURON, Pool2d)):
        return f"it is a {type(block).__name__}"
    if overrides_forward(block):
        return f"{type(block).__name__} overrides forward"
    if any(map(has_hooks, block.modules())):
        return "it has hooks, which would be lost"
    neuron = None if isinstance(block, Pool2d) else block.neuron
    if neuron is not None and (reason := refuses_neuron(neuron)) is not None:
        return reason
    if isinstance(block, ConvBlock):
        if (
            type(block.conv) is not nn.Conv2d
            or block.conv.padding_mode != "zeros"
            or isinstance(block.conv.padding, str)
        ):
            return f"its convolution is {block.conv}"
        if block.conv.bias is not None and block.norm is not None:
            return "its convolution has a bias and BN"
    if isinstance(block, FCBlock):
        if type(block.fc) is not nn.Linear:
            return f"its FC layer is a {type(block.fc).__name__}"
        if type(block.dropout) not in (TimeDropout, nn.Dropout, nn.Identity):
            return f"its dropout is a {type(block.dropout).__name__}"
    return None


def _array(x: Tensor) -> Any:
    return x.detach().float().numpy()


def _neuron(name: str, neuron: Neuron, shape: tuple[int, ...], dt: float) -> Any:
    firing = neuron.firing
    if isinstance(neuron, IF):
        raise UserError(f"{name} has no leak: simulators interpret NIR's IF differently. Export plif or lif.")
    if not isinstance(neuron, (PLIF, LIF)):
        raise UserError(f"{name} consists of {type(neuron).__name__}, which NIR cannot describe. Export plif or lif.")
    for kind in (PLIF, LIF):
        if isinstance(neuron, kind) and (reason := refuses_class(neuron, kind, "equations", "k", "tau", "dynamics")):
            raise UserError(f"{name} cannot be written as NIR: {reason}. Export plif or lif.")
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
    """A NIR graph without cycles, as a module from [T, N, *] to [T, N, *].

    Supports Conv2d, Affine, Linear, Scale, Flatten, SumPool2d, AvgPool2d, LIF, IF, LI and Threshold; several edges into
    a node are added. Neurons run in the reference implementation, so the module is differentiable.

    Args:
        graph: a `nir.NIRGraph`, or a file.
        dt: duration of a time-step [s].

    Raises:
        UserError: the graph has cycles, several inputs or outputs, or other nodes; the file is not a NIR graph.
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
        # (node, module's name or None for an end of the graph, nodes before it), from input to output
        self._order: list[tuple[str, str | None, list[str]]] = []
        for name, before in _ordered(graph):
            part, key = _part(name, graph.nodes[name], dt), None
            if part is not None:
                key = name.replace(".", "_")
                while hasattr(self, key):  # the name of another node or of a method
                    key += "_"
                self.add_module(key, part)
            self._order.append((name, key, before))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [T, N, *] for x [T, N, *]."""
        last = {one: i for i, (_, _, before) in enumerate(self._order) for one in before}
        values: dict[str, Tensor] = {}
        for i, (name, key, before) in enumerate(self._order):
            given = x if not before else sum((values[one] for one in before[1:]), start=values[before[0]])
            part = None if key is None else getattr(self, key)
            if part is None:
                values[name] = given
            elif isinstance(part, (_Neurons, Integral)):
                values[name] = part(given)
            else:
                values[name] = part(given.flatten(0, 1)).unflatten(0, given.shape[:2])
            for one in {one for one in before if last[one] == i}:
                del values[one]
        return values[self._order[-1][0]]


def _ordered(graph: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield names from the input to the output, each after all nodes before it, whose names come with it."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for a, b in graph.edges:
        before.setdefault(b, []).append(a)
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    ends = [[name for name, kind in kinds.items() if kind == end] for end in ("Input", "Output")]
    wanted = [name for name in before if name not in graph.nodes or (not before[name] and kinds[name] != "Input")]
    leads_on = {a for a, _ in graph.edges}
    lost = [name for name in graph.nodes if name not in leads_on and kinds[name] != "Output"]
    if any(len(of) != 1 for of in ends) or wanted or lost or before[ends[0][0]]:
        raise UserError("the graph does not lead from one input to one output through all of its nodes.")
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise UserError(f"the graph has a cycle, {' -> '.join(error.args[1])}: recurrence is not supported.") from error
    order.remove(ends[1][0])
    for name in [*order, ends[1][0]]:
        yield name, before[name]


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
    if kind == "LI":
        return _integral(name, node, dt)
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


def _integral(name: str, node: Any, dt: float) -> Integral:
    """The module of a leaky integrator."""
    taus, rs, leaks = (np.unique(np.asarray(value)) for value in (node.tau, node.r, node.v_leak))
    if len(taus) > 1 or not np.array_equal(rs, [1.0]) or not np.array_equal(leaks, [0.0]):
        raise UserError(f"{name}: an LI must have one tau, r = 1 and v_leak = 0.")
    return Integral(float(taus[0] / np.float32(dt)))


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
