"""Blocks and neurons in the places of a network's layers, under its original forward."""

import copy
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from plif_lightning.errors import UserError
from plif_lightning.layers.blocks import NormBlock
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
    """Contents of a `BlockOutput`, in one attribute: it refuses every other name that a tensor has.

    Attributes:
        block: the block.
        values: its output; its input, where it runs at its last place.
        place: number of the layer that reads it next.
        shaped: a tensor without memory in the shape that the original's output has here; None if the block has run.
        with_gradients: gradients were enabled at its first place.
    """

    block: "Replacement"
    values: Tensor
    place: int
    shaped: Tensor | None
    with_gradients: bool


class BlockOutput:
    """The output of a block, on its way through the places of the block's layers: only the next of them can read it.

    In the original these places hold other values, such as the convolution's output: reading them here is an error. A
    block that runs at its last place passes on its input, and what a forward may do to it in between is reshape it.

    Args:
        passing: see `_Passing`.
    """

    def __init__(self, passing: _Passing) -> None:
        self.passing = passing

    def reshaped(self, shaped: Tensor | None, places: int = 0) -> "BlockOutput":
        """The same behind a change of its shape, or so many places on."""
        return BlockOutput(self.passing._replace(shaped=shaped, place=self.passing.place + places))

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        raise BlockReadError(self.passing.block.name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        shaped = self.passing.shaped
        if shaped is not None and name in _SHAPES:
            return getattr(shaped, name)
        if shaped is not None and name in _RESHAPES:
            return lambda *arguments, **named: self.reshaped(getattr(shaped, name)(*arguments, **named))
        return self._refuse()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        leaves = tree_leaves((arguments, named))
        output = next(leaf for leaf in leaves if isinstance(leaf, cls))
        if function in _RESHAPING and arguments and arguments[0] is output and output.passing.shaped is not None:
            return output.reshaped(function(output.passing.shaped, *arguments[1:], **(named or {})))
        return output._refuse()

    __bool__ = __len__ = __iter__ = __abs__ = __invert__ = __getitem__ = __setitem__ = __float__ = __array__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __neg__ = __pow__ = __matmul__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__


# What a forward may read of a `BlockOutput`, and the methods and functions that only change its shape.
_SHAPES = ("shape", "size", "dim", "ndim", "numel")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "contiguous")
_RESHAPING = (torch.flatten, torch.reshape, torch.unflatten)


class ShapeOf:
    """The shape that a layer gives its output.

    Args:
        layer: PyTorch's convolution or FC layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = copy.deepcopy(layer).requires_grad_(False).to("meta").eval()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """A tensor without memory in the shape of the output for x, which may have none, too."""
        shaped = torch.empty(x.shape, device="meta", dtype=next(self.layer.parameters()).dtype)
        over_time = x.dim() == 5
        y: Tensor = self.layer(shaped.flatten(0, 1) if over_time else shaped)
        return y.unflatten(0, x.shape[:2]) if over_time else y


def is_innermost(x: Tensor, dimension: int) -> bool:
    """True if a dimension, such as the channels, is innermost in memory, and x is not contiguous in its own order."""
    return not x.is_contiguous() and x.movedim(dimension, -1).is_contiguous()


class Replacement(LayerModule):
    """A neuron or a block in the place of the first of its layers.

    Args:
        layer: the neuron or block.
        name: of the first of the layers.
        calls: in which it may be called once; None if it may be called often.
        of_spikes: in the forward that was recorded its input was spikes.

    Attributes:
        followed: places of other layers follow.
        of_frames: its input is [T N, *].
        at_node: it runs at the last of the places, where its output has the shape [T, N, *].
        shape: of its first layer's output, if it runs at the last place and that layer has one of its own.
    """

    of_frames = at_node = False
    shape: ShapeOf | None = None

    step_mode = "m"  # which a forward may ask for

    def __init__(self, layer: nn.Module, name: str, calls: CallGuard | None, of_spikes: bool = False) -> None:
        super().__init__()
        self.layer, self.name, self.calls, self.followed = layer, name, calls, False
        self.of_spikes = of_spikes

    def forward(self, x: Tensor, time_steps: int | None = None, is_spikes: bool = False) -> Any:
        """The output in the shape of x, [T, N, *] or [T N, *]; a `BlockOutput` where other layers' places follow."""
        if self.at_node:
            shaped = torch.empty(x.shape, device="meta") if self.shape is None else self.shape(x)
            return BlockOutput(_Passing(self, x, 1, shaped, torch.is_grad_enabled()))
        if self.of_frames:  # without a state, for which all frames may be of one step
            y = self.run(Signal(x[None], 1, is_spikes or self.of_spikes)).squeeze(0)  # whose gradient is no copy
        else:
            y = super().forward(x, time_steps, is_spikes or self.of_spikes)
        return BlockOutput(_Passing(self, y, 1, None, torch.is_grad_enabled())) if self.followed else y

    def at_last_place(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The output in the shape [T, N, *] that it has there, for an input [T, N, *] or [T N, *]."""
        x = x.unflatten(0, shape[:2]) if self.of_frames else x
        return self.run(Signal(x, shape[0], self.of_spikes)).reshape(shape)

    def refuse_other_way(self) -> NoReturn:
        """Refuse a call that the example did not show."""
        raise UserError(f"the forward took another way behind {self.name} than on the example.")

    def train(self, mode: bool = True) -> "Replacement":
        """Set the mode of its first layer and of what has no place of its own."""
        norm = getattr(self.layer, "norm", None)
        before = norm is not None and norm.training
        super().train(mode)
        if norm is not None and not isinstance(self.layer, NormBlock):
            norm.train(before)  # set at its place
        return self

    def run(self, x: Signal) -> Tensor:
        if self.calls is not None:
            self.calls.require_first(self, self.name)
        values = x.values
        # Neurons alone keep their input's layout. Stacked steps, as SpikingJelly gives, are fast for what follows; maps
        # with C innermost, as blocks give, stay so: operators on two layouts take several times as long.
        if isinstance(self.layer, Neuron) and not (values.dim() == 5 and is_innermost(values, 2)):
            values = values.contiguous()
        return output_of(self.layer, x._replace(values=values))

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.layer, spikes)


class PassedOn(nn.Module):
    """In the place of a layer that the block before it contains: passes the block's output on.

    Args:
        block: the block.
        place: number of the layer in the block.
        last: it is the block's last.
        shape: of the layer's output, if the block runs at its last place and the layer has one of its own.
        kind: the part of the block that the layer is, see `Vocabulary.kind`.
    """

    step_mode = "m"

    def __init__(self, block: Replacement, place: int, last: bool, shape: ShapeOf | None, kind: str) -> None:
        super().__init__()
        self._block, self.place, self.last = (block,), place, last  # in a tuple: not registered here
        self.shape, self.kind = shape, kind

    def train(self, mode: bool = True) -> "PassedOn":
        """Set the mode of BN in the block, too, which a forward or a training may freeze by its name."""
        super().train(mode)
        if self.kind == "norm":
            cast(Any, self._block[0].layer).norm.train(mode)
        return self

    def forward(self, x: Any) -> Any:
        (block,) = self._block
        if not isinstance(x, BlockOutput) or x.passing.block is not block or x.passing.place != self.place:
            block.refuse_other_way()
        shaped = x.passing.shaped
        if not self.last:
            return x.reshaped(shaped if shaped is None or self.shape is None else self.shape(shaped), places=1)
        if shaped is None:
            return x.passing.values
        if torch.is_grad_enabled() != x.passing.with_gradients:
            block.refuse_other_way()
        return block.at_last_place(x.passing.values, shaped.shape)
