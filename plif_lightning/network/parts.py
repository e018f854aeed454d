"""Description of a network's modules in plain values, which checkpoints store and verify."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

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
    *("surrogate", "surrogate_width", "detach_reset"),
}


def parts_of(net: nn.Module) -> Parts:
    """Class and settings of every module in a network, by module name.

    Settings are, for modules of this project and of PyTorch, the public attributes with plain values that affect votes
    (kernel sizes, strides, eps, ...); for all neurons the constants of firing; and `replaced`: methods overridden on
    the instance. Attributes of other programs' modules are ignored: they may be counters or caches.
    """
    found: Parts = {}
    for name, module in net.named_modules():
        if _COMPILED in module._modules:  # the wrapper of a compiled module; the module itself follows
            continue
        own = {key: value for key, value in vars(module).items() if key[0] != "_"}
        settings: dict[str, Any] = dict(own) if _origin(module) != "elsewhere" else {}
        if isinstance(module, Neuron):
            settings |= asdict(module.constants)
        plain = {key: _plain(value) for key, value in settings.items() if key not in _NO_SETTINGS}
        part: dict[str, Any] = {"class": _class_name(module), "from": _origin(module)}
        part |= {key: value for key, value in plain.items() if value is not _NOT_PLAIN}
        if replaced := sorted(key for key, value in own.items() if callable(value) and hasattr(type(module), key)):
            part["replaced"] = replaced
        if module._forward_hooks or module._forward_pre_hooks:
            part["hooks"] = True
        found[".".join(level for level in name.split(".") if level != _COMPILED)] = part
    return found


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
    differences = []
    for name in dict.fromkeys([*stored, *here]):
        there, now = stored.get(name), here.get(name)
        place = name or "the network"
        if there is None or now is None:
            known = there or now or {}
            differences.append(f"{place}, a {known.get('class')}, is only {'there' if now is None else 'here'}")
        elif (there.get("class"), there.get("from")) != (now["class"], now["from"]):
            differences.append(f"{place} is a {_described(there)} there, a {_described(now)} here")
        elif there.get("replaced") != now.get("replaced"):
            differences.append(f"replaced of {place} is {there.get('replaced')} there, {now.get('replaced')} here")
        else:
            keys = (there.keys() & now.keys()) - {"class", "from", "replaced", "hooks"}
            differences += [
                f"{key} of {place} is {there[key]!r} there, {now[key]!r} here"
                for key in sorted(keys)
                if there[key] != now[key]
            ]
            if there.get("hooks") and not now.get("hooks"):
                _log.warning("%s: %s had hooks when it was saved. What they did is not in the checkpoint.", path, place)
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(
            f"the network in {path} differs from the one that its arguments build: {'; '.join(differences[:3])}{more}. "
            "Its weights would give other votes. Build its layers in the __init__ of a subclass of SpikingClassifier, "
            "and load the checkpoint with that class's load_from_checkpoint."
        )


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """Numbers, strings and None as built-in types, sequences of them as lists; `_NOT_PLAIN` for anything else.

    `weights_only` loading would refuse subclasses, such as NumPy numbers and enumerations.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (tuple, list)):
        values = [_plain(part) for part in value]
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in values) else values
    return _NOT_PLAIN


def _class_name(module: nn.Module) -> str:
    """Name of the class without its module, which differs when a script is imported instead of run."""
    name = type(module).__name__
    return _SAME.get(name, name)


def _origin(module: nn.Module) -> str:
    package = type(module).__module__.partition(".")[0]
    return package if package in ("plif_lightning", "torch") else "elsewhere"


def _described(part: Mapping[str, Any]) -> str:
    return f"{part.get('class')}{' of another program' if part.get('from') == 'elsewhere' else ''}"
