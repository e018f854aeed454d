"""Groups of an optimiser: options by patterns of parameters' names, and a learning rate that decays with depth."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from plif_lightning.errors import UserError
from plif_lightning.network.inspect import parameter_names
from plif_lightning.network.over_time import OverTime

_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict, OverTime
# Printed names of a pattern.
_SHOWN = 4


def group_parameters(net: nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: each parameter has the options of all patterns that match, later ones win.

    A group also names its `layer`, and says if a pattern set its weight decay (`sets_decay`).

    Args:
        net: the network; names begin in it.
        groups: each a `match`, such as `classifier.*` or `*.tau`, and options of the optimiser, such as `lr`.

    Raises:
        UserError: a group has no match or no option, or matches no parameter.
    """
    names = parameter_names(net)
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for group in groups:
        of_group = {name: value for name, value in group.items() if name != "match"}
        if "match" not in group or not of_group:
            raise UserError(f"a group of parameter_groups is {{match: PATTERN, OPTION: VALUE}}, got {dict(group)}.")
        matched = [name for name, of in names.items() if any(fnmatchcase(n, group["match"]) for n in of)]
        if not matched:
            shown = ", ".join(name for of in names.values() for name in of)
            raise UserError(f"parameter_groups: {group['match']} matches none of {shown}.")
        for name in matched:
            options[name] |= of_group
        more = f" and {len(matched) - _SHOWN} more" if len(matched) > _SHOWN else ""
        rank_zero_info(f"{group['match']}: {of_group} for {', '.join(matched[:_SHOWN])}{more}")
    by_options: dict[str, dict[str, Any]] = {}
    layers = _layers_of(net)
    for name, parameter in net.named_parameters():
        marks = {"layer": layers[name], "sets_decay": "weight_decay" in options[name]}
        group = by_options.setdefault(repr((layers[name], options[name])), {"params": [], **options[name], **marks})
        group["params"].append(parameter)
    return list(by_options.values())


def _layers_of(net: nn.Module) -> dict[str, str]:
    """The layer of each parameter, in order of definition: a child of the network, or of a Sequential, ModuleList or
    ModuleDict in it, such as `encoder.conv1`; without a matrix, as a BN, it belongs to the layer before.
    """
    layers: dict[str, str] = {}
    for name, _ in net.named_parameters():
        module, path = net, list[str]()
        is_wrapper = True  # a module around the network, such as a converted one
        for part in name.split(".")[:-1]:
            if not is_wrapper and not isinstance(module, _CONTAINERS):
                break
            is_wrapper = is_wrapper and len([*module.children()]) == 1
            module = module.get_submodule(part)
            path.append(part)
        layers[name] = ".".join(path)
    with_matrix = {layers[name] for name, parameter in net.named_parameters() if parameter.dim() > 1}
    before = min(with_matrix, key=[*layers.values()].index, default="")
    for name, layer in layers.items():
        before = layers[name] = layer if layer in with_matrix else before
    return layers


def decay_by_depth(optimizer: Optimizer, decay: float) -> None:
    """Multiply each group's learning rate by decay ** (number of layers behind it); the last layer keeps its rate.

    Source: Clark et al. 2020, "ELECTRA".
    """
    layers = list(dict.fromkeys(group["layer"] for group in optimizer.param_groups))
    if len(layers) == 1 or not 0 < decay <= 1:
        raise UserError(f"layer_decay must lie in (0, 1], of two layers or more, got {decay} of {', '.join(layers)}.")
    factors = {layer: decay ** (len(layers) - 1 - i) for i, layer in enumerate(layers)}
    rank_zero_info("learning rate times " + ", ".join(f"{factor:.3g} {layer}" for layer, factor in factors.items()))
    for group in optimizer.param_groups:
        group["lr"] *= factors[group["layer"]]
