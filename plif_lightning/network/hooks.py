"""Hooks of modules: a hooked module must be called as a module, not fused into a kernel."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _every


def has_hooks(module: nn.Module) -> bool:
    """True if this module has hooks of its own, or a forward that was set on it, as timers and offloaders do."""
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    """True if global hooks are registered, which run for every module."""
    return bool(
        _every._global_forward_hooks
        or _every._global_forward_pre_hooks
        or _every._global_backward_hooks
        or _every._global_backward_pre_hooks
    )


def must_be_called(module: nn.Module) -> bool:
    """True if this module must be called as a module: a call does more than the forward of its class."""
    return has_hooks(module) or has_global_hooks()


Hear = Callable[[str, Tensor], None]


def listening(neurons: Mapping[str, nn.Module], hear: Hear | None) -> AbstractContextManager[None]:
    """Call `hear(name, spikes)` with the output [T, N, *] of each of these neurons while the context lasts."""
    return nullcontext() if hear is None else hooked(neurons, lambda name, neuron, given, spikes: hear(name, spikes))


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
