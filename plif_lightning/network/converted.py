"""A converted network of SpikingJelly: its forward over blocks and neurons of this package."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plif_lightning.errors import UserError
from plif_lightning.network.over_time import with_time
from plif_lightning.network.signals import Signal, SignalModule, output_levels, run_layer, run_layers
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import Carried


class Calls:
    """A call of a network, in which a layer with states may run once: it starts at rest."""

    def __init__(self) -> None:
        self.running, self.seen = False, set[int]()

    def __enter__(self) -> None:
        self.running = True
        self.seen.clear()

    def __exit__(self, *error: object) -> None:
        self.running = False

    def require_first(self, layer: nn.Module, name: str) -> None:
        if not self.running or torch.compiler.is_compiling():
            return
        if id(layer) in self.seen:
            raise UserError(
                f"{name} is called twice in a forward, and would start at rest each time: pass an example, "
                "from_spikingjelly(net, x), or give each place its own node. Layers take all steps [T, N, *] at once."
            )
        self.seen.add(id(layer))


class BlockReadError(UserError):
    """Someone reads an output between the layers of a block, such as the convolution's, which is not computed."""

    def __init__(self, block: str) -> None:
        self.block = block
        super().__init__(
            f"an output between the layers of the block that begins with {block} is read, and they are computed as "
            "one. They stay apart if the forward reads it in the example of from_spikingjelly: to keep it for later, "
            "keep its detach() or clone()."
        )


class BlockOutput:
    """The output of a block, on its way through the places of the block's layers: only the next of them can read it.

    In the original these places hold other values, such as the convolution's output: reading them here is an error.

    Args:
        block: the block.
        values: its output.
        place: number of the layer that reads it next.
    """

    def __init__(self, block: "Replacement", values: Tensor, place: int) -> None:
        self.contents = block, values, place

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        block, *_ = self.contents
        raise BlockReadError(block.name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        leaves = tree_leaves((arguments, named))
        return next(leaf for leaf in leaves if isinstance(leaf, cls))._refuse()

    __bool__ = __len__ = __iter__ = __getitem__ = __setitem__ = __float__ = __array__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __neg__ = __pow__ = __matmul__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__


class Replacement(SignalModule):
    """A neuron or a block in the place of the first of its layers.

    Args:
        layer: the neuron or block.
        name: of the first of the layers.
        calls: in which it may be called once; None if it may be called often.
        of_spikes: in the forward that was recorded its input was spikes.
    """

    step_mode = "m"  # which a forward may ask for

    def __init__(self, layer: nn.Module, name: str, calls: Calls | None, of_spikes: bool = False) -> None:
        super().__init__()
        self.layer, self.name, self.calls, self.followed = layer, name, calls, False
        self.of_spikes = of_spikes

    def forward(self, x: Tensor, time_steps: int | None = None, levels: int | None = None) -> Any:
        """The output [T, N, *]; a `BlockOutput` where other layers' places follow."""
        y = super().forward(x, time_steps, levels)
        return BlockOutput(self, y, 1) if self.followed else y

    def run(self, x: Signal, states: Carried | None) -> Signal:
        if self.calls is not None:
            self.calls.require_first(self, self.name)
        # Neurons alone keep their input's layout; SpikingJelly's stack steps, which is fast for the following layers.
        values = x.values.contiguous() if isinstance(self.layer, Neuron) else x.values
        return run_layer(self.layer, x._replace(values=values, levels=1 if self.of_spikes else x.levels), states)

    def levels(self, levels: int | None) -> int | None:
        return output_levels(self.layer, levels)


class PassedOn(nn.Module):
    """In the place of a layer that the block before it contains: passes the block's output on.

    Args:
        block: the block.
        place: number of the layer in the block.
        last: it is the block's last.
    """

    step_mode = "m"

    def __init__(self, block: Replacement, place: int, last: bool) -> None:
        super().__init__()
        self._block, self.place, self.last = (block,), place, last  # in a tuple: not registered here

    def forward(self, x: Any) -> Any:
        (block,) = self._block
        if not isinstance(x, BlockOutput) or x.contents[0] is not block or x.contents[2] != self.place:
            raise UserError(f"the forward took another way behind {block.name} than on the example.")
        values = x.contents[1]
        return values if self.last else BlockOutput(block, values, self.place + 1)


class BlockSequence(SignalModule):
    """An `nn.Sequential` after its layers became blocks; it has no single layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def run(self, x: Signal, states: Carried | None) -> Signal:
        return run_layers(self.layers, x, states)

    def levels(self, levels: int | None) -> int | None:
        return output_levels(nn.Sequential(*self.layers), levels)


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
    unconverted: dict[str, str] = field(default_factory=dict)
    compared: bool = False
    reason: str = ""

    def __str__(self) -> str:
        equal = "equal on the example" if self.compared else "not compared"
        lines = [f"{len(self.blocks)} nodes in blocks, {len(self.alone)} alone, {len(self.unconverted)} kept; {equal}"]
        lines += [f"no blocks: {self.reason}"] if self.reason else []
        return "\n".join([*lines, *(f"{name} is kept: {why}" for name, why in self.unconverted.items())])


class Converted(nn.Module):
    """A network of SpikingJelly after `from_spikingjelly`; `load_state_dict` takes its old weights too.

    Attributes:
        net: the converted network, with its original forward.
        conversion: outcome for each node; `print` it.
        names: name of each parameter and buffer here and its shape in SpikingJelly, by its name there.
        takes_frames: it takes x [T, N, *]; otherwise its forward repeats samples [N, *].
        input_shape: shape of a sample, set by a task; time_steps, T, likewise.
    """

    time_aware = True
    input_shape: tuple[int, ...] | None = None
    time_steps: int | None = None

    def __init__(self, net: nn.Module, takes_frames: bool = True) -> None:
        super().__init__()
        self.net, self.takes_frames = net, takes_frames
        self.conversion = Conversion()
        self.names: dict[str, tuple[str, torch.Size]] = {}
        self.calls = Calls()

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
            return self.net(with_time(self, x) if self.takes_frames else x)

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


@torch.no_grad()
def block_that_is_read(converted: Converted, x: Tensor) -> str:
    """The first layer of a block between whose layers the forward reads an output; empty if there is none."""
    for mode in (True, False):
        try:
            converted.train(mode)(x.clone())
        except BlockReadError as error:
            return error.block
        except Exception:  # which the comparison names
            return ""
    return ""
