"""Neurons and pool of a layer with constant parameters: the kernel of `ops.fire` with low overhead, for CPU inference.

For one sample the kernel takes 0.1 ms. PyTorch's dispatcher and autograd, and expanding 1/tau and the bias into rows on
each call, would take several times that. This class bypasses the dispatcher and caches the rows.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.dynamics.equations import Dynamics, program, registered
from plif_lightning.kernels.layout import POOLS, Geometry, Pool, rows_of
from plif_lightning.kernels.ops import start_of
from plif_lightning.kernels.parallel import parallel

_NO_STATES = np.empty((0, 1), np.float32)
# Explicit, because torch.set_default_dtype and set_default_device may differ.
_ON: Any = {"dtype": torch.float32, "device": "cpu"}
# Number of input shapes whose rows are cached.
_MOST_SHAPES = 8


class FrozenFire:
    """Bias, neurons and a 2x2 pool, in float32, without gradients.

    Args:
        dynamics: the neurons.
        bias: bias of the preceding layer [C], added to its sums; or None.
        pool: none, max_first, max_random or avg.
    """

    def __init__(self, dynamics: Dynamics, bias: Tensor | None = None, pool: Pool = "none") -> None:
        self._bias = None if bias is None else bias.detach()
        self._learned = rows_of(dynamics, torch.empty(0, **_ON)).detach()
        self._program = program(dynamics.key)
        self._pool = POOLS[pool]
        self._cached: dict[Any, Any] = {}

    def __call__(self, y: Tensor, time_steps: int) -> Tensor:
        """Spikes [T, N, H', W', C] for the sums y [T, N, H, W, C] of a layer, or held [1, N, H, W, C]; contiguous."""
        return self._run(y, time_steps, _NO_STATES, _NO_STATES)

    def step(self, y: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
        """Spikes and next states of one time-step, without a pool; y [N, H, W, C], states [S, N, H, W, C] or None."""
        number = len(self._program.states)
        after = torch.empty(number, *y.shape, **_ON)
        before = _NO_STATES if states is None else states.numpy().reshape(number, -1)
        return self._run(y[None], 1, before, after.numpy().reshape(number, -1))[0], after

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
        parallel(cpu.forward, units, threads, flat, flat[:0], *before, v_first, v_last, spikes, *after)
        return out

    def _rows(self, y: Tensor, steps: int) -> tuple[int, int, tuple[int, ...], tuple[Any, ...], tuple[Any, ...]]:
        """Units, threads, the output's shape, and the kernel's arguments before and after potentials and output."""
        from plif_lightning.kernels.machine_code import code_of

        real, p = torch.float32, self._program
        geometry = Geometry(y.permute(0, 1, 4, 2, 3), steps, self._pool, len(p.states))
        one = torch.ones(1, geometry.channels, **_ON)
        shift = torch.zeros_like(one) if self._bias is None else self._bias[None]
        before = geometry.tiled(one, real), geometry.tiled(shift, real), geometry.parameters(self._learned, real)
        after = code_of("fire", registered(p), real, self._learned.shape[1] == 1), *geometry.sizes
        halve = 2 if geometry.pooled else 1
        _, n, height, width, channels = y.shape
        shape = (steps, n, height // halve, width // halve, channels)
        return geometry.units, geometry.threads, shape, (*before, start_of(p, real)), after
