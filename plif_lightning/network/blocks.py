"""Blocks of a network: convolution, FC layer, neurons alone, residual block; and sequences of them.

A part of a block may be replaced by another module that takes the same arguments: `forms` then calls that module.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from plif_lightning.kernels import Backend, Pool
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.network.forms import Choice, Sum, refuses_sum, run_conv, run_fc
from plif_lightning.network.inspect import is_plain
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.pooling import Pool2d, TimeDropout, draw_seed, pooled_levels
from plif_lightning.network.recurrent import RecurrentLinear
from plif_lightning.network.signals import Signal, SignalModule, levels_of, output_levels, run_layer, run_layers
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import Carried
from plif_lightning.structure.layers import Combine


class ConvBlock(SignalModule):
    """Conv2d (no bias) - BN - neuron - pool over [T, N, C, H, W]; with a bias instead of BN if BN is folded.

    Convolution and BN of a held input run once instead of T times.

    Args:
        conv: convolution over single images [N, C, H, W].
        norm: BN of its output; None if it is folded into the convolution, which then has a bias.
        neuron: the spiking neurons; None for a block without spiking output.
        pool: pool of the spikes [T, N, C, H, W]; None for a block without a pool.
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
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.pool = pool
        self.backend = backend or Backend("reference")
        self.choice: Choice | None = None

    def run(self, x: Signal, states: Carried | None) -> Signal:
        """Pooled spikes [T, N, C', H', W']."""
        return Signal(run_conv(self, x, states), x.steps, self.levels(x.levels))

    def levels(self, levels: int | None) -> int | None:
        return pooled_levels(self.pool, levels_of(self.neuron))

    @property
    def pool_name(self) -> Pool | None:
        """The kernels' name of the pooling; None if they do not have it."""
        if self.pool is None:
            return "none"
        return self.pool.name if isinstance(self.pool, Pool2d) and is_plain(self.pool, self.pool.pool) else None

    @property
    def kernel_pool(self) -> Pool:
        """The pooling in the kernels; other pools follow them."""
        return self.pool_name or "none"

    @property
    def normalises_by_batch(self) -> bool:
        """True if BN normalises with statistics of the batch."""
        return self.norm is not None and self.norm.bn.training

    def seed(self) -> Tensor | None:
        """Seed of the tie-breaking in max-pooling; None if the pool draws nothing."""
        return draw_seed(self.training) if self.pool_name == "max_random" else None


class FCBlock(SignalModule):
    """Dropout - FC - neuron over [T, N, F].

    Args:
        dropout: dropout of the input.
        fc: the FC layer.
        neuron: the spiking neurons; None for a readout.
        recurrent: weight from their spikes of the previous step to their input; None without.
        backend: the form that runs; None for the reference.

    Attributes:
        choice: how the last call ran; None before the first, and for an input that is not spikes.
    """

    def __init__(
        self,
        dropout: TimeDropout,
        fc: nn.Linear,
        neuron: Neuron | None,
        recurrent: RecurrentLinear | None = None,
        *,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.recurrent = recurrent
        self.neuron = neuron
        self.backend = backend or Backend("reference")
        self.choice: Choice | None = None

    def run(self, x: Signal, states: Carried | None) -> Signal:
        """Spikes [T, N, F']."""
        return Signal(run_fc(self, x, states), x.steps, self.levels(x.levels))

    def levels(self, levels: int | None) -> int | None:
        return levels_of(self.neuron)


class NeuronBlock(SignalModule):
    """Neurons alone, over [T, N, *]: for example before a convolution.

    Args:
        neuron: the spiking neurons.
    """

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def run(self, x: Signal, states: Carried | None) -> Signal:
        return run_layer(self.neuron, x, states)

    def levels(self, levels: int | None) -> int | None:
        return levels_of(self.neuron)


class ResidualBlock(SignalModule):
    """Two branches over [T, N, C, H, W] combined element by element, and the neurons behind them.

    Args:
        how: ADD, the sum; AND, the product; IAND, (1 - branch) shortcut.
        branch: the layers of the branch.
        shortcut: the layers of the shortcut; empty for the input itself.
        neuron: neurons that see the result; None without.

    Source: Fang et al. 2021, "Deep Residual Learning in Spiking Neural Networks", Table 1.
    """

    def __init__(self, combine: Combine, branch: "Blocks", shortcut: "Blocks", neuron: Neuron | None = None) -> None:
        super().__init__()
        self.combination, self.branch, self.shortcut, self.neuron = combine, branch, shortcut, neuron

    def run(self, x: Signal, states: Carried | None) -> Signal:
        last = self.branch[-1] if isinstance(self.branch, Blocks) and len(self.branch) else None
        if isinstance(last, ConvBlock) and not self._refuses_sum(last, x):
            before = run_layers([*self.branch][:-1], x, states)
            added = run_layer(self.shortcut, x, states)
            spikes = run_conv(last, before, states, Sum(self.neuron, added.values))
            return Signal(spikes, x.steps, self.levels(x.levels))
        y, shortcut = (run_layer(sequence, x, states) for sequence in (self.branch, self.shortcut))
        combined = Signal(self._combined(y.values, shortcut.values), x.steps, self._levels(y.levels, shortcut.levels))
        return combined if self.neuron is None else run_layer(self.neuron, combined, states)

    def _combined(self, y: Tensor, shortcut: Tensor) -> Tensor:
        if self.combination == "ADD":
            return y + shortcut
        return y * shortcut if self.combination == "AND" else shortcut * (1 - y)

    def _levels(self, branch: int | None, shortcut: int | None) -> int | None:
        return None if self.combination == "ADD" or branch is None else shortcut

    def _refuses_sum(self, last: ConvBlock, x: Signal) -> str:
        """Why no kernel fuses BN of the last convolution, the sum and the neurons behind it; empty if a kernel does."""
        if self.combination != "ADD" or not is_plain(self, self.branch, self.shortcut, *last.modules()):
            return "it is no sum, or has hooks"
        # Of a held input neurons of the branch or of the shortcut alone may see time.
        return "its input is held" if x.is_held else refuses_sum(last, self.neuron, x)

    def levels(self, levels: int | None) -> int | None:
        if self.neuron is not None:
            return levels_of(self.neuron)
        return self._levels(self.branch.levels(levels), self.shortcut.levels(levels))

    def extra_repr(self) -> str:
        return self.combination


WITH_NEURON = (ConvBlock, FCBlock, NeuronBlock, ResidualBlock)


class Blocks(nn.Sequential, SignalModule):
    """A sequence of blocks."""

    backend = Backend("reference")  # until `use_backend`
    forward = SignalModule.forward

    def run(self, x: Signal, states: Carried | None) -> Signal:
        run = _run_values if self.backend.name == "reference" else _outside_of_graphs
        return run(x.values, x, list(self), states)

    def levels(self, levels: int | None) -> int | None:
        return output_levels(nn.Sequential(*self), levels)


def _run_values(values: Tensor, x: Signal, blocks: Iterable[nn.Module], states: Carried | None) -> Signal:
    """`run_layers`; the values of x are the first argument, for `outside_compile`."""
    return run_layers(blocks, x, states)


# Between the kernels for a CPU little is left to compile: parts of a block that change with every shape.
_outside_of_graphs = outside_compile(_run_values)


def layers_of(blocks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, block) of each block in a sequence, in order; of a residual block its layers, and itself if it fires."""
    for name, block in blocks.named_children():
        if isinstance(block, ResidualBlock):
            yield from layers_of(block.branch)
            yield from layers_of(block.shortcut)
        if not isinstance(block, ResidualBlock) or block.neuron is not None:
            yield name, block
