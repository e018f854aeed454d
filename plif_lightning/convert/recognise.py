"""Classify the modules of a network of SpikingJelly: nodes, and layers that blocks can hold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from plif_lightning.convert.nodes import why_no_neuron
from plif_lightning.convert.surgery import origin_of
from plif_lightning.convert.versions import Library
from plif_lightning.errors import UserError
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.pooling import Pool2d
from plif_lightning.network.over_time import OverTime
from plif_lightning.neurons import Neuron
from plif_lightning.signals.hooks import has_hooks

MakeNeuron = Callable[[Any], nn.Module]
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
STATELESS = (nn.Conv2d, nn.Linear, nn.Flatten, nn.BatchNorm2d, nn.BatchNorm1d, *POOLS)
# Layers that blocks can hold, over frames [T N, *] too where a forward reshapes them to [T, N, *] before the node.
_OF_FRAMES = (nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d)


class Vocabulary(NamedTuple):
    """The classes that a network is written in.

    Attributes:
        library: the generation of SpikingJelly.
        own_nodes: user-defined nodes, and functions that make neurons of them.
    """

    library: Library
    own_nodes: Mapping[type[nn.Module], MakeNeuron]

    def is_node(self, module: nn.Module) -> bool:
        return type(module) in self.own_nodes or type(module) in self.library.nodes

    def torch_class(self, module: nn.Module, classes: Sequence[type[nn.Module]]) -> type[nn.Module] | None:
        """PyTorch's class of a layer of SpikingJelly or PyTorch, by its exact type."""
        layer = self.library.layer
        if type(module) is layer.ThresholdDependentBatchNorm2d and nn.BatchNorm2d in classes:
            return nn.BatchNorm2d
        # SpikingJelly has no AdaptiveMaxPool2d.
        return next((k for k in classes if type(module) in (k, getattr(layer, k.__name__, None))), None)

    def as_torch(self, module: nn.Module) -> Any:
        """A layer without a state as PyTorch's class, with the same tensors."""
        kind = self.torch_class(module, STATELESS)
        assert kind is not None
        if type(module) is kind:
            return module
        layer = kind.__new__(kind)
        vars(layer).update(vars(module))
        return layer

    def takes_frames(self, module: nn.Module) -> bool:
        """True for a layer over [T N, *]: PyTorch's own, or of single steps."""
        single = getattr(module, "step_mode", "s") == "s"
        return single and self.torch_class(module, _OF_FRAMES) is not None

    def kind(self, module: nn.Module) -> str:
        """The part of a block that a layer over [T, N, *], or [T N, *], can be; empty if it can be none."""
        inner: nn.Module = module.net if isinstance(module, OverTime) else module
        if isinstance(module, OverTime):
            layer = self.torch_class(inner, (nn.Conv2d, nn.Linear))
        else:
            # PyTorch's own pools take single images.
            is_multi_step = getattr(module, "step_mode", "") == "m"
            layer = self.torch_class(module, (*_OF_FRAMES, nn.Linear, *(POOLS if is_multi_step else ())))
        if has_hooks(module) or has_hooks(inner):
            return ""
        if isinstance(module, Neuron):
            return "neuron" if module.fires else ""
        own_kinds = {TimeBatchNorm: "norm", Pool2d: "pool", self.library.layer.Dropout: "dropout"}
        if type(module) in own_kinds:
            return own_kinds[type(module)]
        names = {nn.Conv2d: "conv", nn.Linear: "linear", nn.BatchNorm2d: "norm", nn.BatchNorm1d: "norm"}
        return "" if layer is None else names.get(layer, "pool")

    def why_kept(self, node: Any, is_called_twice: bool, in_container: bool) -> str:
        """Why a module with a state stays as it is; empty if it can be replaced, or the container that steps it can."""
        if not self.is_node(node):
            return f"{type(node).__name__}{origin_of(type(node))}"
        if has_hooks(node):
            return "it has hooks"
        if is_called_twice and isinstance(node, self.library.stateful):
            return "it is called in several places, and each call continues from its state"
        if type(node) in self.own_nodes:
            return ""
        if getattr(node, "step_mode", "m") == "s" and not in_container:
            return "single steps within a container"
        return why_no_neuron(node, self.library.nodes[type(node)])

    def recurrent_parts(self, net: nn.Module) -> Iterator[tuple[Any, list[Any]]]:
        """Containers of recurrent nodes over [T, N, F], each with its parts: perhaps a linear layer, and the node."""
        for container in list(net.modules()):
            is_container = type(container) is self.library.layer.LinearRecurrentContainer
            if is_container and getattr(container, "step_mode", "s") == "m":
                within: Any = container.sub_module
                parts: list[Any] = [*within] if type(within) is nn.Sequential else [within]
                linear = all(self.torch_class(part, (nn.Linear,)) for part in parts[:-1])
                ends = self.is_node(parts[-1]) or isinstance(parts[-1], Neuron)
                if len(parts) <= 2 and linear and ends and not any(map(has_hooks, container.modules())):
                    yield container, parts

    def require_multi_step(self, net: nn.Module) -> None:
        """Refuse nodes in single-step mode outside of containers that call them step by step.

        Raises:
            UserError: there is one.
        """
        names = ("MultiStepContainer", "StepModeContainer", "TLastMultiStepContainer")
        holders = (self.library.stateful, *(getattr(self.library.layer, name) for name in names))
        held_modules = {
            module
            for holder in net.modules()
            if isinstance(holder, holders)
            for module in holder.modules()
            if module is not holder
        }
        single_steps = self.library.single_steps
        for name, module in net.named_modules():
            if module in held_modules:
                continue
            if type(module) in single_steps and type(module) not in self.own_nodes:
                raise UserError(
                    f"{name or 'the node'} is a {type(module).__name__} of single steps: take "
                    f"{single_steps[type(module)]}, and run [T, N, *] at once instead of a loop over time-steps."
                )
            if self.is_node(module) and getattr(module, "step_mode", "m") == "s":
                raise UserError(
                    f"{name or 'the node'} is in single-step mode: call functional.set_step_mode(net, 'm'), and run "
                    "[T, N, *] at once instead of a loop over time-steps."
                )
