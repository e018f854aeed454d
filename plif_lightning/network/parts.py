"""Description of a network's modules in plain values, which checkpoints store, and what is verified on loading."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.dynamics.equations import program
from plif_lightning.errors import CheckpointError
from plif_lightning.neurons import Neuron

Parts = dict[str, dict[str, Any]]
_log = logging.getLogger(__name__)
# Modules that compute the same in evaluation, under one name.
_SAME = {"SyncBatchNorm": "BatchNorm2d"}
_COMPILED = "_orig_mod"
# Attributes that do not affect votes in evaluation: T, on which no parameter depends, and training-only settings.
_NO_SETTINGS = {
    *("training", "time_steps", "p", "momentum", "ties", "statistics", "held"),
    *("surrogate", "surrogate_width", "detach_reset", "through_time"),
}


def parts_of(net: nn.Module) -> Parts:
    """Class and settings of every module in a network, by module name.

    Settings are, for modules of this project and of PyTorch, the public attributes with plain values that affect votes
    (kernel sizes, strides, eps, ...); for all neurons the constants of firing; for neurons of one's own a fingerprint
    of their equations; and `replaced`: methods overridden on the instance. Attributes of other programs' modules are
    ignored: they may be counters or caches.
    """
    return {
        ".".join(level for level in name.split(".") if level != _COMPILED): _part(module)
        for name, module in net.named_modules()
        if _COMPILED not in module._modules  # the wrapper of a compiled module; the module itself follows
    }


def _part(module: nn.Module) -> dict[str, Any]:
    """Class and settings of one module, see `parts_of`."""
    own = {key: value for key, value in vars(module).items() if key[0] != "_"}
    name = type(module).__name__  # without its module, which differs when a script is imported instead of run
    part = {"class": _SAME.get(name, name), "from": _origin(module), **_settings(module, own)}
    if replaced := sorted(key for key, value in own.items() if callable(value) and hasattr(type(module), key)):
        part["replaced"] = replaced
    if module._forward_hooks or module._forward_pre_hooks:
        part["hooks"] = True
    return part


def _settings(module: nn.Module, own: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values that affect votes, from a module's public attributes `own` and its constants of firing."""
    settings = {} if _origin(module) == "elsewhere" else dict(own)
    if isinstance(module, Neuron):
        settings |= asdict(module.constants)
        if _origin(module) == "elsewhere":  # a file of one's own, which may be edited
            settings["equations"] = program(module.dynamics.key).spiking
    plain = {key: _plain(value) for key, value in settings.items() if key not in _NO_SETTINGS}
    return {key: value for key, value in plain.items() if value is not _NOT_PLAIN}


def require_finite(weights: Mapping[str, Tensor], path: object) -> None:
    """Refuse weights of a file of which one is NaN or infinite.

    Raises:
        CheckpointError: names the first one.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path} is unusable: {name} in it is NaN or infinite.")


def require_parts(here: Parts, stored: Any, path: object) -> None:
    """Refuse a network whose modules differ from those of a checkpoint's network.

    Settings that only one of the two has are not compared: one is older, or has an additional attribute. Hooks are not
    stored in checkpoints; a missing one is logged as a warning.

    Args:
        here: `parts_of` the network that is to load the weights.
        stored: `parts_of` the network that was trained.
        path: the checkpoint, for the message.

    Raises:
        CheckpointError: the modules differ; names the first differences.
    """
    if not isinstance(stored, Mapping) or not all(isinstance(part, Mapping) for part in stored.values()):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it does not say what its network is.")
    if differences := _differences(here, stored, path):
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(
            f"the network in {path} differs from this one: {'; '.join(differences[:3])}{more}. Its weights would give "
            "other votes. Build the network with the checkpoint's arguments, or build the layers that differ in the "
            "__init__ of a subclass of SpikingClassifier, and load the checkpoint with that class's "
            "load_from_checkpoint."
        )


def _differences(here: Parts, stored: Mapping[str, Mapping[str, Any]], path: object) -> list[str]:
    """Differences between the modules of two networks, in words; logs a warning for each one that lacks its hooks."""
    found = []
    for name in dict.fromkeys([*stored, *here]):
        place = name or "the network"
        if name not in here:
            found.append(f"{place}, a {stored[name].get('class')}, is only there")
        elif name not in stored:
            found.append(f"{place}, a {here[name]['class']}, is only here")
        else:
            found += _changes(place, stored[name], here[name], path)
    return found


def _changes(place: str, there: Mapping[str, Any], now: Mapping[str, Any], path: object) -> list[str]:
    """Differences between a module here and its namesake in a checkpoint, see `_differences`."""
    if (there.get("class"), there.get("from")) != (now["class"], now["from"]):
        return [f"{place} is a {_described(there)} there, a {_described(now)} here"]
    if there.get("replaced") != now.get("replaced"):
        return [f"replaced of {place} is {there.get('replaced')} there, {now.get('replaced')} here"]
    if there.get("hooks") and not now.get("hooks"):
        _log.warning("%s: %s had hooks when it was saved. What they did is not in the checkpoint.", path, place)
    keys = sorted((there.keys() & now.keys()) - {"class", "from", "replaced", "hooks"})
    changed = [key for key in keys if there[key] != now[key]]
    return [f"{key} of {place} is {there[key]!r} there, {now[key]!r} here" for key in changed]


_NOT_PLAIN = object()
# Conversions to built-in types; str() of an enumeration of strings would be its name.
_BUILT_IN: dict[type, Callable[[Any], Any]] = {bool: bool, int: int, float: float, str: str.__str__}


def _plain(value: Any) -> Any:
    """Numbers, strings and None as built-in types, sequences of them as lists; `_NOT_PLAIN` for anything else.

    `weights_only` loading would refuse subclasses, such as NumPy numbers and enumerations.
    """
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        values = [_plain(part) for part in value]
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in values) else values
    for kind, built_in in _BUILT_IN.items():
        if isinstance(value, kind):
            return built_in(value)
    return _NOT_PLAIN


def _origin(module: nn.Module) -> str:
    package = type(module).__module__.partition(".")[0]
    return package if package in ("plif_lightning", "torch") else "elsewhere"


def _described(part: Mapping[str, Any]) -> str:
    return f"{part.get('class')}{' of another program' if part.get('from') == 'elsewhere' else ''}"
