"""Blocks of a network over [T, N, *]: convolution, FC layer, neurons alone, residual block; and sequences of them.

A part of a block may be replaced by another module that takes the same arguments: `forms` then calls that module.
"""

import itertools
from collections.abc import Iterator

from torch import Tensor, nn

from plif_lightning.kernels import Backend, Pool
from plif_lightning.kernels.dense import computing_type
from plif_lightning.kernels.ops import uncompiled
from plif_lightning.network.forms import Choice, fire_sum, refuses_fusion, run_conv, run_fc
from plif_lightning.network.hooks import is_plain
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.pooling import Pool2d, TimeDropout, draw_seed
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carried
from plif_lightning.structure.layers import How


class ConvBlock(nn.Module):
    """Conv2d (no bias) - BN - neuron - pool over [T, N, C, H, W]; with a bias instead of BN if BN is folded.

    An input [1, N, C, H, W] is held for `time_steps`: convolution and BN run once instead of T times. In a `step` it
    is a single time-step.

    Args:
        conv: convolution over single images [N, C, H, W].
        norm: BN of its output; None if it is folded into the convolution, which then has a bias.
        neuron: the spiking neurons; None for a block whose output is not spikes.
        pool: pool of the spikes [T, N, C, H, W]; None for a block without one.
        time_steps: T, for held inputs.
        spikes_in: its input is spikes, see `Placed`.
        backend: the form that runs; None for the reference.

    Attributes:
        choice: how the last call ran; None before the first.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: TimeBatchNorm2d | None,
        neuron: Neuron | None,
        pool: nn.Module | None = None,
        *,
        time_steps: int,
        spikes_in: bool = False,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.pool = pool
        self.time_steps, self.spikes_in = time_steps, spikes_in
        self.backend = backend or Backend("reference")
        self.choice: Choice | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Pooled spikes [T, N, C', H', W'] of x [T, N, C, H, W]."""
        return run_conv(self, x)

    def steps(self, x: Tensor) -> int:
        """T of an input."""
        return self.time_steps if len(x) == 1 and carried() is None else len(x)

    @property
    def pool_name(self) -> Pool | None:
        """The kernels' name of the pooling; None if they do not have it."""
        if self.pool is None:
            return "none"
        return self.pool.name if isinstance(self.pool, Pool2d) and is_plain(self.pool, self.pool.pool) else None

    @property
    def kernel_pool(self) -> Pool:
        """The pooling that the kernels do; another one follows them."""
        return self.pool_name or "none"

    @property
    def normalises_by_batch(self) -> bool:
        """True if BN normalises with statistics of the batch."""
        return self.norm is not None and self.norm.bn.training

    def seed(self) -> Tensor | None:
        """Seed of the tie-breaking in max-pooling; None if the pool draws nothing."""
        return draw_seed(self.training) if self.pool_name == "max_random" else None


class FCBlock(nn.Module):
    """Dropout - FC - neuron over [T, N, F].

    Args:
        dropout: dropout of the input.
        fc: the FC layer.
        neuron: the spiking neurons; None for a readout, whose output is not spikes.
        spikes_in: its input is spikes, see `Placed`.
        backend: the form that runs; None for the reference.

    Attributes:
        choice: how the last call ran; None before the first, and for an input that is not spikes.
    """

    def __init__(
        self,
        dropout: TimeDropout,
        fc: nn.Linear,
        neuron: Neuron | None,
        *,
        spikes_in: bool = False,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.neuron = neuron
        self.spikes_in, self.backend = spikes_in, backend or Backend("reference")
        self.choice: Choice | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Spikes [T, N, F'] of x [T, N, F]."""
        y = run_fc(self, x)
        return y if self.neuron is None else self.neuron(y)


class NeuronBlock(nn.Module):
    """Neurons alone, over [T, N, *]: those behind the sum of a residual block, or before a convolution.

    Args:
        neuron: the spiking neurons.
        time_steps: T, for held inputs [1, N, *].
    """

    def __init__(self, neuron: Neuron, *, time_steps: int) -> None:
        super().__init__()
        self.neuron, self.time_steps = neuron, time_steps

    def forward(self, x: Tensor) -> Tensor:
        """Spikes [T, N, *]."""
        return self.neuron(x, self.time_steps if len(x) == 1 else len(x))


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

    def forward(self, x: Tensor) -> Tensor:
        """[T, N, C', H', W'] of x [T, N, C, H, W], or of a held x [1, N, C, H, W]."""
        y, shortcut = self.branch(x), self.shortcut(x)
        if self.how == "ADD":
            return y + shortcut
        return y * shortcut if self.how == "AND" else shortcut * (1 - y)

    def fuses_with(self, block: nn.Module | None, x: Tensor) -> bool:
        """True if one kernel takes the sum and the neurons of the block behind it."""
        last = self.branch[-1] if len(self.branch) else None
        if self.how != "ADD" or not isinstance(last, ConvBlock) or not isinstance(block, NeuronBlock):
            return False
        held = last.steps(x) > len(x)  # then neurons of the branch or of the shortcut alone may see time
        on_cpu = last.backend.chosen(x.device) == "cpu" and last.backend.fuses(x.device, computing_type(x))
        plain = is_plain(block, self, self.branch, self.shortcut, *last.modules())
        return not held and on_cpu and plain and last.neuron is None and not refuses_fusion(last, block.neuron)

    def fire(self, block: NeuronBlock, x: Tensor) -> Tensor:
        """Spikes of the neurons of a block that see the sum; only if it `fuses_with` that block."""
        *before, last = self.branch
        assert isinstance(last, ConvBlock)
        return fire_sum(last, block.neuron, run_blocks(x, before), self.shortcut(x))

    def extra_repr(self) -> str:
        return self.how


WITH_NEURON = (ConvBlock, FCBlock, NeuronBlock)


class Blocks(nn.Sequential):
    """A sequence of blocks."""

    backend = Backend("reference")  # until `use_backend`

    def forward(self, x: Tensor) -> Tensor:
        return (run_blocks if self.backend.name == "reference" else _outside_of_graphs)(x, list(self))


def run_blocks(x: Tensor, blocks: list[nn.Module]) -> Tensor:
    """The output of blocks one after another; the neurons behind a sum take it in one kernel."""
    done = None
    for block, following in itertools.pairwise([*blocks, None]):
        if block is done or block is None:
            continue
        if isinstance(block, Residual) and block.fuses_with(following, x):
            assert isinstance(following, NeuronBlock)
            x, done = block.fire(following, x), following
        else:
            x = block(x)
    return x


# Between the kernels for a CPU little is left to compile: parts of a block that change with every shape.
_outside_of_graphs = uncompiled(run_blocks)


def layers_of(blocks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, block) of each block in a sequence, those inside of residual blocks included, in order."""
    for name, block in blocks.named_children():
        if isinstance(block, Residual):
            yield from layers_of(block.branch)
            yield from layers_of(block.shortcut)
        else:
            yield name, block
