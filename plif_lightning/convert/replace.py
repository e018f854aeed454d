"""Third step of a conversion: a copy of a network with neurons and blocks of this package in the places of layers."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from plif_lightning.convert.blocks import PassedOn, Replacement
from plif_lightning.convert.converted import Converted
from plif_lightning.convert.grouping import Plan, plan_of_sequences
from plif_lightning.convert.nodes import copy_learned, neuron_of
from plif_lightning.convert.recognise import POOLS, STATELESS, Vocabulary
from plif_lightning.convert.recurrent import RecurrentContainer
from plif_lightning.convert.surgery import holders_of, names_of_shared, put, unconverted_leaves
from plif_lightning.errors import UserError
from plif_lightning.layers.blocks import ConvBlock, FCBlock
from plif_lightning.layers.norm import TimeBatchNorm2d
from plif_lightning.layers.pooling import Pool2d, SpikeMaxPool2d, TimeDropout
from plif_lightning.layers.readout import Voting
from plif_lightning.network.network import use_backend
from plif_lightning.network.over_time import OverTime, over_time
from plif_lightning.neurons import Neuron
from plif_lightning.signals.hooks import has_hooks


def converted_by(net: nn.Module, words: Vocabulary, takes_frames: bool = True, plan: Plan | None = None) -> Converted:
    """A converted copy of a network.

    Args:
        net: the network; it is left alone.
        words: the classes that it is written in.
        takes_frames: see `Converted`.
        plan: its blocks; without a plan those of plain Sequentials.

    Raises:
        UserError: it has no node that can be replaced.
    """
    example = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), torch.empty(0))
    with _default_dtype(example.dtype):
        twice = names_of_shared(net) if plan is None else plan.twice
        converted, stored = with_neurons(net, words, takes_frames, twice)
        _replace_votes(converted, words)
        plan = plan_of_sequences(converted.net, words.kind) if plan is None else plan
        for chain in plan.chains:
            _form_block(converted, words, chain, chain[0] in plan.of_spikes)
    _count_calls(converted)
    use_backend(converted.to(example.device))
    named = reversed(converted.state_dict(keep_vars=True).items())  # the first of its names
    here = {id(tensor): name for name, tensor in named}
    converted.names = {name: (here[id(t)], shape) for name, (t, shape) in stored.items() if id(t) in here}
    modes = {module.training for module in net.modules()}
    return converted.train(net.training) if len(modes) == 1 else converted


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def with_neurons(
    net: nn.Module, words: Vocabulary, takes_frames: bool, twice: set[str]
) -> tuple[Converted, dict[str, tuple[Tensor, torch.Size]]]:
    """A copy of a network with neurons for nodes, and layers over [T, N, *] for containers of layers over frames.

    Args:
        net: the network.
        words: the classes that it is written in.
        takes_frames: see `Converted`.
        twice: names of modules that are called more than once.

    Returns:
        The copy; and the tensor of each name in SpikingJelly, and its shape there.

    Raises:
        UserError: it has no node that can be replaced.
    """
    converted = Converted(copy.deepcopy(net), takes_frames)
    stored = {name: (t, t.shape) for name, t in converted.net.state_dict(keep_vars=True).items()}
    library, unconverted = words.library, converted.conversion.unconverted
    in_containers = {parts[-1] for _, parts in words.recurrent_parts(converted)}
    for name, node in list(converted.net.named_modules()):
        if not (words.is_node(node) or isinstance(node, library.stateful)) or isinstance(node, library.layer.Dropout):
            continue
        if type(node) is library.layer.LinearRecurrentContainer and any(m in in_containers for m in node.modules()):
            continue
        if why := words.why_kept(node, name in twice, node in in_containers):
            unconverted[name or "the node"] = why
            continue
        replacement: nn.Module
        if type(node) in words.own_nodes:
            replacement = words.own_nodes[type(node)](node)
            if any(path == name or path.startswith(f"{name}.") for path in twice):
                converted.conversion.alone.append(name)
                # It starts at rest in each of its places, as the original does.
                replacement = Replacement(replacement, name, None)
        else:
            replacement = neuron = neuron_of(node, library.nodes[type(node)])
            for theirs, parameter in copy_learned(node, neuron).items():
                stored[f"{name}.{theirs}".lstrip(".")] = parameter, getattr(node, theirs).shape
        for module in replacement.modules():
            if isinstance(module, Neuron):  # its constants are no weights: SpikingJelly stores none
                module._non_persistent_buffers_set.update(module._buffers)
        put(replacement.train(node.training), holders_of(converted, node))
    _replace_recurrent(converted, words)
    if not any(isinstance(module, Neuron) for module in converted.modules()):
        reasons = [f"{name}: {why}" for name, why in unconverted.items()] or unconverted_leaves(converted.net)
        raise UserError(
            f"{type(converted.net).__name__} has no node that can be replaced ({'; '.join(reasons) or 'none'}): "
            "map classes of your own by nodes={Class: function of a module, returns a pl.Neuron}."
        )
    _replace_containers(converted, words)
    return converted, stored


def _replace_recurrent(converted: Converted, words: Vocabulary) -> None:
    """Replace containers whose nodes are neurons of this package."""
    for container, (*linear, neuron) in words.recurrent_parts(converted):
        if isinstance(neuron, Neuron):
            recurrent = RecurrentContainer(container.rc, next(iter(linear), None), neuron)
            name = next(name for name, module in converted.net.named_modules() if module is container)
            converted.conversion.blocks.append(name)
            put(Replacement(recurrent, name, converted.calls), holders_of(converted, container))


def _replace_containers(converted: Converted, words: Vocabulary) -> None:
    """Containers of plain layers over T N frames become Sequentials over [T, N, *]."""
    for container in list(converted.net.modules()):
        if type(container) is words.library.layer.SeqToANNContainer and not has_hooks(container):
            parts = list(container.children())
            if all(words.plain_class(module, STATELESS) and not has_hooks(module) for module in parts):
                layers = nn.Sequential(*(_layer_over_time(words, part) for part in parts))
                put(layers, holders_of(converted, container))


def _replace_votes(converted: Converted, words: Vocabulary) -> None:
    """Replace the mean of each class's neurons, so that a task knows votes when it sees them."""
    module: Any
    for module in list(converted.net.modules()):
        if type(module) is words.library.layer.VotingLayer and module.step_mode == "m" and not has_hooks(module):
            put(Voting(module.voting_size), holders_of(converted, module))


def _count_calls(converted: Converted) -> None:
    """Let neurons outside of blocks refuse a second call, too."""
    blocks = [module for module in converted.net.modules() if isinstance(module, Replacement)]
    in_blocks = {module for block in blocks for module in block.modules()}
    for name, module in list(converted.net.named_modules()):
        if isinstance(module, Neuron) and module not in in_blocks:
            converted.conversion.alone.append(name or "the node")
            holders = holders_of(converted, module)
            put(Replacement(module, name or "the node", converted.calls), holders)


def _layer_over_time(words: Vocabulary, module: Any) -> Any:
    """A layer over [T, N, *] for a layer of SpikingJelly or PyTorch; ours unchanged."""
    if module is None or isinstance(module, (TimeBatchNorm2d, Pool2d)):
        return module
    plain = words.as_plain(module)
    if isinstance(plain, nn.BatchNorm2d):
        norm = TimeBatchNorm2d(plain.num_features, "all_steps")
        norm.bn = plain
        return norm.train(plain.training)
    if not isinstance(plain, POOLS):
        return over_time(plain)
    if isinstance(plain, nn.MaxPool2d) and not (plain.ceil_mode or plain.return_indices):
        sizes = plain.kernel_size, plain.stride, plain.padding, plain.dilation
        if [_pair(size) for size in sizes] == [(2, 2), (2, 2), (0, 0), (1, 1)]:
            return Pool2d(SpikeMaxPool2d("first"))  # PyTorch's rule for ties
    return Pool2d(plain)


def _form_block(converted: Converted, words: Vocabulary, names: Sequence[str], of_spikes: bool) -> None:
    """Put a block in the place of the first of some layers; the places of the others pass its output on."""
    parts = [converted.net.get_submodule(name) for name in names]
    holders = [holders_of(converted, module) for module in parts]  # before the block has them
    block = _block(converted, words, dict(zip(names, parts, strict=True)), of_spikes)
    block.followed = len(parts) > 1
    put(block, holders[0])
    for place, of_module in enumerate(holders[1:], start=1):
        put(PassedOn(block, place, last=of_module is holders[-1]), of_module)


def _block(converted: Converted, words: Vocabulary, parts: Mapping[str, nn.Module], of_spikes: bool) -> Replacement:
    """The block of a chain of layers, by their names; `of_spikes`: its input was, see `Replacement`."""
    by_kind: dict[str, Any] = {words.kind(module): module for module in parts.values()}
    neuron = by_kind.get("neuron")
    weighted = by_kind["conv" if "conv" in by_kind else "linear"]
    layer = words.as_plain(weighted.net if isinstance(weighted, OverTime) else weighted)
    if "conv" in by_kind:
        norm, pool = (_layer_over_time(words, by_kind.get(kind)) for kind in ("norm", "pool"))
        block: nn.Module = ConvBlock(layer, norm, neuron, pool)
    else:
        theirs = by_kind.get("dropout")
        dropout = TimeDropout(0.0 if theirs is None else theirs.p).train(theirs is None or theirs.training)
        block = FCBlock(dropout, layer, neuron)
    converted.conversion.blocks += [name for name, module in parts.items() if module is neuron]
    has_state = neuron is not None or "dropout" in by_kind
    return Replacement(block, next(iter(parts)), converted.calls if has_state else None, of_spikes)
