"""Hooks of a module, and the package that its class is of."""

from torch import nn
from torch.nn.modules import module as _every


def has_hooks(module: nn.Module) -> bool:
    """True if a call of this module does more than the forward of its class; timers and offloaders set a forward."""
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_called_plainly(module: nn.Module) -> bool:
    """True if a call of this module does no more than the forward of its class."""
    of_all = _every._global_forward_hooks or _every._global_forward_pre_hooks
    of_all = of_all or _every._global_backward_hooks or _every._global_backward_pre_hooks
    return not (of_all or has_hooks(module))


def package_of(module: nn.Module) -> str:
    """`torch.nn` or `plif_lightning`, whose class a module is of; empty for others."""
    packages = ("torch.nn", "plif_lightning")
    return next((name for name in packages if type(module).__module__.startswith(f"{name}.")), "")
