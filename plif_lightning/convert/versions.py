"""The generations of SpikingJelly: `activation_based` of 0.0.0.0.13 and later, `clock_driven` before."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import nn

from plif_lightning.runtime.program import needed_by

# Nodes over all time-steps, by their names in `activation_based`.
_OLD = {
    "MultiStepIFNode": "IFNode",
    "MultiStepLIFNode": "LIFNode",
    "MultiStepParametricLIFNode": "ParametricLIFNode",
    "MultiStepEIFNode": "EIFNode",
}


class _Absent(nn.Module):
    """In the place of classes that a generation lacks."""


class _Layers:
    """Layers of a generation by their names in the newest."""

    def __init__(self, module: Any, renamed: dict[str, str]) -> None:
        self._module, self._renamed = module, renamed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, self._renamed.get(name, name), _Absent)


class Library(NamedTuple):
    """A generation.

    Attributes:
        layer: its layers.
        nodes: nodes over all time-steps, with their names in the newest.
        single_steps: nodes that know no other than single steps, with those that take all.
        stateful: base class of modules with a state.
        reset: resets a network.
    """

    layer: Any
    nodes: dict[type, str]
    single_steps: dict[type, str]
    stateful: type
    reset: Callable[[nn.Module], None]


def library_of(net: nn.Module, names: list[str]) -> Library:
    """The generation that a network's modules are of.

    Args:
        net: the network.
        names: of nodes, in the newest generation.
    """
    with needed_by("a network of SpikingJelly"):
        # A network may have neurons of the user's alone, beside either.
        is_old = any(type(module).__module__.startswith("spikingjelly.clock_driven") for module in net.modules())
        is_old = is_old or find_spec("spikingjelly.activation_based") is None
        package = f"spikingjelly.{'clock_driven' if is_old else 'activation_based'}"
        base, functional, layer, neuron = (
            import_module(f"{package}.{name}") for name in ("base", "functional", "layer", "neuron")
        )
    by_name = _OLD if is_old else {name: name for name in names}
    nodes = {getattr(neuron, own): name for own, name in by_name.items() if hasattr(neuron, own)}
    single = {getattr(neuron, name): own for own, name in _OLD.items()} if is_old else {}
    layers = _Layers(layer, {"Dropout": "MultiStepDropout"} if is_old else {})
    return Library(layers, nodes, single, base.MemoryModule, functional.reset_net)
