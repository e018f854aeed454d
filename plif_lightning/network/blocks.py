"""The FC block (dropout-FC-neuron), and sequences of blocks."""

import torch
from torch import Tensor, nn

from plif_lightning.kernels import Backend, linear_of_spikes
from plif_lightning.network.conv import ConvBlock, dtype_of, refuses_neuron
from plif_lightning.network.hooks import has_hooks, must_be_called
from plif_lightning.network.layers import TimeDropout
from plif_lightning.neurons import Neuron


class FCBlock(nn.Module):
    """Dropout - FC (no bias) - neuron over [T, N, F].

    A part may be replaced by another module that takes the same arguments.

    Args:
        dropout: dropout of the input.
        fc: the FC layer.
        neuron: the spiking neurons.
        backend: the form that runs; None for the reference.
    """

    def __init__(self, dropout: TimeDropout, fc: nn.Linear, neuron: Neuron, backend: Backend | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.neuron = neuron
        self.backend = backend or Backend("reference")

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """Spikes [T, N, F'] of x [T, N, F]; `binary`: x is guaranteed to be spikes (zeros and ones)."""
        if not binary or self.refuses_fc is not None:
            return self.neuron(self.fc(self.dropout(x)))
        x = self.dropout(x.to(dtype_of(x, self.fc.weight)))
        if not self.backend.skips_silence(x, self.fc.weight):
            return self.neuron(self.fc(x))
        return self.neuron(linear_of_spikes(x, self.fc.weight, self.dropout.scale, self.backend.sparse))

    @property
    def refuses_fc(self) -> str | None:
        """Why the kernels cannot compute dropout and FC layer; None if they can."""
        if type(self.fc) is not nn.Linear:
            return f"its FC layer is a {type(self.fc).__name__}"
        if self.fc.bias is not None:
            return "its FC layer has a bias"
        if type(self.dropout) is not TimeDropout:
            return f"its dropout is a {type(self.dropout).__name__}"
        return "its dropout or FC layer has hooks" if has_hooks(self.fc) or must_be_called(self.dropout) else None

    def gives_binary(self, device: torch.device) -> bool:
        """True if the output is guaranteed to hold zeros and ones."""
        return refuses_neuron(self.neuron) is None and not has_hooks(self.neuron) and not must_be_called(self)


class Blocks(nn.Sequential):
    """A sequence of blocks that passes on whether activations are guaranteed binary (zeros and ones)."""

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        for block in self:
            if isinstance(block, (ConvBlock, FCBlock)):
                gives_binary = block.gives_binary(x.device)
                # A pre-hook may replace the input.
                x, binary = block(x, binary and not block._forward_pre_hooks), gives_binary
            else:
                x, binary = block(x), False
        return x

    def gives_binary(self, device: torch.device) -> bool:
        """True if the output is guaranteed to hold zeros and ones."""
        last = self[-1] if len(self) else None
        return isinstance(last, (ConvBlock, FCBlock)) and last.gives_binary(device) and not has_hooks(self)


def refuses_block(block: nn.Module) -> str | None:
    """Why the kernels and exports do not support a block; None if they do.

    A block with hooks is refused, because kernels and exports never call its modules.
    """
    if not isinstance(block, (ConvBlock, FCBlock)):
        return f"it is a {type(block).__name__}"
    if any(map(has_hooks, block.modules())):
        return "it has hooks, which would be lost"
    return refuses_neuron(block.neuron) or (block.refuses_conv if isinstance(block, ConvBlock) else block.refuses_fc)
