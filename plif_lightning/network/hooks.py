"""Hooks of modules: a hooked module must be called as a module, not fused into a kernel."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules import module as _every


def has_hooks(module: nn.Module) -> bool:
    """True if this module has hooks of its own."""
    return bool(
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
    """True if this module must be called as a module for hooks to run: its own or global ones."""
    return has_hooks(module) or has_global_hooks()


Hear = Callable[[str, Tensor], None]


@contextmanager
def listening(neurons: Mapping[str, nn.Module], hear: Hear | None) -> Iterator[None]:
    """Call `hear(name, spikes)` with the output [T, N, *] of each of these neurons while the context lasts."""

    def listener(name: str, hear: Hear) -> Callable[..., None]:
        return lambda neuron, given, spikes: hear(name, spikes)

    handles = []
    if hear is not None:
        handles = [neuron.register_forward_hook(listener(name, hear)) for name, neuron in neurons.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
