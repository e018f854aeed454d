"""Neurons and pool of a layer with constant parameters: the kernel of `ops.fire` with low overhead, for CPU inference.

For one sample the kernel takes 0.1 ms. PyTorch's dispatcher and autograd, and expanding 1/tau and the bias into rows on
each call, would take several times that. This class bypasses the dispatcher and caches the rows.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.dynamics.firing import Firing
from plif_lightning.kernels.layout import POOLS, Constants, Geometry, K, Pool, rows_of
from plif_lightning.kernels.parallel import parallel

_NO_POTENTIAL = np.empty((0, 1), np.float32)
# Explicit, because torch.set_default_dtype and set_default_device may differ.
_ON: Any = {"dtype": torch.float32, "device": "cpu"}
# Number of input shapes whose rows are cached.
_MOST_SHAPES = 8


class FrozenFire:
    """Bias, neurons and a 2x2 pool, in float32, without gradients.

    Args:
        k: 1/tau, a scalar or [C]; None without leak.
        firing: V_th, V_reset and the kind of reset.
        bias: bias of the preceding layer [C], added to its sums; or None.
        pool: none, max_first, max_random or avg.
    """

    def __init__(self, k: Tensor | None, firing: Firing, bias: Tensor | None = None, pool: Pool = "none") -> None:
        self._bias = None if bias is None else bias.detach()
        self._constants = Constants.of(firing, leak=k is not None)
        self._learned = rows_of(k, firing, torch.empty(0, **_ON)).detach()
        self._pool = POOLS[pool]
        self._cached: dict[Any, Any] = {}

    def __call__(self, y: Tensor, time_steps: int) -> Tensor:
        """Spikes [T, N, H', W', C] for the sums y [T, N, H, W, C] of a layer, or held [1, N, H, W, C]; contiguous."""
        return self._run(y, time_steps, _NO_POTENTIAL, _NO_POTENTIAL)

    def step(self, y: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Spikes and next potential of one time-step, without a pool; y and v [N, H, W, C] (None: V_reset)."""
        after = torch.empty(y.shape, **_ON)
        before = _NO_POTENTIAL if v is None else v.numpy().reshape(1, -1)
        return self._run(y[None], 1, before, after.numpy().reshape(1, -1))[0], after

    def _run(self, y: Tensor, time_steps: int, v_first: NDArray[Any], v_last: NDArray[Any]) -> Tensor:
        from plif_lightning.kernels import cpu  # deferred: imports numba

        key = (y.shape, time_steps, torch.get_num_threads())
        rows = self._cached.get(key)
        if rows is None:
            if len(self._cached) >= _MOST_SHAPES:
                self._cached.clear()
            rows = self._cached[key] = self._rows(y, time_steps)
        units, threads, shape, before, after = rows
        out = torch.empty(shape, **_ON)
        flat, spikes = y.numpy().reshape(len(y), -1), out.numpy().reshape(time_steps, -1)
        parallel(cpu.forward, units, threads, flat, *before, v_first, v_last, spikes, *after)
        return out

    def _rows(self, y: Tensor, steps: int) -> tuple[int, int, tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]:
        """Units, threads, the output's shape, and the kernel's arguments before and after potentials and output."""
        real = torch.float32
        geometry = Geometry(y.permute(0, 1, 4, 2, 3), steps, self._pool)
        one = torch.ones(1, geometry.channels, **_ON)
        shift = torch.zeros_like(one) if self._bias is None else self._bias[None]
        before = geometry.tiled(one, real), geometry.tiled(shift, real), geometry.tiled_row(self._learned[K], real)
        after = geometry.settings(self._learned, self._constants, real)
        halve = 2 if geometry.pooled else 1
        _, n, height, width, channels = y.shape
        return geometry.units, geometry.threads, (steps, n, height // halve, width // halve, channels), before, after
