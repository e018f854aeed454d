"""First step of a conversion: a copy of a network with neurons in the places of nodes, and its layers over time."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from plif_lightning.convert.blocks import Replacement
from plif_lightning.convert.converted import Converted
from plif_lightning.convert.nodes import copy_learned, neuron_of
from plif_lightning.convert.recognise import POOLS, STATELESS, Vocabulary
from plif_lightning.convert.recurrent import RecurrentContainer
from plif_lightning.convert.surgery import holders_of, put, unconverted_leaves
from plif_lightning.errors import UserError
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.pooling import Pool2d, SpikeMaxPool2d
from plif_lightning.layers.readout import Voting
from plif_lightning.network.over_time import over_time
from plif_lightning.neurons import Neuron
from plif_lightning.signals.hooks import has_hooks


def neurons_in_place(
    net: nn.Module, vocabulary: Vocabulary, takes_sequences: bool, shared: set[str]
) -> tuple[Converted, dict[str, tuple[Tensor, torch.Size]]]:
    """A copy of a network with neurons for nodes, and layers over [T, N, *] for containers of layers over frames.

    Args:
        net: the network.
        vocabulary: the classes that it is written in.
        takes_sequences: see `Converted`.
        shared: names of modules that are called more than once, or have several.

    Returns:
        The copy; and the tensor of each name in SpikingJelly, and its shape there.

    Raises:
        UserError: it has no node that can be replaced.
    """
    converted = Converted(copy.deepcopy(net), takes_sequences)
    stored = {name: (t, t.shape) for name, t in converted.net.state_dict(keep_vars=True).items()}
    library, kept = vocabulary.library, converted.conversion.kept
    in_containers = {parts[-1] for _, parts in vocabulary.recurrent_parts(converted)}
    for name, node in list(converted.net.named_modules()):
        if not (vocabulary.is_node(node) or isinstance(node, library.stateful)) or isinstance(
            node, library.layer.Dropout
        ):
            continue
        if type(node) is library.layer.LinearRecurrentContainer and any(m in in_containers for m in node.modules()):
            continue
        if why := vocabulary.why_kept(node, name in shared, node in in_containers):
            kept[name or "the node"] = why
            continue
        if type(node) in vocabulary.own_nodes:
            replacement = _by_user(vocabulary, converted, name, node, shared)
        else:
            replacement = neuron = neuron_of(node, library.nodes[type(node)])
            for theirs, parameter in copy_learned(node, neuron).items():
                stored[f"{name}.{theirs}".lstrip(".")] = parameter, getattr(node, theirs).shape
        _store_no_constants(replacement)
        put(replacement.train(node.training), holders_of(converted, node))
    _replace_recurrent(converted, vocabulary)
    if not any(isinstance(module, Neuron) for module in converted.modules()):
        reasons = [f"{name}: {why}" for name, why in kept.items()] or unconverted_leaves(converted.net)
        raise UserError(
            f"{type(converted.net).__name__} has no node that can be replaced ({'; '.join(reasons) or 'none'}): "
            "map classes of your own by nodes={Class: function of a module, returns a pl.Neuron}."
        )
    _replace_containers(converted, vocabulary)
    _replace_votes(converted, vocabulary)
    return converted, stored


def _store_no_constants(replacement: nn.Module) -> None:
    """Leave the constants of neurons out of the state dict: they are no weights, and SpikingJelly stores none."""
    for module in replacement.modules():
        if isinstance(module, Neuron):
            module._non_persistent_buffers_set.update(module._buffers)


def _by_user(vocabulary: Vocabulary, converted: Converted, name: str, node: nn.Module, shared: set[str]) -> nn.Module:
    """What the user's function makes of a node."""
    replacement = vocabulary.own_nodes[type(node)](node)
    if any(path == name or path.startswith(f"{name}.") for path in shared):
        converted.conversion.alone.append(name)
        # It starts at rest in each of its places, as the original does.
        replacement = Replacement(replacement, name, None)
    return replacement


def _replace_recurrent(converted: Converted, vocabulary: Vocabulary) -> None:
    """Replace containers whose nodes are neurons of this package."""
    for container, (*linear, neuron) in vocabulary.recurrent_parts(converted):
        if isinstance(neuron, Neuron):
            recurrent = RecurrentContainer(container.rc, next(iter(linear), None), neuron)
            name = next(name for name, module in converted.net.named_modules() if module is container)
            converted.conversion.blocks.append(name)
            put(Replacement(recurrent, name, converted.calls), holders_of(converted, container))


def _replace_containers(converted: Converted, vocabulary: Vocabulary) -> None:
    """Containers of plain layers over T N frames become Sequentials over [T, N, *]."""
    for container in list(converted.net.modules()):
        if type(container) is vocabulary.library.layer.SeqToANNContainer and not has_hooks(container):
            parts = list(container.children())
            if all(vocabulary.torch_class(module, STATELESS) and not has_hooks(module) for module in parts):
                layers = nn.Sequential(*(layer_over_time(vocabulary, part) for part in parts))
                put(layers, holders_of(converted, container))


def _replace_votes(converted: Converted, vocabulary: Vocabulary) -> None:
    """Replace the mean of each class's neurons, so that a task knows votes when it sees them."""
    module: Any
    for module in list(converted.net.modules()):
        if type(module) is vocabulary.library.layer.VotingLayer and module.step_mode == "m" and not has_hooks(module):
            put(Voting(module.voting_size), holders_of(converted, module))


def layer_over_time(vocabulary: Vocabulary, module: Any) -> Any:
    """A layer over [T, N, *] for a layer of SpikingJelly or PyTorch; ours unchanged."""
    if module is None or isinstance(module, (TimeBatchNorm, Pool2d)):
        return module
    layer = vocabulary.as_torch(module)
    if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm1d)):
        norm = TimeBatchNorm(layer.num_features, "all_steps")
        norm.bn = layer
        return norm.train(layer.training)
    if not isinstance(layer, POOLS):
        return over_time(layer)
    if isinstance(layer, nn.MaxPool2d) and not (layer.ceil_mode or layer.return_indices):
        sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        if [_pair(size) for size in sizes] == [(2, 2), (2, 2), (0, 0), (1, 1)]:
            return Pool2d(SpikeMaxPool2d("first"))  # PyTorch's rule for ties
    return Pool2d(layer)
