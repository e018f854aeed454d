"""Read NIR graphs, as snnTorch, Norse, SpikingJelly and this package write them.

NIR (Pedersen et al. 2024) defines neurons in continuous time; here they are discretised with a step dt:

    LIF       H = V + dt / tau (v_leak - V + r X)
    CubaLIF   I = I + dt / tau_syn (w_in X - I), and H as of LIF with r I in the place of r X
    IF        H = V + dt r X
    LI        V = V + dt / tau (v_leak - V + r X)

A neuron fires where H > v_threshold, and is then set to v_reset, where it also starts. `deploy.nir` writes by the same.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.layers.delay import Delay
from plif_lightning.layers.readout import LeakyIntegrator
from plif_lightning.layers.recurrent import Recurrent
from plif_lightning.network.over_time import over_time
from plif_lightning.neurons import LIF, Neuron, fixed
from plif_lightning.neurons.published import Synaptic, UndecayedLIF
from plif_lightning.runtime.program import needed_by

# Time-step that simulators assume when they read a graph [s].
DT = 1e-4
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N805  # equations have no self


def nir_package() -> Any:
    """The package of NIR.

    Raises:
        UserError: it is not installed.
    """
    with needed_by("a NIR graph"):
        import nir
    return nir


def reached(v_threshold: Any) -> Any:
    """The least potential above a threshold of NIR: its neurons fire above, this package's at or above it."""
    return np.nextafter(np.asarray(v_threshold, np.float32), np.float32(np.inf))


def exceeded(v_threshold: Any) -> Any:
    """The threshold for NIR of a neuron of this package, see `reached`."""
    return np.nextafter(np.asarray(v_threshold, np.float32), np.float32(-np.inf))


class LeakyNeuron(Neuron):
    """NIR's LIF, and IF with k = 0, of any constants.

    Args:
        k: dt / tau.
        gain: k r; of IF dt r.
        rest: v_leak.
        level: v_threshold, which is reached here and exceeded there.
    """

    k = fixed(0.5)
    gain = fixed(0.5)
    rest = fixed(0.0)
    level = fixed(1.0)

    def charge(v, x, k, gain, rest):
        return v + (k * (rest - v) + gain * x)

    def threshold(level):
        return level


class CurrentNeuron(Neuron):
    """NIR's CubaLIF of any constants: `LeakyNeuron` of a synaptic current.

    Args:
        k: dt / tau_mem.
        gain: k r.
        rest: v_leak.
        level: v_threshold.
        decay: dt / tau_syn.
        weight: decay w_in.
    """

    state = ("v", "current")
    k = fixed(0.5)
    gain = fixed(0.5)
    rest = fixed(0.0)
    level = fixed(1.0)
    decay = fixed(0.5)
    weight = fixed(0.5)

    def charge(v, current, x, k, gain, rest, decay, weight):
        return v + (k * (rest - v) + gain * (current - decay * current + weight * x))

    def threshold(level):
        return level

    def after(reset, current, x, decay, weight):
        return reset, current - decay * current + weight * x


class _Scaled(nn.Module):
    """A leaky integral over [T, N, *] of gain x + rest."""

    time_aware = True

    def __init__(self, tau: float, gain: Any, rest: Any) -> None:
        super().__init__()
        self.integral = LeakyIntegrator(tau)
        self.gain, self.rest = (torch.as_tensor(value, dtype=torch.float32) for value in (gain, rest))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.integral(self.gain.to(x) * x + self.rest.to(x))
        return y


class _SumPool(nn.Module):
    def __init__(self, pool: nn.AvgPool2d, size: int) -> None:
        super().__init__()
        self.pool, self.size = pool, size

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(x) * self.size
        return y


class NIRNetwork(nn.Module):
    """The nodes of a graph over [T, N, *], each with the sum of its inputs.

    Args:
        nodes: modules over [T, N, *], by the graph's names, in an order in which inputs come first.
        inputs: names of the nodes before each; `input` is the network's.
        output: name of the node whose output is the network's.
    """

    time_aware = True

    def __init__(self, nodes: Mapping[str, nn.Module], inputs: Mapping[str, list[str]], output: str) -> None:
        super().__init__()
        self.output = output.replace(".", "_")
        self.nodes = nn.ModuleDict({name.replace(".", "_"): module for name, module in nodes.items()})
        self.inputs = {name.replace(".", "_"): [n.replace(".", "_") for n in before] for name, before in inputs.items()}

    def forward(self, x: Tensor) -> Tensor:
        values = {"input": x}
        for name, module in self.nodes.items():
            first, *others = (values[before] for before in self.inputs[name])
            values[name] = module(sum(others, first))
        return values[self.output]


def from_nir(graph: Any, dt: float = DT) -> NIRNetwork:
    """A network of neurons of this package from a NIR graph.

    Feed-forward and recurrent graphs of Affine, Linear, Conv2d, SumPool2d, AvgPool2d, Flatten, Delay, LIF, CubaLIF, IF
    and LI.
    The network takes x [T, N, *], trains, goes step by step with `step`, and is a network of one's own for a task.

    Args:
        graph: a `nir.NIRGraph`, or the path of a file.
        dt: duration of a time-step [s]: 1e-4 of snnTorch, SpikingJelly and this package; of Norse the product of its
            neurons' dt and of that of `to_nir`, 1e-6 by default.

    Raises:
        UserError: a node, a cycle or an edge has no counterpart here; the graph has several inputs or outputs; or dt
            exceeds a time constant.

    Source: Pedersen et al. 2024, "Neuromorphic intermediate representation".
    """
    nir = nir_package()
    nodes, edges = _flattened(nir.read(graph) if isinstance(graph, (str, Path)) else graph)
    for kind in (nir.Input, nir.Output):
        if len(ends := _names_of(kind, nodes)) != 1:
            raise UserError(
                f"NIR: the graph has {len(ends)} nodes {kind.__name__} ({', '.join(ends)}); read are graphs with one."
            )
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        before[target].append(source)
    reader = _Reader(dt)
    recurrent = _recurrent_weights(nodes, before)
    inputs = {name: [n for n in of if n not in recurrent] for name, of in before.items() if name not in recurrent}
    modules: dict[str, nn.Module] = {}
    names = {name: name for name in nodes}
    for name in _in_order(inputs):
        node = nodes[name]
        if isinstance(node, (nir.Input, nir.Output)):
            if len(inputs[name]) > 1:
                modules[name] = nn.Identity()
            elif inputs[name]:
                names[name] = names[inputs[name][0]]
            else:
                names[name] = "input"
            continue
        module = reader.module(name, node)
        for weight, neuron in recurrent.items():
            if neuron == name:
                module = _with_weight(name, module, nodes[weight])
        modules[name] = module
    (output,) = _names_of(nir.Output, nodes)
    return NIRNetwork(modules, {name: [names[n] for n in inputs[name]] for name in modules}, names[output])


def _names_of(kind: type, nodes: Mapping[str, Any]) -> list[str]:
    return [name for name, node in nodes.items() if isinstance(node, kind)]


def _flattened(graph: Any, above: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges with those of graphs within in their places, whose inputs and outputs pass on."""
    nir, nodes, edges = nir_package(), {}, [(f"{above}{a}", f"{above}{b}") for a, b in graph.edges]
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[f"{above}{name}"] = node
            continue
        inner, own = _flattened(node, f"{above}{name}.")
        path, ends = f"{above}{name}", [_names_of(kind, inner) for kind in (nir.Input, nir.Output)]
        if any(len(names) != 1 for names in ends):
            raise UserError(f"NIR: the graph {path} has several inputs or outputs; read are graphs with one of each.")
        (first,), (last,) = ends
        # A cycle of its own edge to itself is an error of some writers.
        edges = [(last if a == path else a, first if b == path else b) for a, b in edges if (a, b) != (path, path)]
        edges += own
        nodes |= inner
    if above:
        return nodes, edges
    passing = [*_names_of(nir.Input, nodes), *_names_of(nir.Output, nodes)]
    for name in (name for name in passing if "." in name):
        before, after = [a for a, b in edges if b == name], [b for a, b in edges if a == name]
        edges = [edge for edge in edges if name not in edge] + [(a, b) for a in before for b in after]
        del nodes[name]
    return nodes, list(dict.fromkeys(edges))


def _recurrent_weights(nodes: Mapping[str, Any], before: Mapping[str, list[str]]) -> dict[str, str]:
    """Weights from a neuron to itself and to nothing else, each with its neuron."""
    nir, after = nir_package(), {name: [other for other, of in before.items() if name in of] for name in nodes}
    return {
        name: before[name][0]
        for name, node in nodes.items()
        if isinstance(node, (nir.Linear, nir.Affine)) and len(before[name]) == 1 and after[name] == before[name]
    }


def _in_order(inputs: Mapping[str, list[str]]) -> list[str]:
    """Names in an order in which those before a node come first."""
    order: list[str] = []
    while len(order) < len(inputs):
        ready = [name for name, of in inputs.items() if name not in order and set(of) <= set(order)]
        if not ready:
            cycle = ", ".join(name for name in inputs if name not in order)
            raise UserError(f"NIR: {cycle} form a cycle that is no weight from a neuron to itself.")
        order += ready
    return order


def _with_weight(name: str, neuron: nn.Module, node: Any) -> nn.Module:
    """Recurrent neurons, with the weight of a node."""
    if not isinstance(neuron, Neuron):
        raise UserError(f"NIR: {name} has a recurrent weight, and is no neuron that fires.")
    weight, bias = np.asarray(node.weight), getattr(node, "bias", None)
    has_bias = bias is not None and np.any(np.asarray(bias))
    recurrent = Recurrent(len(weight), neuron, bias=bool(has_bias))
    with torch.no_grad():
        recurrent.recurrent.weight.copy_(torch.as_tensor(weight))
        if has_bias:
            assert recurrent.recurrent.bias is not None
            recurrent.recurrent.bias.copy_(torch.as_tensor(np.asarray(bias)))
    return recurrent


class _Reader:
    """Makes the module of a node.

    Args:
        dt: duration of a time-step [s].
    """

    def __init__(self, dt: float) -> None:
        self.dt, nir = dt, nir_package()
        self.makers: dict[type, Callable[[str, Any], nn.Module]] = {
            nir.Affine: self.linear,
            nir.Linear: self.linear,
            nir.Conv2d: self.conv,
            nir.SumPool2d: self.sum_pool,
            nir.AvgPool2d: self.average_pool,
            nir.Flatten: self.flatten,
            nir.Delay: self.delay,
            nir.LIF: self.neuron,
            nir.CubaLIF: self.neuron,
            nir.IF: self.neuron,
            nir.LI: self.integral,
        }

    def _rate(self, name: str, tau: Any) -> Any:
        """dt / tau.

        Raises:
            UserError: it is above 1, where a potential would overshoot its rest.
        """
        rate = self.dt / np.asarray(tau, np.float64)
        if (rate > 1 + 1e-6).any():
            raise UserError(
                f"NIR: {name} has a time constant of {np.min(tau):.3g} s, below dt = {self.dt:g} s: pass the dt that "
                "its writer had (of Norse's to_nir 1e-6)."
            )
        return rate

    def module(self, name: str, node: Any) -> nn.Module:
        make = self.makers.get(type(node))
        if make is None:
            known = ", ".join(kind.__name__ for kind in self.makers)
            raise UserError(f"NIR: {name} is a {type(node).__name__}; read are {known}.")
        return make(name, node)

    def linear(self, name: str, node: Any) -> nn.Module:
        weight, bias = torch.as_tensor(np.asarray(node.weight)).float(), getattr(node, "bias", None)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        return over_time(_filled(layer, weight, bias))

    def conv(self, name: str, node: Any) -> nn.Module:
        weight = torch.as_tensor(np.asarray(node.weight)).float()
        kernel, groups = _pair(weight.shape[2:]), int(node.groups)
        padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
        arguments = kernel, _pair(node.stride), padding, _pair(node.dilation), groups
        layer = nn.Conv2d(weight.shape[1] * groups, len(weight), *arguments)
        return over_time(_filled(layer, weight, node.bias))

    def average_pool(self, name: str, node: Any) -> nn.Module:
        return over_time(nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding)))

    def sum_pool(self, name: str, node: Any) -> nn.Module:
        kernel = _pair(node.kernel_size)
        return over_time(_SumPool(nn.AvgPool2d(kernel, _pair(node.stride), _pair(node.padding)), math.prod(kernel)))

    def flatten(self, name: str, node: Any) -> nn.Module:
        shape = node.input_type.get("input")
        dims = 0 if shape is None else np.size(shape)  # of a sample; some writers count the batch, too
        if node.start_dim not in (0, 1, -dims) or node.end_dim not in (-1, dims - 1, dims):
            raise UserError(f"NIR: {name} flattens some of its dimensions; read are those that flatten a sample.")
        return over_time(nn.Flatten())

    def delay(self, name: str, node: Any) -> nn.Module:
        seconds = np.asarray(node.delay, np.float64)
        if not ((seconds >= 0) & np.isfinite(seconds)).all():
            raise UserError(f"NIR: {name} has a delay of {seconds.min():.3g} to {seconds.max():.3g} s.")
        steps = (torch.as_tensor(_per_channel(name, seconds)) / self.dt).float().expand(len(seconds))
        nearest = steps.round()
        is_whole = torch.allclose(steps, nearest, rtol=1e-5, atol=1e-5)  # seconds are stored in float32
        steps = nearest if is_whole else steps
        layer = Delay(len(seconds), max(1, math.ceil(steps.max().item())), rounds=is_whole)
        layer.delay.data.copy_(steps)
        return layer

    def neuron(self, name: str, node: Any) -> nn.Module:
        kind = type(node).__name__
        tau = getattr(node, "tau_mem" if kind == "CubaLIF" else "tau", np.inf)
        k = self._rate(name, tau)
        r = np.asarray(node.r, np.float64)
        rest, reset = (np.asarray(getattr(node, n, 0.0), np.float64) for n in ("v_leak", "v_reset"))
        gain = (self.dt if kind == "IF" else k) * r
        values = {"k": k, "gain": gain, "rest": rest, "level": reached(node.v_threshold)}
        if kind == "CubaLIF":
            values["decay"] = self._rate(name, node.tau_syn)
            values["weight"] = values["decay"] * np.asarray(node.w_in, np.float64)
        found = {name_of: _per_channel(name, value) for name_of, value in values.items()}
        v_reset = _per_channel(name, reset)
        if isinstance(v_reset, Tensor):
            raise UserError(f"NIR: {name} has several v_reset; here a layer of neurons has one.")
        return _neuron(kind, found, v_reset)

    def integral(self, name: str, node: Any) -> nn.Module:
        tau = _per_channel(name, np.asarray(node.tau, np.float32) / np.float32(self.dt))
        if isinstance(tau, Tensor):
            raise UserError(f"NIR: {name} has several tau; here a leaky integral has one.")
        return _Scaled(tau, np.asarray(node.r), np.asarray(node.v_leak))


def _neuron(kind: str, values: dict[str, Any], v_reset: float) -> Neuron:
    """The named neuron that has these constants, so that it exports and trains as such; otherwise a general one."""
    sizes = {len(value) for value in values.values() if isinstance(value, Tensor)}
    if not sizes and (named := _named(kind, values, v_reset)) is not None:
        return named
    per: dict[str, Any] = {"tau_per": "channel", "channels": sizes.pop()} if sizes else {}
    general = CurrentNeuron if kind == "CubaLIF" else LeakyNeuron
    return general(**values, **per, v_reset=v_reset, v_threshold=math.inf)  # its own is `level`


def _named(kind: str, values: dict[str, float], v_reset: float) -> Neuron | None:
    """LIF, UndecayedLIF or Synaptic, if one of them has these constants."""
    k, gain, level = (values[name] for name in ("k", "gain", "level"))
    if not 0 < k < 1 or values["rest"] != v_reset:
        return None
    if kind == "LIF" and math.isclose(gain, k, rel_tol=1e-6):
        return LIF(init_tau=1 / k, v_threshold=level, v_reset=v_reset)
    if v_reset != 0 or not math.isclose(gain, 1.0, rel_tol=1e-6):
        return None
    if kind == "LIF":
        return UndecayedLIF(init_tau=1 / k, v_threshold=level)
    if kind == "CubaLIF" and 0 < values["decay"] < 1 and math.isclose(values["weight"], 1.0, rel_tol=1e-6):
        return Synaptic(alpha=1 - values["decay"], beta=1 - k, v_threshold=level)
    return None


def _per_channel(name: str, values: Any) -> Any:
    """A number if all values are equal; otherwise a value per channel [C].

    Raises:
        UserError: they differ within a channel of maps.
    """
    array = np.asarray(values, np.float64)
    if array.size == 1 or (array == array.flat[0]).all():
        return float(array.flat[0])
    of_channel = array.reshape(len(array), -1)
    if (of_channel != of_channel[:, :1]).any():
        raise UserError(f"NIR: {name} has constants that differ within a map; here they may differ between channels.")
    return torch.from_numpy(of_channel[:, 0].copy()).float()


def _pair(size: Any) -> tuple[int, int]:
    values = np.broadcast_to(np.asarray(size), 2)
    return int(values[0]), int(values[1])


def _filled(layer: Any, weight: Tensor, bias: Any) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(np.asarray(bias)))
    return layer
