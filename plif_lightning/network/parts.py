"""The modules that a network is made of, as plain values that a checkpoint can hold."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from plif_lightning.errors import CheckpointError
from plif_lightning.neurons import Neuron

Parts = dict[str, dict[str, Any]]
# Modules that compute the same in evaluation.
_SAME = {"SyncBatchNorm": "BatchNorm2d"}
_COMPILED = "_orig_mod"
# What a training may change as it goes (dropout's p, BN's momentum), and T: nothing learned depends on them.
_NO_SETTINGS = ("training", "time_steps", "p", "momentum")


def parts_of(net: nn.Module) -> Parts:
    """Class and settings of every module in a network, by the name of the module.

    Settings are the public attributes with plain values (kernel sizes, strides, V_th, eps, ...), and `replaced`:
    methods that one module has been given in place of its class's. Classes of this project and of PyTorch go by their
    bare names, others with their module's.
    """
    found: Parts = {}
    for name, module in net.named_modules():
        if _COMPILED in module._modules:  # the wrapper; what it wraps comes next
            continue
        own = vars(module)
        settings = {key: _plain(value) for key, value in own.items() if key[0] != "_" and key not in _NO_SETTINGS}
        settings = {key: value for key, value in settings.items() if value is not _NOT_PLAIN}
        if isinstance(module, Neuron):
            settings |= asdict(module.constants)
        if replaced := sorted(key for key, value in own.items() if callable(value) and hasattr(type(module), key)):
            settings["replaced"] = replaced
        path = ".".join(part for part in name.split(".") if part != _COMPILED)
        found[path] = {"class": _class_name(type(module)), **settings}
    return found


def require_parts(net: nn.Module, stored: Mapping[str, Mapping[str, Any]], path: object) -> None:
    """Refuses a network that is not made of what a checkpoint's network was made of.

    A setting that the checkpoint does not name is not compared: it is younger than the checkpoint.

    Args:
        net: that the checkpoint's weights are meant for.
        stored: `parts_of` the network that was trained.
        path: of the checkpoint, for the message.

    Raises:
        CheckpointError: the first differences, by the names of the modules.
    """
    here, differences = parts_of(net), []
    if not isinstance(stored, Mapping) or not all(isinstance(part, Mapping) for part in stored.values()):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it does not say what its network is.")
    for name in dict.fromkeys([*stored, *here]):
        there, now = stored.get(name), here.get(name)
        place = name or "the network"
        if there is None or now is None:
            known = there or now or {}
            differences.append(f"{place}, a {known.get('class')}, is only {'there' if now is None else 'here'}")
        elif there.get("class") != now["class"]:
            differences.append(f"{place} is a {there.get('class')} there, a {now['class']} here")
        else:
            for key, value in there.items():
                if value != now.get(key):
                    differences.append(f"{key} of {place} is {value!r} there, {now.get(key)!r} here")
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise CheckpointError(
            f"the network in {path} is another one than its arguments make: {'; '.join(differences[:3])}{more}. Its "
            "weights would give other votes. Give its layers to a SpikingClassifier of your own, in its __init__, and "
            "load the checkpoint with that class's load_from_checkpoint."
        )


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """Numbers, texts and None as they are, sequences of them as lists; `_NOT_PLAIN` for anything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        values = [_plain(part) for part in value]
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in values) else values
    return _NOT_PLAIN


def _class_name(kind: type) -> str:
    if kind.__module__.partition(".")[0] in ("plif_lightning", "torch"):
        return _SAME.get(kind.__qualname__, kind.__qualname__)
    return f"{kind.__module__}.{kind.__qualname__}"
