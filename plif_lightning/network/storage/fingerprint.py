"""Fingerprint of a network's computation, apart from its weights: no checkpoint is loaded into another network."""

import hashlib
from typing import Any

from torch import nn

from plif_lightning.errors import CheckpointError
from plif_lightning.neurons import Neuron

# Attributes of PyTorch's layers that their output depends on, beside their weights; those of a `Layer` it names itself.
_GEOMETRY = (
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_size", "ceil_mode", "eps"),
    *("num_groups", "num_heads", "negative_slope", "scale_factor"),
)


def fingerprint(net: nn.Module) -> str:
    """Hash of a network's computation, apart from its weights: classes, geometry, and constants and equations of
    neurons.

    T, dropout, ties of pools, backends and learned values do not count, and `SyncBatchNorm` is `BatchNorm2d`.
    """
    lines = []
    for name, module in net.named_modules():
        if "_orig_mod" in module._modules:  # the wrapper of a compiled module, which follows
            continue
        kind = {"SyncBatchNorm": "BatchNorm2d"}.get(type(module).__name__, type(module).__name__)
        values = {key: getattr(module, key, None) for key in (*_GEOMETRY, *getattr(module, "geometry", ()))}
        constants = [f"{key}={v}" for key, v in values.items() if isinstance(v, (int, float, str, tuple))]
        constants += [module.dynamics.key] if isinstance(module, Neuron) else []
        path = ".".join(step for step in name.split(".") if step != "_orig_mod")
        lines.append(" ".join([path, kind, *constants]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def require_same(net: nn.Module, stored: Any, path: object) -> None:
    """Refuse the weights of another network.

    Args:
        net: the network that is to load them.
        stored: `fingerprint` of the network that was trained.
        path: the checkpoint, for the message.

    Raises:
        CheckpointError: the fingerprints differ.
    """
    if stored != fingerprint(net):
        raise CheckpointError(
            f"the network in {path} differs from this one in a class, the size of a convolution or pool, the equations "
            "or constants of neurons, or a delay's: its weights would give other votes. Build it as it was trained."
        )
