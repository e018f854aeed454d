"""Entries for `torch.hub.load`: networks of this project, trained ones and those of its configurations."""

from typing import Any

dependencies = ["torch", "lightning", "numba", "lazy_loader", "yaml"]


def pretrained(place: str, **named: Any) -> Any:
    """A trained network from a folder or the hub; see `plif_lightning.from_pretrained`."""
    from plif_lightning import from_pretrained

    return from_pretrained(place, **named)


def network(name: str = "fashionmnist", **changes: Any) -> Any:
    """An untrained network of one of the paper's data sets, such as `cifar10`; `changes` are arguments of it."""
    from plif_lightning.configs import network_of

    return network_of(name, **changes)
