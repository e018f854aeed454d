"""A converted network of SpikingJelly: its forward over blocks and neurons of this package."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.convert.blocks import CallGuard
from plif_lightning.network.over_time import with_time


@dataclass
class Conversion:
    """The replacement of each node of a network, or the reason why it is kept.

    Attributes:
        blocks: nodes in blocks, by name.
        alone: nodes that became neurons of this package outside of blocks.
        kept: nodes that are still SpikingJelly's, and why.
        compared: outputs and gradients were compared with the original's on an example, and are equal.
        reason: why blocks were not kept; empty if they were, or if no layers form any.
    """

    blocks: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    compared: bool = False
    reason: str = ""

    def __str__(self) -> str:
        equal = "equal on the example" if self.compared else "not compared"
        lines = [f"{len(self.blocks)} nodes in blocks, {len(self.alone)} alone, {len(self.kept)} kept; {equal}"]
        lines += [f"no blocks: {self.reason}"] if self.reason else []
        return "\n".join([*lines, *(f"{name} is kept: {why}" for name, why in self.kept.items())])


class Converted(nn.Module):
    """A network of SpikingJelly after `from_spikingjelly`; `load_state_dict` takes its old weights too.

    Attributes:
        net: the converted network, with its original forward.
        conversion: outcome for each node; `print` it.
        names: name of each parameter and buffer here and its shape in SpikingJelly, by its name there.
        takes_sequences: it takes x [T, N, *]; otherwise its forward repeats samples [N, *].
        input_shape: shape of a sample, set by a task; time_steps, T, likewise.
    """

    time_aware = True
    input_shape: tuple[int, ...] | None = None
    time_steps: int | None = None

    def __init__(self, net: nn.Module, takes_sequences: bool = True) -> None:
        super().__init__()
        self.net, self.takes_sequences = net, takes_sequences
        self.conversion = Conversion()
        self.names: dict[str, tuple[str, torch.Size]] = {}
        self.calls = CallGuard()

    def __setattr__(self, name: str, value: Any) -> None:
        within = vars(self).get("_modules", {}).get("net")
        if hasattr(within, name) and not hasattr(self, name):
            raise AttributeError(f"{name} is of the network within: set net.net.{name}, which its forward uses.")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Any:
        """Output of the converted network for x [T, N, *]; in a task, images [N, C, H, W] are held for T steps."""
        for module in self.stateful():
            module.reset()
        with self.calls:
            return self.net(with_time(self, x) if self.takes_sequences else x)

    @property
    def keeping_states(self) -> list[str]:
        """Names of nodes that keep states of their own, so that the network cannot take one `step`."""
        return list(self.conversion.kept)

    def stateful(self) -> Iterator[Any]:
        """SpikingJelly's modules with a state that are still in the network; each call resets them."""
        return (module for module in self.modules() if hasattr(module, "_memories") and hasattr(module, "reset"))

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **named: Any) -> Any:
        """As of any module, from weights of this network or of SpikingJelly's.

        Weights within a checkpoint, such as `{"net": ...}`, and names behind `module.` are found.
        """
        nested = [value for value in state_dict.values() if isinstance(value, Mapping)]
        state_dict = nested[0] if len(nested) == 1 else state_dict
        if state_dict and all(name.startswith("module.") for name in state_dict):
            state_dict = {name.removeprefix("module."): value for name, value in state_dict.items()}
        own_state = self.state_dict(keep_vars=True)
        if not own_state.keys() >= state_dict.keys():
            here = {name: name_here for name, (name_here, _) in self.names.items()}
            named_here = {here.get(name, name): value for name, value in state_dict.items()}
            values = {
                id(own_state[name]): v.reshape(own_state[name].shape)
                for name, v in named_here.items()
                if name in own_state
            }
            foreign = {name: value for name, value in named_here.items() if name not in own_state}
            # A layer in many places has many names.
            state_dict = {name: values[id(t)] for name, t in own_state.items() if id(t) in values} | foreign
        return super().load_state_dict(state_dict, *arguments, **named)


def to_spikingjelly_state_dict(net: Converted) -> dict[str, Tensor]:
    """The weights of a converted network under the names, and in the shapes, of SpikingJelly's.

    Args:
        net: from `from_spikingjelly`.
    """
    here = net.state_dict()
    return {name: here[name_here].reshape(shape) for name, (name_here, shape) in net.names.items()}
