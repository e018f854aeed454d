"""Third step of a conversion: blocks in the places of layers, which a plan groups; and all three steps together."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plif_lightning.convert.blocks import PassedOn, Replacement, ShapeOf
from plif_lightning.convert.converted import Converted
from plif_lightning.convert.grouping import Plan, plan_of_sequences
from plif_lightning.convert.neurons import layer_over_time, neurons_in_place
from plif_lightning.convert.recognise import Vocabulary
from plif_lightning.convert.surgery import holders_of, names_of_shared, put
from plif_lightning.layers.blocks import NormBlock
from plif_lightning.layers.plan import ConvBlock, FCBlock
from plif_lightning.layers.pooling import TimeDropout
from plif_lightning.network.network import use_backend
from plif_lightning.network.over_time import OverTime
from plif_lightning.neurons import Neuron


def converted_by(
    net: nn.Module, vocabulary: Vocabulary, takes_sequences: bool = True, plan: Plan | None = None
) -> Converted:
    """A converted copy of a network: neurons in the places of nodes, blocks by a plan, and the names of its weights.

    Args:
        net: the network; it is left alone.
        vocabulary: the classes that it is written in.
        takes_sequences: see `Converted`.
        plan: its blocks; without a plan those of plain Sequentials.

    Raises:
        UserError: it has no node that can be replaced.
    """
    reference = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), torch.empty(0))
    with default_dtype(reference.dtype):
        shared = names_of_shared(net) if plan is None else plan.shared
        converted, stored = neurons_in_place(net, vocabulary, takes_sequences, shared)
        plan = plan_of_sequences(converted.net, vocabulary) if plan is None else plan
        for chain in plan.chains:
            _form_block(converted, vocabulary, chain, plan)
    _guard_lone_neurons(converted)
    use_backend(converted.to(reference.device))
    named = reversed(converted.state_dict(keep_vars=True).items())  # the first of its names
    here = {id(tensor): name for name, tensor in named}
    converted.names = {name: (here[id(t)], shape) for name, (t, shape) in stored.items() if id(t) in here}
    if len({module.training for module in net.modules()}) == 1:
        for module in converted.modules():
            module.training = net.training  # not by `train`, with which a network may freeze its BN
    return converted


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors of this type by default while the context lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _guard_lone_neurons(converted: Converted) -> None:
    """Let neurons outside of blocks refuse a second call, too."""
    blocks = [module for module in converted.net.modules() if isinstance(module, Replacement)]
    in_blocks = {module for block in blocks for module in block.modules()}
    for name, module in list(converted.net.named_modules()):
        if isinstance(module, Neuron) and module not in in_blocks:
            converted.conversion.alone.append(name or "the node")
            holders = holders_of(converted, module)
            put(Replacement(module, name or "the node", converted.calls), holders)


def _form_block(converted: Converted, vocabulary: Vocabulary, names: Sequence[str], plan: Plan) -> None:
    """Put a block in the place of the first of some layers; the places of the others pass its output on."""
    parts = [converted.net.get_submodule(name) for name in names]
    holders = [holders_of(converted, module) for module in parts]  # before the block has them
    block = _replacement(converted, vocabulary, dict(zip(names, parts, strict=True)), names[0] in plan.of_spikes)
    block.followed = len(parts) > 1
    block.of_frames, block.at_node = names[0] in plan.of_frames, names[0] in plan.at_node
    shapes = [_shape_of(vocabulary, part) if block.at_node else None for part in parts]
    block.shape = shapes[0]
    put(block, holders[0])
    for place, places in enumerate(holders[1:], start=1):
        put(PassedOn(block, place, places is holders[-1], shapes[place], vocabulary.kind(parts[place])), places)


def _shape_of(vocabulary: Vocabulary, part: Any) -> ShapeOf | None:
    """The effect of a layer on shapes; None for none."""
    if vocabulary.kind(part) not in ("conv", "linear"):
        return None
    return ShapeOf(_as_torch(vocabulary, part))


def _as_torch(vocabulary: Vocabulary, part: Any) -> Any:
    """PyTorch's layer of a layer over [T, N, *]."""
    return vocabulary.as_torch(part.net if isinstance(part, OverTime) else part)


def _replacement(
    converted: Converted, vocabulary: Vocabulary, parts: Mapping[str, nn.Module], of_spikes: bool
) -> Replacement:
    """The block of a chain of layers, by their names; `of_spikes`: its input was, see `Replacement`."""
    by_kind: dict[str, Any] = {vocabulary.kind(module): module for module in parts.values()}
    neuron = by_kind.get("neuron")
    first: Any = next(iter(parts.values()))
    weighted = by_kind.get("conv", by_kind.get("linear", first))
    layer = _as_torch(vocabulary, weighted)
    if weighted is by_kind.get("norm"):
        block: nn.Module = NormBlock(layer_over_time(vocabulary, first), neuron)
    elif "conv" in by_kind:
        norm, pool = (layer_over_time(vocabulary, by_kind.get(kind)) for kind in ("norm", "pool"))
        block = ConvBlock(layer, norm, neuron, pool)
    else:
        theirs = by_kind.get("dropout")
        dropout = TimeDropout(0.0 if theirs is None else theirs.p).train(theirs is None or theirs.training)
        block = FCBlock(dropout, layer, neuron)
    converted.conversion.blocks += [name for name, module in parts.items() if module is neuron]
    has_state = neuron is not None or "dropout" in by_kind
    return Replacement(block, next(iter(parts)), converted.calls if has_state else None, of_spikes)
