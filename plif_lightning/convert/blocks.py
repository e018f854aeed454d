"""Blocks and neurons in the places of a network's layers, under its original forward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plif_lightning.errors import UserError
from plif_lightning.neurons import Neuron
from plif_lightning.signals.signal import LayerModule, Signal, keeps_spikes, output_of


class CallGuard:
    """Refuses a second call of a layer with states within a call of the network: it would start at rest."""

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


class _Passing(NamedTuple):
    """Contents of a `BlockOutput`, in one attribute: it refuses every other name that a tensor has."""

    block: "Replacement"
    values: Tensor
    place: int


class BlockOutput:
    """The output of a block, on its way through the places of the block's layers: only the next of them can read it.

    In the original these places hold other values, such as the convolution's output: reading them here is an error.

    Args:
        block: the block.
        values: its output.
        place: number of the layer that reads it next.
    """

    def __init__(self, block: "Replacement", values: Tensor, place: int) -> None:
        self.passing = _Passing(block, values, place)

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise BlockReadError(self.passing.block.name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        leaves = tree_leaves((arguments, named))
        return next(leaf for leaf in leaves if isinstance(leaf, cls))._refuse()

    __bool__ = __len__ = __iter__ = __abs__ = __invert__ = __getitem__ = __setitem__ = __float__ = __array__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __neg__ = __pow__ = __matmul__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__


class Replacement(LayerModule):
    """A neuron or a block in the place of the first of its layers.

    Args:
        layer: the neuron or block.
        name: of the first of the layers.
        calls: in which it may be called once; None if it may be called often.
        of_spikes: in the forward that was recorded its input was spikes.
    """

    step_mode = "m"  # which a forward may ask for

    def __init__(self, layer: nn.Module, name: str, calls: CallGuard | None, of_spikes: bool = False) -> None:
        super().__init__()
        self.layer, self.name, self.calls, self.followed = layer, name, calls, False
        self.of_spikes = of_spikes

    def forward(self, x: Tensor, time_steps: int | None = None, is_spikes: bool = False) -> Any:
        """The output [T, N, *]; a `BlockOutput` where other layers' places follow."""
        y = super().forward(x, time_steps, is_spikes or self.of_spikes)
        return BlockOutput(self, y, 1) if self.followed else y

    def run(self, x: Signal) -> Tensor:
        if self.calls is not None:
            self.calls.require_first(self, self.name)
        # Neurons alone keep their input's layout; SpikingJelly's stack steps, which is fast for the following layers.
        values = x.values.contiguous() if isinstance(self.layer, Neuron) else x.values
        return output_of(self.layer, x._replace(values=values))

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.layer, spikes)


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
        if not isinstance(x, BlockOutput) or x.passing.block is not block or x.passing.place != self.place:
            raise UserError(f"the forward took another way behind {block.name} than on the example.")
        return x.passing.values if self.last else BlockOutput(block, x.passing.values, self.place + 1)
