"""Look into a network: outputs of layers, modes, names of parameters."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.neurons import LIF, Neuron

OnSpikes = Callable[[str, Tensor], None]


@contextmanager
def restore_modes(*nets: nn.Module) -> Iterator[None]:
    """Restore afterwards which modules of networks are in training mode."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def record_spikes(neurons: Mapping[str, nn.Module], on_spikes: OnSpikes) -> AbstractContextManager[None]:
    """Call `on_spikes(name, spikes)` with the spikes [T, N, *] of each of these neurons, before any pool.

    Their blocks run part by part while the context lasts.
    """
    return forward_hooks(neurons, lambda name, neuron, inputs, spikes: on_spikes(name, spikes))


@contextmanager
def layer_outputs(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers, [T, N, *] each, by name, of the calls of a network in the context; the last call's stay.

    Args:
        net: a network; of a structure the layers have their short names, such as `conv2`, or paths, as those of any
            other module.
        names: of the layers.

    Raises:
        UserError: there is no such layer.
    """
    # A network of one's own may mean something else by `layers`.
    short = cast(Any, net).layers() if hasattr(net, "layer_specs") else {}
    modules = {**dict(net.named_modules()), **short}
    if unknown := [name for name in names if name not in modules]:
        raise UserError(f"the network has no layer {', '.join(unknown)}; it has {', '.join(filter(None, modules))}.")
    outputs: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, inputs: Any, y: Any) -> None:
        outputs[name] = y.clone() if isinstance(y, Tensor) else y  # a forward may write into it, as `y += x`

    with forward_hooks({name: modules[name] for name in names}, note):
        yield outputs


@contextmanager
def forward_hooks(modules: Mapping[str, nn.Module], hook: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
    """Call `hook(name, module, inputs, output)` after each call of these modules while the context lasts.

    Inputs that were given by name are in the place that `forward` has for them.
    """

    def call_hook(name: str, module: nn.Module, inputs: tuple[Any, ...], by_name: dict[str, Any], output: Any) -> None:
        if by_name:
            bound = inspect.signature(module.forward).bind(*inputs, **by_name)
            bound.apply_defaults()
            inputs = bound.args
        hook(name, module, inputs, output)

    with ExitStack() as handles:
        for name, module in modules.items():
            handles.enter_context(module.register_forward_hook(partial(call_hook, name), with_kwargs=True))
        yield


def parameter_names(net: nn.Module) -> dict[str, list[str]]:
    """The names of each parameter: in the network, and of a neuron's by what it gives, such as `fc1.neuron.tau`."""
    first = {id(parameter): name for name, parameter in net.named_parameters()}  # of tied ones
    found = {name: [name] for name in first.values()}
    for path, neuron in net.named_modules():
        if not isinstance(neuron, Neuron):
            continue
        stored = {parameter.stored_as: name for name, parameter in neuron.declared.items()}
        given = stored | {"v_threshold_raw": "v_threshold"} | ({"a": "tau"} if isinstance(neuron, LIF) else {})
        for own, parameter in neuron.named_parameters(recurse=False):
            if own in given:
                found[first[id(parameter)]].append(f"{path}.{given[own]}".lstrip("."))
    return found
