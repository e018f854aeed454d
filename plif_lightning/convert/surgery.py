"""Where modules stand in a network."""

import inspect
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from plif_lightning.signals.hooks import has_hooks


def names_of_shared(net: nn.Module) -> set[str]:
    """First names of the modules that are registered under more names."""
    paths: dict[nn.Module, list[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    return {names[0] for names in paths.values() if len(names) > 1}


def flattened_layers(
    sequence: nn.Module, consumed: set[nn.Module], names: Mapping[nn.Module, str], shared: set[str]
) -> Iterator[nn.Module]:
    """Layers of a plain Sequential and of nested Sequentials, which are added to `consumed`."""
    for layer in sequence._modules.values():  # not `children`, which leaves out a layer that is there twice
        assert layer is not None
        if type(layer) is nn.Sequential and not has_hooks(layer) and names[layer] not in shared:
            consumed.add(layer)
            yield from flattened_layers(layer, consumed, names, shared)
        else:
            yield layer


def holders_of(net: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every place of a module: the module that holds it, and its name there."""
    return [(holder, name) for holder in net.modules() for name, child in holder._modules.items() if child is module]


def put(module: nn.Module, holders: Sequence[tuple[nn.Module, str]]) -> None:
    """Put a module in some places."""
    for holder, name in holders:
        holder._modules[name] = module


def origin_of(kind: type) -> str:
    """` (file:line)` of a class that is not of an installed package."""
    try:
        file, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return ""
    return "" if "site-packages" in str(file) else f" ({file}:{line})"


def unconverted_leaves(net: nn.Module) -> list[str]:
    """Classes without layers in them that are of no installed package: perhaps neurons."""
    name_of = {type(leaf): name for name, leaf in net.named_modules() if not [*leaf.children()]}
    return [f"{name}: {kind.__name__}{origin}" for kind, name in name_of.items() if (origin := origin_of(kind))]
