"""Blocks of a network without a weight of their own, and sequences of blocks."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from plif_lightning.kernels import Backend
from plif_lightning.kernels.ops import outside_compile
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.plain import is_plain
from plif_lightning.layers.plan import ConvBlock, FCBlock, Sum, run_conv, run_norm, takes_sum
from plif_lightning.neurons import Neuron
from plif_lightning.signals.signal import LayerModule, Signal, keeps_spikes, output_of, run_layers
from plif_lightning.structure.layers import Combine


class NeuronBlock(LayerModule):
    """Neurons alone, over [T, N, *]: for example before a convolution.

    Args:
        neuron: the spiking neurons.
    """

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def run(self, x: Signal) -> Tensor:
        return output_of(self.neuron, x)

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.neuron, spikes)


class NormBlock(LayerModule):
    """BN and neurons over [T, N, C, *], in one pass where the kernels run.

    Args:
        norm: BN.
        neuron: the spiking neurons; None for BN alone.
    """

    backend = Backend("reference")  # until `use_backend`

    def __init__(self, norm: TimeBatchNorm, neuron: Neuron | None) -> None:
        super().__init__()
        self.norm, self.neuron = norm, neuron

    def run(self, x: Signal) -> Tensor:
        return run_norm(self.norm, self.neuron, x, self.backend)

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.neuron, spikes=False)


class ResidualBlock(LayerModule):
    """Two branches over [T, N, C, H, W] combined element by element, and the neurons behind them.

    Args:
        combine: ADD, the sum; AND, the product; IAND, (1 - branch) shortcut.
        branch: the layers of the branch.
        shortcut: the layers of the shortcut; empty for the input itself.
        neuron: neurons that see the result; None without.

    Source: Fang et al. 2021, "Deep Residual Learning in Spiking Neural Networks", Table 1.
    """

    geometry = ("combination",)

    def __init__(self, combine: Combine, branch: "Blocks", shortcut: "Blocks", neuron: Neuron | None = None) -> None:
        super().__init__()
        self.combination, self.branch, self.shortcut, self.neuron = combine, branch, shortcut, neuron

    def run(self, x: Signal) -> Tensor:
        last = self.branch[-1] if isinstance(self.branch, Blocks) and len(self.branch) else None
        # Of a held input, one side may have a single step and the other, behind neurons, T.
        is_sum = self.combination == "ADD" and not x.is_held and is_plain(self, self.branch, self.shortcut)
        if is_sum and isinstance(last, ConvBlock) and takes_sum(last, self.neuron, x):
            before = run_layers([*self.branch][:-1], x)
            return run_conv(last, before, Sum(self.neuron, output_of(self.shortcut, x)))
        combined = self._combined(output_of(self.branch, x), output_of(self.shortcut, x))
        return combined if self.neuron is None else output_of(self.neuron, Signal(combined, x.steps))

    def _combined(self, y: Tensor, shortcut: Tensor) -> Tensor:
        if self.combination == "ADD":
            return y + shortcut
        return y * shortcut if self.combination == "AND" else shortcut * (1 - y)

    def keeps_spikes(self, spikes: bool) -> bool:
        if self.neuron is not None:
            return keeps_spikes(self.neuron, spikes=False)
        return self.combination != "ADD" and all(keeps_spikes(part, spikes) for part in (self.branch, self.shortcut))

    def extra_repr(self) -> str:
        return self.combination


WITH_NEURON = (ConvBlock, FCBlock, NeuronBlock, ResidualBlock)


class Blocks(nn.Sequential, LayerModule):
    """A sequence of blocks."""

    backend = Backend("reference")  # until `use_backend`
    forward = LayerModule.forward

    def run(self, x: Signal) -> Tensor:
        run = _run_values if self.backend.name == "reference" else _outside_of_graphs
        return run(x.values, x, list(self))


def _run_values(values: Tensor, x: Signal, blocks: Iterable[nn.Module]) -> Tensor:
    """`run_layers`; the values of x are the first argument, for `outside_compile`."""
    output: Tensor = run_layers(blocks, x).values
    return output


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
