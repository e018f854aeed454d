"""Stateless layers over time: dropout and pools."""

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from plif_lightning.errors import UserError, require_number
from plif_lightning.kernels import Pool
from plif_lightning.network.pooling import SpikeMaxPool2d
from plif_lightning.neurons.carry import carried


class TimeDropout(nn.Module):
    """Dropout of [T, N, *] with one mask per sample, the same at all T steps, scaled by 1 / (1 - p).

    Source: Lee et al. 2020, Sec. 3.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        require_number("dropout", p)
        if not 0 <= p < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {p}.")
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        state = carried()
        if state is None or state.masks is None:
            return x * self._mask(x)
        if self not in state.masks:
            state.masks[self] = self._mask(x)
        return x * state.masks[self]

    def _mask(self, x: Tensor) -> Tensor:
        keep = 1 - self.p
        return torch.empty_like(x[0]).bernoulli_(keep).div_(keep)

    @property
    def scale(self) -> float:
        """Value of a kept spike."""
        return 1 / (1 - self.p) if self.training else 1.0

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Pool2d(nn.Module):
    """Applies a 2x2 pooling of single images [N, C, H, W] to [T, N, C, H, W]."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    @property
    def name(self) -> Pool | None:
        """The kernels' name of the pooling; None if they do not support it."""
        pool = self.pool
        if type(pool) is SpikeMaxPool2d:
            return "max_first" if pool.ties == "first" else "max_random"
        if type(pool) is not nn.AvgPool2d or pool.divisor_override is not None:
            return None
        halves = _pair(pool.kernel_size) == _pair(pool.stride) == (2, 2)
        return "avg" if halves and pool.padding in (0, (0, 0)) and not pool.ceil_mode else None

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.flatten(0, 1)).unflatten(0, x.shape[:2])
