"""Hooks of modules: a hooked module must be called as a module, not fused into a kernel."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _every

from plif_lightning.neurons import Neuron

Hear = Callable[[str, Tensor], None]
# Classes of PyTorch whose forward kernels and exports know.
_KNOWN = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.SyncBatchNorm, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d,
)  # fmt: skip


def is_plain(*modules: nn.Module | None) -> bool:
    """True if kernels and exports may stand for these modules: without hooks, and of classes that they know.

    Those are PyTorch's own, those of this package, and neurons that are their equations.
    """
    return all(module is None or (_is_known(module) and is_called_plainly(module)) for module in modules)


def is_called_plainly(module: nn.Module) -> bool:
    """True if a call of this module does no more than the forward of its class."""
    of_all = _every._global_forward_hooks or _every._global_forward_pre_hooks
    of_all = of_all or _every._global_backward_hooks or _every._global_backward_pre_hooks
    return not (of_all or has_hooks(module))


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, Neuron):
        return module.fires
    return type(module) in _KNOWN or type(module).__module__.startswith("plif_lightning.")


def has_hooks(module: nn.Module) -> bool:
    """True if a call of this module does more than the forward of its class; timers and offloaders set a forward."""
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


@contextmanager
def modes_kept(*nets: nn.Module) -> Iterator[None]:
    """Restore afterwards which modules of networks are in training mode."""
    modes = [(part, part.training) for net in nets for part in net.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def listening(neurons: Mapping[str, nn.Module], hear: Hear) -> AbstractContextManager[None]:
    """Call `hear(name, spikes)` with the spikes [T, N, *] of each of these neurons, before any pool.

    Their blocks run part by part while the context lasts.
    """
    return hooked(neurons, lambda name, neuron, given, spikes: hear(name, spikes))


@contextmanager
def hooked(modules: Mapping[str, nn.Module], hook: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
    """Call `hook(name, module, inputs, output)` after each call of these modules while the context lasts.

    Inputs that were given by name are in the place that `forward` has for them.
    """

    def in_places(name: str, module: nn.Module, given: tuple[Any, ...], by_name: dict[str, Any], output: Any) -> None:
        if by_name:
            bound = inspect.signature(module.forward).bind(*given, **by_name)
            bound.apply_defaults()
            given = bound.args
        hook(name, module, given, output)

    with ExitStack() as handles:
        for name, module in modules.items():
            handles.enter_context(module.register_forward_hook(partial(in_places, name), with_kwargs=True))
        yield
