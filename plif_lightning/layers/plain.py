"""Modules that kernels and exports may stand for."""

from torch import nn

from plif_lightning.neurons import Neuron
from plif_lightning.signals.hooks import is_called_plainly, package_of

# PyTorch classes with a forward that kernels and exports know.
_KNOWN = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


def is_plain(*modules: nn.Module | None) -> bool:
    """True if kernels and exports may stand for these modules: without hooks, and of classes that they know.

    Known classes are PyTorch's, this package's, and neurons defined by equations.
    """
    return all(module is None or (_is_builtin(module) and is_called_plainly(module)) for module in modules)


def _is_builtin(module: nn.Module) -> bool:
    if isinstance(module, Neuron):
        return module.fires
    return type(module) in _KNOWN or package_of(module) == "plif_lightning"
