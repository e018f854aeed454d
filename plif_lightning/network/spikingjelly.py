"""Networks of SpikingJelly with the neurons and blocks of this package, under their original forward."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from plif_lightning.errors import UserError
from plif_lightning.network.blocks import ConvBlock, FCBlock
from plif_lightning.network.converted import BlockSequence, Converted, PassedOn, Replacement, block_that_is_read
from plif_lightning.network.equivalence import Call, EquivalenceTest, record_calls, takes_images
from plif_lightning.network.foreign_surrogates import counts_like_ilif, surrogate_of
from plif_lightning.network.hooks import has_hooks
from plif_lightning.network.libraries import library_of
from plif_lightning.network.network import use_backend
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.output import Voting
from plif_lightning.network.over_time import OverTime, over_time
from plif_lightning.network.places import (
    flattened_layers,
    holders_of,
    names_of_shared,
    origin_of,
    put,
    unconverted_leaves,
)
from plif_lightning.network.pooling import Pool2d, SpikeMaxPool2d, TimeDropout
from plif_lightning.network.recurrent import RecurrentContainer
from plif_lightning.network.signals import output_levels
from plif_lightning.neurons import CLIF, EIF, IF, KLIF, LIF, PLIF, QIF, Neuron
from plif_lightning.neurons.published import ILIF, UndecayedKLIF, UndecayedLIF, UndecayedPLIF

_log = logging.getLogger(__name__)
MakeNeuron = Callable[[Any], nn.Module]
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_STATELESS = (nn.Conv2d, nn.Linear, nn.Flatten, nn.BatchNorm2d, *_POOLS)
# Node -> our neuron, without and with `decay_input=False`, and its parameters by SpikingJelly's names.
_NODES: dict[str, tuple[type[Neuron], type[Neuron] | None, dict[str, str]]] = {
    "IFNode": (IF, None, {}),
    "LIFNode": (LIF, UndecayedLIF, {}),
    "ParametricLIFNode": (PLIF, UndecayedPLIF, {}),
    "QIFNode": (QIF, None, {"a0": "a_0", "v_rest": "v_rest", "v_c": "v_c"}),
    "EIFNode": (EIF, None, {"delta_T": "delta_t", "v_rest": "v_rest", "theta_rh": "theta_rh"}),
    "KLIFNode": (KLIF, UndecayedKLIF, {}),
    "ComplementaryLIFNode": (CLIF, None, {}),
    "ILIFNode": (ILIF, ILIF, {}),
}
# Learned parameters of a node -> the tensor of our neuron.
_LEARNED = {"w": "a", "k": "slope_raw"}
# Part of a block -> parts that may follow it; a dropout begins a block only before an FC layer.
_FOLLOWING: dict[str, tuple[str, ...]] = {
    "conv": ("norm", "neuron"),
    "norm": ("neuron",),
    "neuron": ("pool",),
    "dropout": ("linear",),
    "linear": ("neuron",),
}


def from_spikingjelly(
    net: nn.Module, x: Tensor | None = None, nodes: Mapping[type[nn.Module], MakeNeuron] | None = None
) -> Converted:
    """The same network with neurons of this package: same parameters, same outputs, without `reset_net`.

    With an example, layers that a kernel can fuse become blocks: convolution - BN - node - pool, dropout - FC - node.
    The forward of the network runs as it is. Both networks are then compared on a copy in float64, with nodes made
    to fire: two training steps (outputs, all gradients, BN's statistics) and an evaluation. If they differ, or a node
    stays silent, only nodes are replaced, with a warning that names the difference.
    Without an example, layers of a plain `nn.Sequential` become blocks, and nothing is compared.

    Args:
        net: in multi-step mode (`functional.set_step_mode(net, "m")`), or of the older `clock_driven`, with its
            `MultiStep...` nodes. It is only reset; its parameters are copied.
        x: an example [T, N, *], of which at most 4 samples are used; or images, if its forward repeats them.
        nodes: for user-defined neurons: class -> function of such a module that returns a `Neuron`, or a module with
            one, over the same input.

    Raises:
        UserError: a node is in single-step mode; no node can be replaced; or outputs differ even with nodes alone.

    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = nn.Sequential(layer.Linear(3, 2, step_mode="m"), neuron.LIFNode(tau=4.0, step_mode="m"))
    >>> converted = from_spikingjelly(net, torch.rand(8, 2, 3))
    >>> print(converted.conversion)
    1 nodes in blocks, 0 alone, 0 kept; equal on the example
    >>> converted(torch.zeros(8, 1, 3)).shape
    torch.Size([8, 1, 2])
    """
    builder = _Builder(net, nodes or {})
    builder.reset(net)
    builder.require_multi_step(net)
    if x is None:
        return builder.build(net)
    takes_frames = x.dim() != 4 or not takes_images(net, x, builder.is_node)
    x = x[:, :4] if takes_frames else x[:4]
    with EquivalenceTest(net, x, builder.is_node, builder.library) as trial:
        try:
            plan = builder.record(trial.net, trial.x)
        except Exception as error:  # of a forward that asks a node for attributes that our neurons lack
            raise UserError(f"{type(net).__name__} cannot be converted: {type(error).__name__}: {error}.") from error
        source = copy.deepcopy(trial.net)  # a forward may keep tensors with gradients, which cannot be copied
        while read := block_that_is_read(builder.build(source, takes_frames, plan), trial.x):
            plan.chains = [chain for chain in plan.chains if chain[0] != read]
        difference = trial.difference(builder.build(source, takes_frames, plan))
        unproved = _decided_by_first(difference or ", ".join(trial.silent))
        if unproved:
            plan = Plan(twice=plan.twice)
            difference = _decided_by_first(trial.difference(builder.build(source, takes_frames, plan)))
            if difference and trial.repeats:
                raise UserError(f"{type(net).__name__} cannot be converted: {difference}.")
    converted = builder.build(net, takes_frames, plan)
    converted.conversion.compared = not difference
    if unproved:
        converted.conversion.reason = unproved
        _log.warning("%s: its nodes are replaced, but no blocks are formed: %s.", type(net).__name__, unproved)
    return converted


def _decided_by_first(difference: str) -> str:
    """The result of the first process, so that all build the same network."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return difference
    differences = [difference]
    dist.broadcast_object_list(differences)
    return differences[0]


@dataclass
class Plan:
    """Chains of layers that form blocks, recorded in a call of a network; modules by name.

    Attributes:
        chains: layers of each block, in order.
        of_spikes: first layers of blocks with spikes as input.
        twice: layers that are called more than once.
    """

    chains: list[list[str]] = field(default_factory=list)
    of_spikes: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)


def _joins(block_kinds: Sequence[str], kind: str) -> bool:
    """True if a block can hold a part behind others; pools belong to convolutions."""
    return kind in _FOLLOWING.get(block_kinds[-1], ()) and (kind != "pool" or block_kinds[0] == "conv")


def _is_block(block_kinds: Sequence[str]) -> bool:
    return block_kinds[0] in ("conv", "linear") or len(block_kinds) > 1


class _Builder:
    """Builds converted networks; `record` finds the layers of blocks.

    Args:
        net: as `from_spikingjelly`.
        nodes: as `from_spikingjelly`.
    """

    def __init__(self, net: nn.Module, nodes: Mapping[type[nn.Module], MakeNeuron]) -> None:
        self.nodes, self.library = nodes, library_of(net, list(_NODES))
        self.layer, self.known_nodes, self.single_steps, self.stateful, self.reset = self.library

    def is_node(self, module: nn.Module) -> bool:
        return type(module) in self.nodes or type(module) in self.known_nodes

    def require_multi_step(self, net: nn.Module) -> None:
        """Refuse nodes in single-step mode outside of containers that call them step by step."""
        names = ("MultiStepContainer", "StepModeContainer", "TLastMultiStepContainer")
        holders = (self.stateful, *(getattr(self.layer, name) for name in names))
        held_modules = {
            module
            for holder in net.modules()
            if isinstance(holder, holders)
            for module in holder.modules()
            if module is not holder
        }
        for name, module in net.named_modules():
            if module not in held_modules and type(module) in self.single_steps and type(module) not in self.nodes:
                raise UserError(
                    f"{name or 'the node'} is a {type(module).__name__} of single steps: take "
                    f"{self.single_steps[type(module)]}, and run [T, N, *] at once instead of a loop over time-steps."
                )
            if module not in held_modules and self.is_node(module) and getattr(module, "step_mode", "m") == "s":
                raise UserError(
                    f"{name or 'the node'} is in single-step mode: call functional.set_step_mode(net, 'm'), and run "
                    "[T, N, *] at once instead of a loop over time-steps."
                )

    # --- a network from a plan

    def build(self, net: nn.Module, takes_frames: bool = True, plan: Plan | None = None) -> Converted:
        """A converted copy of a network; without a plan, with blocks of plain Sequentials.

        Raises:
            UserError: it has no node that can be replaced.
        """
        converted = Converted(copy.deepcopy(net), takes_frames)
        example = next((t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()), torch.empty(0))
        before = torch.get_default_dtype()
        torch.set_default_dtype(example.dtype)
        try:
            stored = self._replace_nodes(converted, names_of_shared(converted.net) if plan is None else plan.twice)
            self._replace_containers(converted)
            self._replace_votes(converted)
            if plan is None:
                self._form_in_sequences(converted)
            else:
                for chain in plan.chains:
                    self._form_chain(converted, chain, chain[0] in plan.of_spikes)
        finally:
            torch.set_default_dtype(before)
        self._count_calls(converted)
        use_backend(converted.to(example.device))
        named = reversed(converted.state_dict(keep_vars=True).items())  # the first of its names
        here = {id(tensor): name for name, tensor in named}
        converted.names = {name: (here[id(t)], shape) for name, (t, shape) in stored.items() if id(t) in here}
        modes = {module.training for module in net.modules()}
        return converted.train(net.training) if len(modes) == 1 else converted

    def _replace_nodes(self, converted: Converted, twice: set[str]) -> dict[str, tuple[Tensor, torch.Size]]:
        """Replace nodes by neurons; returns the tensor of each name in SpikingJelly, and its shape there."""
        stored = {name: (t, t.shape) for name, t in converted.net.state_dict(keep_vars=True).items()}
        unconverted = converted.conversion.unconverted
        recurrent = {parts[-1] for _, parts in self._recurrent_parts(converted)}
        for name, node in list(converted.net.named_modules()):
            if not (self.is_node(node) or isinstance(node, self.stateful)) or isinstance(node, self.layer.Dropout):
                continue
            if type(node) is self.layer.LinearRecurrentContainer and any(part in recurrent for part in node.modules()):
                continue
            if why := self._reason_to_keep(node, name in twice, single_step=node in recurrent):
                unconverted[name or "the node"] = why
                continue
            if type(node) in self.nodes:
                replacement = self.nodes[type(node)](node)
                if any(path == name or path.startswith(f"{name}.") for path in twice):
                    converted.conversion.alone.append(name)
                    # It starts at rest in each of its places, as the original does.
                    replacement = Replacement(replacement, name, None)
            else:
                replacement = self._neuron(node)
                for theirs, parameter in _copy_learned(node, replacement).items():
                    stored[f"{name}.{theirs}".lstrip(".")] = parameter, getattr(node, theirs).shape
            for module in replacement.modules():
                if isinstance(module, Neuron):  # its constants are no weights: SpikingJelly stores none
                    module._non_persistent_buffers_set.update(module._buffers)
            put(replacement.train(node.training), holders_of(converted, node))
        self._replace_recurrent(converted)
        if not any(isinstance(module, Neuron) for module in converted.modules()):
            reasons = [f"{name}: {why}" for name, why in unconverted.items()] or unconverted_leaves(converted.net)
            raise UserError(
                f"{type(converted.net).__name__} has no node that can be replaced ({'; '.join(reasons) or 'none'}): "
                "map classes of your own by nodes={Class: function of a module, returns a pl.Neuron}."
            )
        return stored

    def _recurrent_parts(self, converted: Converted) -> Iterator[tuple[Any, list[Any]]]:
        """Containers of recurrent nodes over [T, N, F], each with its parts: perhaps a linear layer, and the node."""
        for container in list(converted.net.modules()):
            if type(container) is self.layer.LinearRecurrentContainer and getattr(container, "step_mode", "s") == "m":
                within: Any = container.sub_module
                parts: list[Any] = [*within] if type(within) is nn.Sequential else [within]
                linear = all(self._plain_class(part, (nn.Linear,)) for part in parts[:-1])
                ends = self.is_node(parts[-1]) or isinstance(parts[-1], Neuron)
                if len(parts) <= 2 and linear and ends and not any(map(has_hooks, container.modules())):
                    yield container, parts

    def _replace_recurrent(self, converted: Converted) -> None:
        """Replace containers whose nodes are neurons of this package."""
        for container, (*linear, neuron) in self._recurrent_parts(converted):
            if isinstance(neuron, Neuron):
                recurrent = RecurrentContainer(container.rc, next(iter(linear), None), neuron)
                name = next(name for name, module in converted.net.named_modules() if module is container)
                converted.conversion.blocks.append(name)
                put(Replacement(recurrent, name, converted.calls), holders_of(converted, container))

    def _reason_to_keep(self, node: Any, twice: bool, single_step: bool = False) -> str:
        """Why a node stays as it is; empty if it can be replaced, or, in a `single_step`, its container can."""
        if not self.is_node(node):
            return f"{type(node).__name__}{origin_of(type(node))}"
        if has_hooks(node):
            return "it has hooks"
        if twice and isinstance(node, self.stateful):
            return "it is called in several places, and goes on from its state"
        if type(node) in self.nodes:
            return ""
        if getattr(node, "step_mode", "m") == "s" and not single_step:
            return "single steps within a container"
        surrogate = node.surrogate_function
        known = counts_like_ilif if _NODES[self.known_nodes[type(node)]][0] is ILIF else surrogate_of
        if not known(surrogate) or not surrogate.spiking:
            return f"surrogate {type(surrogate).__name__}"
        return "scale_reset=True" if getattr(node, "scale_reset", False) else ""

    def _neuron(self, node: Any) -> Neuron:
        """The neuron with a node's equations and constants."""
        kind, undecayed, arguments = _NODES[self.known_nodes[type(node)]]
        name, width = surrogate_of(node.surrogate_function) or ("atan", 1.0)
        firing = {
            "v_threshold": node.v_threshold,
            "v_reset": node.v_reset or 0.0,
            "reset": "soft" if node.v_reset is None else "hard",
            "detach_reset": node.detach_reset,
            "surrogate": name,
            "surrogate_width": float(width),
        }
        settings = {name_here: getattr(node, theirs) for theirs, name_here in arguments.items()}
        if kind is ILIF:
            settings["max_count"] = node.surrogate_function.max_spike_count
        if issubclass(kind, LIF):
            settings |= {"init_tau": getattr(node, "tau", 2.0)}
        elif hasattr(node, "tau"):
            settings |= {"k": 1 / node.tau}
        if not getattr(node, "decay_input", True):
            assert undecayed is not None
            kind = undecayed
        return kind(**settings, **firing)

    def _count_calls(self, converted: Converted) -> None:
        """Let neurons outside of blocks refuse a second call, too."""
        blocks = [module for module in converted.net.modules() if isinstance(module, Replacement)]
        in_blocks = {module for block in blocks for module in block.modules()}
        for name, module in list(converted.net.named_modules()):
            if isinstance(module, Neuron) and module not in in_blocks:
                converted.conversion.alone.append(name or "the node")
                holders = holders_of(converted, module)
                put(Replacement(module, name or "the node", converted.calls), holders)

    def _replace_votes(self, converted: Converted) -> None:
        """Replace the mean of each class's neurons, so that a task knows votes when it sees them."""
        module: Any
        for module in list(converted.net.modules()):
            if type(module) is self.layer.VotingLayer and module.step_mode == "m" and not has_hooks(module):
                put(Voting(module.voting_size), holders_of(converted, module))

    def _replace_containers(self, converted: Converted) -> None:
        """Containers of plain layers over T N frames become Sequentials over [T, N, *]."""
        for container in list(converted.net.modules()):
            if type(container) is self.layer.SeqToANNContainer and not has_hooks(container):
                parts = list(container.children())
                if all(self._plain_class(module, _STATELESS) and not has_hooks(module) for module in parts):
                    put(nn.Sequential(*map(self._over_time, parts)), holders_of(converted, container))

    def _over_time(self, module: Any) -> Any:
        """A layer over [T, N, *] for a layer of SpikingJelly or PyTorch; ours unchanged."""
        if module is None or isinstance(module, (TimeBatchNorm2d, Pool2d)):
            return module
        module.__class__ = self._plain_class(module, _STATELESS)
        if isinstance(module, nn.BatchNorm2d):
            norm = TimeBatchNorm2d(module.num_features, "all_steps")
            norm.bn = module
            return norm.train(module.training)
        if not isinstance(module, _POOLS):
            return over_time(module)
        if isinstance(module, nn.MaxPool2d) and not (module.ceil_mode or module.return_indices):
            sizes = module.kernel_size, module.stride, module.padding, module.dilation
            if [_pair(size) for size in sizes] == [(2, 2), (2, 2), (0, 0), (1, 1)]:
                return Pool2d(SpikeMaxPool2d("first"))  # PyTorch's rule for ties
        return Pool2d(module)

    def _plain_class(self, module: nn.Module, classes: Sequence[type[nn.Module]]) -> type[nn.Module] | None:
        """PyTorch's class of a layer of SpikingJelly or PyTorch, by its exact type."""
        if type(module) is self.layer.ThresholdDependentBatchNorm2d and nn.BatchNorm2d in classes:
            return nn.BatchNorm2d
        # SpikingJelly has no AdaptiveMaxPool2d.
        return next((k for k in classes if type(module) in (k, getattr(self.layer, k.__name__, None))), None)

    # --- blocks

    def kind(self, module: nn.Module) -> str:
        """The part of a block that a layer over [T, N, *] can be; empty if it can be none."""
        if isinstance(module, OverTime):
            inner: nn.Module = module.net
            plain = self._plain_class(inner, (nn.Conv2d, nn.Linear))
        else:
            inner = module
            theirs = getattr(module, "step_mode", "") == "m"  # PyTorch's layers take frames, but for nn.Linear
            classes = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, *_POOLS) if theirs else (nn.Linear,)
            plain = self._plain_class(module, classes)
        if has_hooks(module) or has_hooks(inner):
            return ""
        if isinstance(module, Neuron):
            return "neuron" if module.fires else ""
        own_kinds = {TimeBatchNorm2d: "norm", Pool2d: "pool", self.layer.Dropout: "dropout"}
        if type(module) in own_kinds:
            return own_kinds[type(module)]
        names = {nn.Conv2d: "conv", nn.Linear: "linear", nn.BatchNorm2d: "norm"}
        return "" if plain is None else names.get(plain, "pool")

    def _form_chain(self, converted: Converted, names: Sequence[str], of_spikes: bool) -> None:
        """Put a block in the place of the first of some layers, and nothing in the places of the others."""
        parts = [converted.net.get_submodule(name) for name in names]
        holders = [holders_of(converted, module) for module in parts]  # before the block has them
        block = self._block(converted, dict(zip(names, parts, strict=True)), of_spikes)
        block.followed = len(parts) > 1
        put(block, holders[0])
        for place, of_module in enumerate(holders[1:], start=1):
            put(PassedOn(block, place, last=of_module is holders[-1]), of_module)

    def _block(self, converted: Converted, parts: Mapping[str, nn.Module], of_spikes: bool = False) -> Replacement:
        """The block of a chain of layers, by their names; `of_spikes`: its input was, see `Replacement`."""
        first = next(iter(parts))
        by_kind: dict[str, Any] = {self.kind(module): module for module in parts.values()}
        neuron = by_kind.get("neuron")
        if "conv" in by_kind:
            norm, pool = self._over_time(by_kind.get("norm")), self._over_time(by_kind.get("pool"))
            conv = self._plain(by_kind["conv"])
            block: nn.Module = ConvBlock(conv, norm, neuron, pool)
        else:
            theirs = by_kind.get("dropout")
            dropout = TimeDropout(0.0 if theirs is None else theirs.p).train(theirs is None or theirs.training)
            block = FCBlock(dropout, self._plain(by_kind["linear"]), neuron)
        converted.conversion.blocks += [name for name, module in parts.items() if module is neuron]
        has_state = neuron is not None or "dropout" in by_kind
        return Replacement(block, first, converted.calls if has_state else None, of_spikes)

    def _plain(self, module: Any) -> Any:
        """The layer of PyTorch that a convolution or FC layer is."""
        inner = module.net if isinstance(module, OverTime) else module
        inner.__class__ = self._plain_class(inner, (nn.Conv2d, nn.Linear))
        return inner

    def _form_in_sequences(self, converted: Converted) -> None:
        """Form blocks of layers of plain Sequentials, between which no forward of the user's runs."""
        shared = names_of_shared(converted.net)
        names = {module: name for name, module in converted.net.named_modules()}
        consumed: set[nn.Module] = set()
        for sequence in list(names):
            if (
                type(sequence) is not nn.Sequential
                or sequence in consumed
                or has_hooks(sequence)
                or names[sequence] in shared
            ):
                continue
            holders, layers = holders_of(converted, sequence), [*flattened_layers(sequence, consumed, names, shared)]
            layers_of_sequence: list[nn.Module] = []
            while layers:
                group_kinds, size = [self.kind(layers[0])], 1
                while size < len(layers) and _joins(group_kinds, kind := self.kind(layers[size])):
                    group_kinds.append(kind)
                    size += 1
                group, layers = layers[:size], layers[size:]
                is_shared = any(names[member] in shared for member in group)
                forms = not is_shared and _is_block(group_kinds)
                layers_of_sequence += (
                    [self._block(converted, {names[member]: member for member in group})] if forms else group
                )
            put(BlockSequence(layers_of_sequence), holders)

    # --- recording

    def record(self, net: nn.Module, x: Tensor) -> Plan:
        """The layers that form blocks in the forward of a network, in training and in evaluation alike."""
        converted = Converted(copy.deepcopy(net), takes_frames=False)
        self._replace_nodes(converted, set())
        self._replace_containers(converted)
        training, evaluation = (self._record_calls(converted.train(mode), x) for mode in (True, False))
        chains = [chain for chain in training.chains if chain in evaluation.chains]
        return Plan(chains, training.of_spikes & evaluation.of_spikes, training.twice | evaluation.twice)

    def _record_calls(self, converted: Converted, x: Tensor) -> Plan:
        names = {module: name for name, module in converted.net.named_modules()}
        kind_of = {module: self.kind(module) for module in names}
        inner = {child for module, kind in kind_of.items() if kind for child in module.modules() if child is not module}
        leaves = [module for module in names if module not in inner and (kind_of[module] or not [*module.children()])]
        calls = record_calls(leaves, converted, x, separately=True)
        times = Counter(module for module, _, _ in calls)
        chains = list(self._chains([call for call in calls if times[call[0]] == 1], calls, kind_of))
        spiking = self._with_spiking_inputs(calls)
        return Plan(
            [[names[module] for module in chain] for chain in chains],
            {names[chain[0]] for chain in chains if chain[0] in spiking},
            {names[module] for module, n in times.items() if n > 1},
        )

    def _chains(
        self, calls: Sequence[Call], all_calls: Sequence[Call], kind_of: Mapping[nn.Module, str]
    ) -> Iterator[list[nn.Module]]:
        """Layers that form blocks, among those that were called once: each sees only the previous output."""
        once, taken = {module: y for module, _, y in calls}, set[nn.Module]()
        for module in once:
            if module in taken or kind_of[module] not in ("conv", "linear", "dropout"):
                continue
            chain = [module]
            while (
                len(after := [m for m, inputs, _ in all_calls if inputs is once[chain[-1]]]) == 1 and after[0] in once
            ):
                if not _joins([kind_of[member] for member in chain], kind_of[after[0]]):
                    break
                chain += after
            if _is_block([kind_of[member] for member in chain]):
                taken.update(chain)
                yield chain

    def _with_spiking_inputs(self, calls: Sequence[Call]) -> set[nn.Module]:
        """Modules with the values of a layer's spikes as input, in any shape."""
        spikes, modules = list[Tensor](), set[nn.Module]()
        for module, x, y in calls:
            if isinstance(x, Tensor) and any(_same_values(x, seen) for seen in spikes):
                modules.add(module)
            if isinstance(y, Tensor) and output_levels(module, 1 if module in modules else None):
                spikes.append(y)
        return modules


def _same_values(x: Tensor, spikes: Tensor) -> bool:
    """True if x holds these spikes, in another shape perhaps."""
    return x.numel() == spikes.numel() and torch.equal(x.reshape(-1), spikes.reshape(-1))


def _copy_learned(node: nn.Module, neuron: Neuron) -> dict[str, nn.Parameter]:
    """Give a neuron its node's parameters, as [1]; returns them by their names in SpikingJelly."""
    copied = {}
    for theirs, parameter in node.named_parameters(recurse=False):
        copied[theirs] = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
        setattr(neuron, _LEARNED[theirs], copied[theirs])
    return copied
