"""Second step of a conversion: which layers form blocks, from the calls of an example or from plain Sequentials."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plif_lightning.convert.blocks import is_innermost
from plif_lightning.convert.recognise import Vocabulary
from plif_lightning.convert.recording import Call, is_reshaped, record_calls
from plif_lightning.convert.surgery import flattened_layers, names_of_shared
from plif_lightning.signals.hooks import has_hooks
from plif_lightning.signals.signal import keeps_spikes

# Part of a block -> parts that may follow it; a dropout begins a block only before an FC layer.
_FOLLOWING: dict[str, tuple[str, ...]] = {
    "conv": ("norm", "neuron"),
    "norm": ("neuron",),
    "neuron": ("pool",),
    "dropout": ("linear",),
    "linear": ("neuron",),
}
_BEGINNING = ("conv", "linear", "dropout", "norm")


@dataclass
class Plan:
    """Chains of layers that form blocks; modules by name.

    Attributes:
        chains: layers of each block, in order.
        of_spikes: first layers of blocks with spikes as input.
        of_frames: first layers of blocks with [T N, *] as input.
        at_node: first layers of blocks that run at their node, because its input is another shape of the layers'
            output, or shows T.
        shared: layers that are called more than once, or registered under several names.
    """

    chains: list[list[str]] = field(default_factory=list)
    of_spikes: set[str] = field(default_factory=set)
    of_frames: set[str] = field(default_factory=set)
    at_node: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)

    @property
    def without_frames(self) -> "Plan":
        """The same without blocks over frames, or that run at their node."""
        left = [chain for chain in self.chains if chain[0] not in self.of_frames | self.at_node]
        return replace(self, chains=left, of_frames=set(), at_node=set())


def _joins(block_kinds: Sequence[str], kind: str, of_frames: bool = False) -> bool:
    """True if a block can hold a part behind others; pools belong to convolutions over [T, N, *]."""
    takes_pool = block_kinds[0] == "conv" and not of_frames
    return kind in _FOLLOWING.get(block_kinds[-1], ()) and (kind != "pool" or takes_pool)


def _is_block(block_kinds: Sequence[str], of_frames: bool = False, c_innermost: bool = False) -> bool:
    """True for parts with a weight, a convolution or FC layer alone included: kernels skip its silent inputs.

    BN and a node are one pass. Over frames [T N, *] only BN is faster without a node, and BN alone only where C is
    innermost in memory.
    """
    if [*block_kinds] == ["norm"]:
        return c_innermost
    if of_frames or "neuron" in block_kinds:
        return len(block_kinds) > 1
    return not {"conv", "linear"}.isdisjoint(block_kinds)


def plan_of_sequences(net: nn.Module, vocabulary: Vocabulary) -> Plan:
    """Blocks of layers of plain Sequentials, between which no forward of the user's runs.

    Args:
        net: a network whose nodes are replaced.
        vocabulary: the classes that it is written in.
    """

    def kind(module: nn.Module) -> str:
        return "" if vocabulary.takes_frames(module) else vocabulary.kind(module)

    plan = Plan(shared=names_of_shared(net))
    names = {module: name for name, module in net.named_modules()}
    consumed: set[nn.Module] = set()
    for sequence in list(names):
        is_plain = type(sequence) is nn.Sequential and not has_hooks(sequence)
        if not is_plain or sequence in consumed or names[sequence] in plan.shared:
            continue
        layers = [*flattened_layers(sequence, consumed, names, plan.shared)]
        is_spikes = False
        while layers:
            kinds, size = [kind(layers[0])], 1
            while size < len(layers) and _joins(kinds, following := kind(layers[size])):
                kinds.append(following)
                size += 1
            group, layers = layers[:size], layers[size:]
            chain = [names[member] for member in group]
            if _is_block(kinds) and not plan.shared & {*chain}:
                plan.chains.append(chain)
                plan.of_spikes |= {chain[0]} if is_spikes else set()
            for member in group:
                is_spikes = keeps_spikes(member, is_spikes)
    return plan


def plan_of_calls(net: nn.Module, parts: nn.Module, x: Tensor, vocabulary: Vocabulary) -> Plan:
    """Candidates: chains of layers of which each is the only layer to see the previous one's output, in both modes.

    What else of the forward reads such an output, `recording.block_that_is_read` tells.

    Args:
        net: a network whose nodes are replaced.
        parts: the module in it that names begin in.
        x: an example.
        vocabulary: the classes that it is written in.
    """
    training, evaluation = (_recorded(net.train(mode), parts, x, vocabulary) for mode in (True, False))
    chains = [chain for chain in training.chains if chain in evaluation.chains]
    changed = training.of_frames ^ evaluation.of_frames | training.at_node ^ evaluation.at_node
    return Plan(
        [chain for chain in chains if chain[0] not in changed],
        training.of_spikes & evaluation.of_spikes,
        training.of_frames,
        training.at_node,
        training.shared | evaluation.shared,
    )


def _recorded(net: nn.Module, parts: nn.Module, x: Tensor, vocabulary: Vocabulary) -> Plan:
    names = {module: name for name, module in parts.named_modules()}
    kind_of = {module: vocabulary.kind(module) for module in names}
    inner = {child for module, of in kind_of.items() if of for child in module.modules() if child is not module}
    leaves = [module for module in names if module not in inner and (kind_of[module] or not [*module.children()])]
    calls = record_calls(leaves, net, x, distinct_outputs=True)
    times = Counter(module for module, _, _ in calls)
    once = [call for call in calls if times[call[0]] == 1]
    chains = _chains(once, calls, kind_of, vocabulary)
    spiking = _with_spiking_inputs(calls)
    return Plan(
        [[names[module] for module in chain.layers] for chain in chains],
        {names[chain.layers[0]] for chain in chains if chain.layers[0] in spiking},
        {names[chain.layers[0]] for chain in chains if chain.of_frames},
        {names[chain.layers[0]] for chain in chains if chain.at_node},
        {names[module] for module, n in times.items() if n > 1},
    )


class _Chain(NamedTuple):
    """Layers of a block; see `Plan`."""

    layers: list[nn.Module]
    of_frames: bool
    at_node: bool


def _chains(
    calls: Sequence[Call], all_calls: Sequence[Call], kind_of: Mapping[nn.Module, str], vocabulary: Vocabulary
) -> list[_Chain]:
    """Layers that form blocks, among those that were called once.

    The input of each is the previous one's output, a node's in another shape perhaps; `record_calls` makes another
    tensor of it where it was written in place or passed on.
    """
    once, taken, chains = {module: (x, y) for module, x, y in calls}, set[nn.Module](), list[_Chain]()
    for module in once:
        x = once[module][0]
        if module in taken or kind_of[module] not in _BEGINNING or _is_of_lines(module, x, vocabulary):
            continue
        chain = _chain_from(module, once, all_calls, kind_of, vocabulary)
        kinds = [kind_of[member] for member in chain.layers]
        if _is_block(kinds, chain.of_frames or chain.at_node, _has_c_innermost(x, chain.of_frames)):
            taken.update(chain.layers)
            chains.append(chain)
    return chains


def _chain_from(
    first: nn.Module,
    once: Mapping[nn.Module, tuple[Any, Any]],
    all_calls: Sequence[Call],
    kind_of: Mapping[nn.Module, str],
    vocabulary: Vocabulary,
) -> _Chain:
    """Layers that could be the parts of a block that begins with a layer."""
    x = once[first][0]
    chain, at_node, of_frames = [first], False, vocabulary.takes_frames(first)
    while len(after := _readers(all_calls, chain[-1])) == 1 and after[0] in once:
        (following,) = after
        is_node, shape = kind_of[following] == "neuron", once[following][0].shape
        other_shape = shape != once[chain[-1]][1].shape
        if other_shape and not is_node:
            break
        if is_node and (of_frames or other_shape):
            of_frames, at_node = of_frames or x.dim() == 2, True
            if not _is_over(x.shape, shape, of_frames):
                break
        if not _joins([kind_of[member] for member in chain], kind_of[following], of_frames or at_node):
            break
        chain.append(following)
    return _Chain(chain, of_frames, at_node)


def _is_of_lines(layer: nn.Module, x: Tensor, vocabulary: Vocabulary) -> bool:
    """True for BN1d of lines [T N, C, L] in this order.

    With C innermost, as kernels want them, they would be copied twice, which takes longer than BN (AMD EPYC, Zen 4).
    """
    frames = vocabulary.takes_frames(layer)
    return isinstance(layer, nn.BatchNorm1d) and x.dim() > (2 if frames else 3) and not _has_c_innermost(x, frames)


def _has_c_innermost(x: Any, of_frames: bool) -> bool:
    """True for [T, N, C, *], or frames [T N, C, *], with C innermost in memory, as behind a transposed FC layer."""
    channel = 1 if of_frames else 2
    return isinstance(x, Tensor) and x.dim() > channel + 1 and is_innermost(x, channel)


def _is_over(shape: torch.Size, of_node: torch.Size, takes_frames: bool) -> bool:
    """True if a layer's input has the steps and samples of a node's input [T, N, *], as one dimension of frames."""
    return shape[0] == of_node[0] * of_node[1] if takes_frames else shape[:2] == of_node[:2]


def _readers(calls: Sequence[Call], layer: nn.Module) -> list[nn.Module]:
    """Modules with the output of a layer, which is called once, as input, in another shape perhaps."""
    (at,) = (i for i, call in enumerate(calls) if call[0] is layer)
    y = calls[at][2]
    return [module for module, x, _ in calls[at + 1 :] if isinstance(y, Tensor) and is_reshaped(x, y)]


def _with_spiking_inputs(calls: Sequence[Call]) -> set[nn.Module]:
    """Modules with the values of a layer's spikes as input, in any shape."""
    spikes, modules = list[Tensor](), set[nn.Module]()
    for module, x, y in calls:
        if isinstance(x, Tensor) and any(_same_values(x, seen) for seen in spikes):
            modules.add(module)
        if isinstance(y, Tensor) and keeps_spikes(module, module in modules):
            spikes.append(y)
    return modules


def _same_values(x: Tensor, spikes: Tensor) -> bool:
    """True if x holds these spikes, in another shape perhaps."""
    return x.numel() == spikes.numel() and torch.equal(x.reshape(-1), spikes.reshape(-1))
