"""Blocks beside the convolutional one: FC layers, neurons alone, residual blocks; and sequences of blocks."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from plif_lightning.kernels import Backend, linear_of_spikes
from plif_lightning.kernels.dense import computing_type
from plif_lightning.network.conv import ConvBlock, dtype_of, fire_with, fires, pools_spikes, refuses_neuron, run_layer
from plif_lightning.network.hooks import Hear, has_hooks, listening, must_be_called
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.neurons import Neuron
from plif_lightning.structure.layers import How


class FCBlock(nn.Module):
    """Dropout - FC - neuron over [T, N, F].

    A part may be replaced by another module that takes the same arguments.

    Args:
        dropout: dropout of the input.
        fc: the FC layer.
        neuron: the spiking neurons; None for a readout, whose output is not spikes.
        backend: the form that runs; None for the reference.
    """

    def __init__(
        self, dropout: TimeDropout, fc: nn.Linear, neuron: Neuron | None, backend: Backend | None = None
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.neuron = neuron
        self.backend = backend or Backend("reference")

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """Spikes [T, N, F'] of x [T, N, F]; `binary`: x is guaranteed to be spikes (zeros and ones)."""
        y = self._sums(x, binary)
        return y if self.neuron is None else self.neuron(y)

    def _sums(self, x: Tensor, binary: bool) -> Tensor:
        if not binary or self.refuses_fc is not None:
            return run_layer(self.fc, self.dropout(x))
        x = self.dropout(x.to(dtype_of(x, self.fc.weight)))
        if not self.backend.skips_silence(x, self.fc.weight):
            return run_layer(self.fc, x)
        y = linear_of_spikes(x, self.fc.weight, self.dropout.scale, self.backend.sparse)
        return y if self.fc.bias is None else y + self.fc.bias.to(y.dtype)

    @property
    def refuses_fc(self) -> str | None:
        """Why the kernels cannot compute dropout and FC layer; None if they can."""
        if type(self.fc) is not nn.Linear:
            return f"its FC layer is a {type(self.fc).__name__}"
        if type(self.dropout) is not TimeDropout:
            return f"its dropout is a {type(self.dropout).__name__}"
        return "its dropout or FC layer has hooks" if has_hooks(self.fc) or must_be_called(self.dropout) else None

    def gives_binary(self, device: torch.device, binary: bool = False) -> bool:
        """True if the output is guaranteed to hold zeros and ones."""
        return _only_fires(self)


class NeuronBlock(nn.Module):
    """Neurons alone, over [T, N, *]: those behind the sum of a residual block, or before a convolution.

    Args:
        neuron: the spiking neurons.
        time_steps: T, for held inputs [1, N, *].
    """

    def __init__(self, neuron: Neuron, *, time_steps: int) -> None:
        super().__init__()
        self.neuron, self.time_steps = neuron, time_steps

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """Spikes [T, N, *]."""
        return self.neuron(x, self.time_steps if len(x) == 1 else len(x))

    def gives_binary(self, device: torch.device, binary: bool = False) -> bool:
        """True if the output is guaranteed to hold zeros and ones."""
        return _only_fires(self)


class Residual(nn.Module):
    """Two branches over [T, N, C, H, W] whose outputs are combined element by element.

    Args:
        how: ADD, the sum; AND, the product; IAND, (1 - branch) shortcut.
        branch: the layers of the branch.
        shortcut: the layers of the shortcut; empty for the input itself.

    Source: Fang et al. 2021, "Deep Residual Learning in Spiking Neural Networks", Table 1.
    """

    def __init__(self, how: How, branch: "Blocks", shortcut: "Blocks") -> None:
        super().__init__()
        self.how, self.branch, self.shortcut = how, branch, shortcut

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """[T, N, C', H', W'] of x [T, N, C, H, W], or of a held x [1, N, C, H, W]."""
        # A pre-hook may replace the input.
        y, shortcut = (part(x, binary and not part._forward_pre_hooks) for part in (self.branch, self.shortcut))
        if self.how == "ADD":
            return y + shortcut
        return y * shortcut if self.how == "AND" else shortcut * (1 - y)

    def gives_binary(self, device: torch.device, binary: bool = False) -> bool:
        """True if the output is guaranteed to hold zeros and ones."""
        both = self.branch.gives_binary(device, binary) and self.shortcut.gives_binary(device, binary)
        return self.how != "ADD" and both and not _adds_to_forward(self)

    def fire(self, block: NeuronBlock, x: Tensor, binary: bool) -> Tensor:
        """Spikes of the neurons of a block that see the sum; only if `refuses_neurons` does not refuse it."""
        *before, last = self.branch
        assert isinstance(last, ConvBlock)
        y, of_spikes = run_blocks(before, x, binary)
        return fire_with(last, block.neuron, y, of_spikes, self.shortcut(x, binary))

    def refuses_neurons(self, block: NeuronBlock, x: Tensor) -> str | None:
        """Why the kernels cannot take the sum and the neurons behind it together; None if they can."""
        last = self.branch[-1] if len(self.branch) else None
        if self.how != "ADD" or not isinstance(last, ConvBlock) or last.neuron is not None:
            return "its branch does not end with a convolution without neurons, or is not added"
        if last.backend.chosen(x.device) != "cpu" or not last.backend.fuses(x.device, computing_type(x)):
            return "only the kernels for a CPU add before the neurons"
        called = [block, block.neuron, self, self.branch, self.shortcut, last, *last.modules()]
        if any(map(_adds_to_forward, called)):
            return "it has hooks, or a forward of its own"
        return refuses_neuron(block.neuron) or last.refuses_norm

    def extra_repr(self) -> str:
        return self.how


Block = ConvBlock | FCBlock | NeuronBlock | Residual
WITH_NEURON = (ConvBlock, FCBlock, NeuronBlock)


class Blocks(nn.Sequential):
    """A sequence of blocks that passes on whether activations are guaranteed binary (zeros and ones)."""

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        return run_blocks(list(self), x, binary)[0]

    def gives_binary(self, device: torch.device, binary: bool = False) -> bool:
        """True if the output is guaranteed to hold zeros and ones; `binary`: the input does."""
        for block in self:
            binary = block.gives_binary(device, binary) if isinstance(block, Block) else binary and _keeps_binary(block)
        return binary and not has_hooks(self) and type(self).forward is Blocks.forward


def _only_fires(block: FCBlock | NeuronBlock) -> bool:
    """True if the output of a block is that of its neurons, which fire."""
    return fires(block.neuron) and not has_hooks(block.neuron) and not _adds_to_forward(block)


def _adds_to_forward(block: nn.Module) -> bool:
    """True if a call of a block may give something else than its class in this project does."""
    return must_be_called(block) or overrides_forward(block)


def run_blocks(blocks: Sequence[nn.Module], x: Tensor, binary: bool) -> tuple[Tensor, bool]:
    """The output of blocks one after another, and if it is guaranteed to hold zeros and ones; `binary`: x does."""
    waiting = list(blocks)
    while waiting:
        block, following = waiting.pop(0), waiting[0] if waiting else None
        of_sum = following if isinstance(block, Residual) and isinstance(following, NeuronBlock) else None
        if of_sum is not None and isinstance(block, Residual) and block.refuses_neurons(of_sum, x) is None:
            waiting.pop(0)
            x, binary = block.fire(of_sum, x, binary), True
        elif isinstance(block, Block):
            gives_binary = block.gives_binary(x.device, binary)
            # A pre-hook may replace the input.
            x, binary = block(x, binary and not block._forward_pre_hooks), gives_binary
        else:
            x, binary = block(x), binary and _keeps_binary(block)
    return x, binary


def _keeps_binary(block: nn.Module) -> bool:
    return isinstance(block, Pool2d) and pools_spikes(block) and not any(map(must_be_called, block.modules()))


def gives_whole(block: nn.Module, whole: bool) -> bool:
    """True if the output holds whole numbers alone: spikes, their sums, maxima of these; `whole`: the input does.

    It is decided when a network is built: hooks, and modules that are replaced later, are not considered.
    """
    if overrides_forward(block):
        return False
    if isinstance(block, Residual):
        return gives_whole(block.branch, whole) and gives_whole(block.shortcut, whole)
    if isinstance(block, Blocks):
        for part in block:
            whole = gives_whole(part, whole)
        return whole
    return gives_spikes(block, whole)


def overrides_forward(block: nn.Module) -> bool:
    """True for a subclass of a block of this project, or of `Pool2d`, with a forward of its own."""
    kinds: tuple[type[nn.Module], ...] = (*WITH_NEURON, Residual, Blocks, Pool2d)
    return any(isinstance(block, kind) and type(block).forward is not kind.forward for kind in kinds)


def gives_spikes(block: nn.Module, spikes: bool) -> bool:
    """True if the output of a block that is not residual is spikes; `spikes`: its input is. Hooks are not considered.

    Of a pool it says the same of whole numbers, which a maximum leaves whole.
    """
    if overrides_forward(block):
        return False
    if isinstance(block, WITH_NEURON):
        return fires(block.neuron) and (not isinstance(block, ConvBlock) or pools_spikes(block.pool))
    return spikes and isinstance(block, Pool2d) and pools_spikes(block)


def sums_fused(blocks: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The last blocks of branches whose sum and the neurons behind it one kernel takes on a device."""
    parts = list(blocks.children())
    for block, following in itertools.pairwise([*parts, None]):
        if isinstance(block, Residual):
            yield from sums_fused(block.branch, device)
            yield from sums_fused(block.shortcut, device)
            like = torch.empty(0, device=device)
            if isinstance(following, NeuronBlock) and block.refuses_neurons(following, like) is None:
                yield block.branch[-1]


def layers_of(blocks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, block) of each block in a sequence, those inside of residual blocks included, in order."""
    for name, block in blocks.named_children():
        if isinstance(block, Residual):
            yield from layers_of(block.branch)
            yield from layers_of(block.shortcut)
        else:
            yield name, block


@contextmanager
def listening_to(net: nn.Module, neurons: Mapping[str, nn.Module], hear: Hear) -> Iterator[None]:
    """Call `hear(name, spikes)` with the spikes [T, N, *] of each of these neurons of a network, before any pool."""
    with part_by_part(net), listening(neurons, hear):
        yield


@contextmanager
def part_by_part(net: nn.Module) -> Iterator[None]:
    """Run convolutional blocks part by part while the context lasts, which is slower and gives the same spikes."""
    blocks = [part for part in net.modules() if isinstance(part, ConvBlock)]
    for block in blocks:
        block.listened = True
    try:
        yield
    finally:
        for block in blocks:
            block.listened = False


def refuses_block(block: nn.Module) -> str | None:
    """Why the kernels and exports do not support a block as one layer; None if they do.

    A block with hooks is refused, because kernels and exports never call its modules.
    """
    if isinstance(block, Residual):
        return "it is a residual block"
    if not isinstance(block, (ConvBlock, FCBlock)):
        return f"it is a {type(block).__name__}"
    if overrides_forward(block):
        return f"{type(block).__name__} overrides forward"
    if any(map(has_hooks, block.modules())):
        return "it has hooks, which would be lost"
    if block.neuron is None:
        return "no neurons follow"
    reason = refuses_neuron(block.neuron)
    if isinstance(block, FCBlock):
        return reason or block.refuses_fc or ("its FC layer has a bias" if block.fc.bias is not None else None)
    return reason or block.refuses_conv or block.pools_apart
