"""The two repeated parts of the network: conv-BN-neuron and dropout-FC-neuron."""

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.neurons import Neuron


class ConvBlock(nn.Module):
    """Conv2d 3x3 (no bias) - BN - neuron over [T, N, C, H, W].

    An input [1, N, C, H, W] is held for `time_steps`: convolution and BN then run once, not T times.
    """

    def __init__(self, conv: nn.Conv2d, norm: TimeBatchNorm2d, neuron: Neuron, time_steps: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.time_steps = time_steps

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if len(x) == 1:
            return self.neuron(self.norm(y, self.time_steps), self.time_steps)
        return self.neuron(self.norm(y))


class FCBlock(nn.Module):
    """Dropout - FC (no bias) - neuron over [T, N, F]."""

    def __init__(self, dropout: "TimeDropout", fc: nn.Linear, neuron: Neuron) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.fc(self.dropout(x)))


class TimeDropout(nn.Module):
    """Dropout of [T, N, *] with one mask per sample, the same at all T steps, scaled by 1 / (1 - p).

    Source: Lee et al. 2020, Sec. 3.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {p}.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        return x * torch.empty_like(x[0]).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Pool2d(nn.Module):
    """Applies a 2x2 pooling of single images [N, C, H, W] to [T, N, C, H, W]."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.flatten(0, 1)).unflatten(0, x.shape[:2])
