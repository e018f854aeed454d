"""Networks of one's own: what is known of any module, and what a task requires of it.

A network is any module whose `forward` takes x [T, N, C, H, W], or static images [N, C, H, W], and returns votes or
logits [T, N, classes]. It may have `time_steps`, the T that it gives static images.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.kernels import dense
from plif_lightning.network.blocks import listening_to
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.hooks import Hear, hooked
from plif_lightning.network.network import DEFAULTS, SpikingNetwork
from plif_lightning.network.output import Integral, Output
from plif_lightning.network.over_time import OverTime
from plif_lightning.network.tracing import plain
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.making import imported
from plif_lightning.structure import FROM_DATA as FROM_DATA

_log = logging.getLogger(__name__)
# Arguments of `SpikingNetwork` that any module's neurons have.
_OF_ALL = {"backend", "sparse"}


def own_network(net: nn.Module, from_data: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    """A network of one's own, ready for a task.

    Args:
        net: the module. Layers without a forward over time, such as an `nn.Sequential`, are run with `over_time`.
        from_data: input_shape, num_classes and time_steps.
        settings: arguments of `SpikingNetwork` that were given beside it.

    Raises:
        UserError: an argument would have no effect; or the network was made for other data.
    """
    if not isinstance(net, nn.Module):
        raise UserError(
            f"network must be a module, or its class such as my_nets.Net on the command line, got {net!r}. "
            "A checkpoint of a network that was built in Python is loaded with load_from_checkpoint(path, network=...)."
        )
    without = {name: value for name, value in settings.items() if name not in _OF_ALL}
    if lost := [f"{name}={value!r}" for name, value in without.items() if value != DEFAULTS.get(name)]:
        raise UserError(
            f"{', '.join(lost)} would have no effect on {type(net).__name__}, a network of your own: set it there."
        )
    if isinstance(net, nn.Sequential) and type(net).forward is nn.Sequential.forward:
        net = _Layers(net)
    elif type(net) is OverTime:
        net = _Layers(net.net, net.backend.sparse)
    for name in FROM_DATA:
        have, value = getattr(net, name, None), from_data[name]
        if have is None:
            setattr(net, name, value)
        elif name != "time_steps" and (tuple(have) if isinstance(have, list) else have) != value:
            raise UserError(f"{type(net).__name__} was made for {name}={have!r}, but the data has {value!r}.")
    return net


class _Layers(OverTime):
    """`OverTime` that holds static images for `time_steps`."""

    input_shape: tuple[int, ...]
    time_steps: int

    def forward(self, x: Tensor) -> Tensor:
        held = x.dim() == len(self.input_shape) + 1
        return super().forward(x.expand(self.time_steps, *x.shape) if held else x)


def description(net: nn.Module) -> str:
    """A network in words: its structure, or its class."""
    return str(net.structure) if isinstance(net, SpikingNetwork) else f"{type(net).__module__}.{type(net).__qualname__}"


def kernels_of(net: nn.Module, device: torch.device) -> str:
    """The kernels of a network, in words."""
    if isinstance(net, SpikingNetwork):
        return net.kernels(device)
    chosen = {neuron.backend.chosen(device) for _, neuron in neurons_of(net)}
    return f"{' and '.join(sorted(chosen))} kernels for its neurons" if chosen else "a network without our neurons"


def neurons_of(net: nn.Module) -> Iterator[tuple[str, Neuron]]:
    """(name, neuron) of every layer of spiking neurons; the name is its layer's, or the module's."""
    if isinstance(net, SpikingNetwork):
        yield from net.neurons()
        return
    for name, part in net.named_modules():
        if isinstance(part, Neuron):
            yield name.removesuffix(".neuron"), part


def listening(net: Any, hear: Hear) -> AbstractContextManager[None]:
    """Call `hear(layer, spikes)` with the spikes [T, N, *] of each layer of neurons while the context lasts."""
    return net.listening(hear) if hasattr(net, "listening") else listening_to(net, dict(neurons_of(net)), hear)


def imported_network(path: str) -> type[nn.Module]:
    """A class of networks by its import path. Nothing else that a file names is ever called.

    Raises:
        UserError: it cannot be imported, is no module, or is one of PyTorch's or Lightning's own.
    """
    found = imported("network", path, nn.Module, "torch.nn.Module")
    if found.__module__.partition(".")[0] in ("torch", "lightning", "torchvision", "torchmetrics"):
        raise UserError(f"network {path} is a part of {found.__module__.partition('.')[0]}, not a network of your own.")
    return found


def has_votes(net: nn.Module) -> bool:
    """True if a network's output is known to be votes in [0, 1]; otherwise losses take it for logits."""
    net = plain(net)
    if isinstance(net, SpikingNetwork):
        last = list(net.classifier.children())[-1:]
        readout = isinstance(net.voting, (Output, Integral)) and any(getattr(fc, "neuron", net) is None for fc in last)
        return not readout and not isinstance(net.voting, Integral)
    while isinstance(net, (OverTime, nn.Sequential)) and len(parts := list(net.children())):
        net = parts[-1]
    return isinstance(net, Neuron)


@torch.no_grad()
def require_protocol(net: nn.Module, x: Tensor, num_classes: int) -> None:
    """Try a network of one's own on two samples in evaluation mode, and leave it as it was.

    Two more calls find other values, large and negative ones, in every tensor that the call before left in a module. If
    that changes an output, the module keeps state between calls; a tensor that is only looked at does no harm.

    Args:
        net: the network.
        x: [T, N, C, H, W], or static images [N, C, H, W].

    Raises:
        UserError: it returns something other than [T, N, classes]; or a module in it keeps state between calls.
    """
    if dense.widens(x):
        _log.warning(
            "This processor has no instructions for bfloat16: layers that a network of your own calls may take 10 to "
            "100 times as long as in float32. Pass --trainer.precision 32-true."
        )
    x = x[:, :2] if x.dim() == 5 else x[:2]
    training = [part for part in net.modules() if part.training]
    kept = {name: _Kept(part) for name, part in net.named_modules()}
    first, others = _Calls(), [_Calls(), _Calls()]
    for part in net.modules():
        if isinstance(part, ConvBlock):
            part._reported_hooks = True  # those of the trial
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            net.eval()
            seed = torch.initial_seed()
            torch.manual_seed(seed)
            with hooked(dict(net.named_modules()), first.keep):
                votes = net(x)
            _require_votes(net, votes, x, num_classes)
            for value, again in zip((10.0, -10.0), others, strict=True):
                left = [name for name, part in kept.items() if part.disturb(value)]
                torch.manual_seed(seed)
                with hooked(dict(net.named_modules()), again.keep):
                    try:
                        net(x)
                    except Exception as error:
                        raise _keeps_state(net, left[0] if left else "", error) from error
        finally:
            for part in training:
                part.training = True
            for part_kept in kept.values():
                part_kept.restore()
    for name, (given, made) in first.of.items():
        for calls in others:
            found = calls.of.get(name)
            if found is not None and _same(given, found[0]) and not _same(made, found[1]):
                raise _keeps_state(net, name)


def _keeps_state(net: nn.Module, name: str, error: Exception | None = None) -> UserError:
    kept = f"{name} of {type(net).__name__}" if name else type(net).__name__
    why = f"a second call failed ({error})" if error is not None else "the same input gave another output"
    return UserError(
        f"{kept} keeps state between calls: {why}. A network must start anew in every call; layers of SpikingJelly or "
        "snnTorch must be reset in its forward."
    )


class _Kept:
    """What a module keeps in its attributes, and in dictionaries among them; parameters and submodules aside."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        places = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_modules")}
        self.places = {name: dict(value) if isinstance(value, dict) else value for name, value in places.items()}
        self.values = {place: (tensor, tensor._version, tensor.clone()) for place, tensor in self.tensors().items()}

    def tensors(self) -> dict[tuple[str, Any], Tensor]:
        """Tensors that it holds now, by attribute and key."""
        found: dict[tuple[str, Any], Tensor] = {}
        for name, value in vars(self.module).items():
            if isinstance(value, Tensor):
                found[name, None] = value
            elif isinstance(value, dict) and name not in ("_parameters", "_modules"):
                found |= {(name, key): part for key, part in value.items() if isinstance(part, Tensor)}
        return found

    def disturb(self, value: float) -> bool:
        """Put a value into every tensor that is new or was changed; False if there is none."""
        changed = False
        for (name, key), tensor in self.tensors().items():
            old, version, _ = self.values.get((name, key), (None, 0, None))
            if tensor.is_floating_point() and (old is not tensor or tensor._version != version):
                changed, other = True, torch.full_like(tensor, value)
                if key is None:
                    vars(self.module)[name] = other
                else:
                    vars(self.module)[name][key] = other
        return changed

    def restore(self) -> None:
        own = vars(self.module)
        for name in [name for name in own if name not in self.places and name not in ("_parameters", "_modules")]:
            del own[name]
        for name, value in self.places.items():
            if isinstance(value, dict) and isinstance(own.get(name), dict):
                own[name].clear()
                own[name].update(value)
            else:
                own[name] = value
        for tensor, version, value in self.values.values():
            if tensor._version != version:
                tensor.copy_(value)


class _Calls:
    """Inputs and outputs of each module's first call."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[Any, Any]] = {}

    def keep(self, name: str, module: nn.Module, given: Any, made: Any) -> None:
        if name not in self.of:  # inner modules are called, and kept, first
            inputs = [value.clone() for value in given if isinstance(value, Tensor)]
            self.of[name] = inputs, made.clone() if isinstance(made, Tensor) else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is None and other is None


def _require_votes(net: nn.Module, votes: Any, x: Tensor, num_classes: int) -> None:
    """Refuse an output that is not [T, N, classes]."""
    name = type(net).__name__
    samples = x.shape[1] if x.dim() == 5 else len(x)
    expected = f"votes or logits [T, N, {num_classes}] (here N = {samples})"
    if not isinstance(votes, Tensor):
        raise UserError(f"{name} must return {expected}, got a {type(votes).__name__}.")
    steps = len(x) if x.dim() == 5 else getattr(net, "time_steps", len(votes))
    if votes.dim() == 2 and votes.shape[-1] == num_classes:
        raise UserError(
            f"{name} must return {expected}, got {list(votes.shape)}: do not average over time, the loss does."
        )
    if votes.dim() == 3 and tuple(votes.shape[1:]) == (samples, num_classes) and len(votes) != steps:
        raise UserError(
            f"{name} ran {len(votes)} time-steps, and the data has {steps}: use self.time_steps, or --data.time_steps."
        )
    if votes.dim() != 3 or tuple(votes.shape[1:]) != (samples, num_classes) or len(votes) != steps:
        raise UserError(f"{name} must return {expected}, T = {steps}, got {list(votes.shape)}.")
