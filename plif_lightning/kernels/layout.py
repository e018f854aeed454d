"""Shared by all kernels: numbers of named options, memory layout of feature maps, division into units of work."""

import os
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.surrogate import SurrogateName
from plif_lightning.errors import UserError

Pool = Literal["none", "max_first", "max_random", "avg"]
# Compiled loops take the index of a name in its Literal.
POOLS: dict[str, int] = {name: i for i, name in enumerate(get_args(Pool))}
SURROGATES: dict[str, int] = {name: i for i, name in enumerate(get_args(SurrogateName))}
# Values per run, the stretch of a feature map that is processed at a time: long enough to amortise loop overhead, short
# enough for its T potentials to stay in the second-level cache.
_RUN = 1024
_CACHE = 2**17  # values
# Vector width of the loops written in LLVM IR.
LANES = 16
# Neuron-steps from which a second thread pays: 0.2 ms of work. Handing work over takes 0.07 ms, more while OpenMP's
# threads are still spinning.
WORTH_THREADS = 2**20
# Cost in forward neuron-steps: of a backward step, and of one sum of an event-driven convolution.
BACKWARD, SUM = 4, 12


def threads_for(work: int) -> int:
    """Number of threads for an amount of work in neuron-steps."""
    return torch.get_num_threads() if work >= WORTH_THREADS else 1


class Constants(NamedTuple):
    """A neuron's constants in the form that operators take: numbers, in this order.

    Attributes:
        leak: the potential leaks; without a leak the row of 1/tau is ignored.
        v_reset: V_reset.
        soft: a spike subtracts V_th from the potential instead of setting it to V_reset.
        detach_reset: no gradient flows through the reset.
        surrogate: number of the surrogate, see SURROGATES.
        surrogate_width: its width.
        learns_threshold: V_th is learned and needs a gradient.
    """

    leak: bool
    v_reset: float
    soft: bool
    detach_reset: bool
    surrogate: int
    surrogate_width: float
    learns_threshold: bool

    @classmethod
    def of(cls, firing: Firing, leak: bool) -> "Constants":
        soft, number_of_surrogate = firing.reset == "soft", SURROGATES[firing.surrogate]
        learns_threshold = isinstance(firing.v_threshold, Tensor)
        return cls(
            *(leak, firing.v_reset, soft, firing.detach_reset, number_of_surrogate, firing.surrogate_width),
            learns_threshold,
        )

    @classmethod
    def from_numbers(cls, numbers: Any) -> "Constants":
        """From the numbers passed to an operator.

        Raises:
            UserError: an unknown surrogate.
        """
        leak, v_reset, soft, detach_reset, surrogate, surrogate_width, learns_threshold = numbers
        if surrogate not in SURROGATES.values():
            raise UserError(f"surrogate number must be one of {list(SURROGATES.values())}, got {surrogate:g}.")
        return cls(
            bool(leak), v_reset, bool(soft), bool(detach_reset), int(surrogate), surrogate_width, bool(learns_threshold)
        )

    def of_type(self, real: torch.dtype) -> "Constants":
        """With floats of the type that the compiled loops compute in."""
        reals = {name: number(value, real) for name, value in self._asdict().items() if isinstance(value, float)}
        return self._replace(**reals)


def number(value: float, real: torch.dtype) -> Any:
    """`value` as a NumPy scalar of the type that the compiled loops compute in."""
    return np.float64(value) if real == torch.float64 else np.float32(value)


def require_pool(pool: int) -> None:
    """Refuse an unknown pool number.

    Raises:
        UserError: the number is not in POOLS.
    """
    if pool not in POOLS.values():
        raise UserError(f"pool number must be one of {list(POOLS.values())}, got {pool}.")


K, V_THRESHOLD = 0, 1  # rows of `rows_of`


def rows_of(k: Tensor | None, firing: Firing, like: Tensor) -> Tensor:
    """The learnable values of a layer of neurons as rows [2, 1 or C]: 1/tau (ones without leak) and V_th.

    Gradients flow to k, and to V_th where it is a tensor.

    Args:
        k: 1/tau, a scalar or [C]; None without leak.
        firing: the constants.
        like: an input, which sets the device and real type of the rows.
    """
    options = {"dtype": real_type(like), "device": like.device}
    values = torch.ones((), **options) if k is None else k.to(options["dtype"])  # type: ignore[call-overload]
    threshold = torch.as_tensor(firing.v_threshold, **options)  # type: ignore[arg-type]
    return torch.stack([row.reshape(-1) for row in torch.broadcast_tensors(values, threshold)])


def channels_last(y: Tensor) -> Tensor:
    """[T, N, C, H, W] with C innermost in memory; a copy only if needed."""
    return y.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, y.shape[:2])


def empty_map(y: Tensor, steps: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [T, N, C, height, width] with C innermost, of the type of y or `dtype`."""
    _, n, c = y.shape[:3]
    return y.new_empty(steps, n, height, width, c, dtype=dtype or y.dtype).permute(0, 1, 4, 2, 3)


def empty_potential(y: Tensor, there: bool) -> Tensor:
    """An empty potential [N, C, H, W] for a feature map y [T, N, C, H, W]; of size 0 if it is not `there`."""
    real = real_type(y)
    return empty_map(y, 1, y.shape[3], y.shape[4], real)[0] if there else y.new_empty(0, dtype=real)


def array_of(y: Tensor) -> NDArray[Any]:
    """A feature map with C innermost as a NumPy array [T, N H W C] that shares its memory; bfloat16 as its bits."""
    flat = y.detach().permute(0, 1, 3, 4, 2).reshape(len(y), y[0].numel())
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def real_type(y: Tensor) -> torch.dtype:
    """The type that kernels compute in: float32 at least."""
    return torch.promote_types(y.dtype, torch.float32)


# Values of a convolution's output per band: fewer stay in the cache, more need fewer calls.
BAND = {"cpu": 2**23, "cuda": 2**26}


def at_a_time(device: torch.device) -> int:
    """Values of a large feature map to process at a time."""
    return BAND.get(device.type, BAND["cuda"])


def interpreted() -> bool:
    """True if Triton kernels run in its interpreter on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Geometry:
    """Division of a feature map into units of work, and arguments of the compiled loops that depend on it.

    Args:
        y: the feature map [T, N, C, H, W].
        steps: T.
        pool: number of the pooling.
        work: cost of one value of a step, in neuron-steps.
    """

    def __init__(self, y: Tensor, steps: int, pool: int, work: int = 1) -> None:
        _, n, self.channels, height, self.width = y.shape
        self.steps, self.pool = steps, pool
        self.pooled = pool != POOLS["none"]
        neurons = 4 if self.pooled else 1
        longest = max(1, min(_RUN, _CACHE // (steps * neurons)) // self.channels)
        if self.pooled:
            self.height, windows = height, self.width // 2
            per_run = min(longest, max(windows, 1))
            self.units = n * (height // 2) * -(-windows // per_run)
        else:
            # without windows, all images form one long row
            self.height, positions = n * height, n * height * self.width
            per_run = min(longest, max(positions, 1))
            self.units = -(-positions // per_run)
        self.run = per_run * self.channels
        self.threads = threads_for(work * steps * y[0].numel())

    def tiled(self, values: Tensor, real: torch.dtype) -> NDArray[Any]:
        """Values per channel [S, C], repeated over a run [S, run]."""
        # np.tile takes 2 microseconds, Tensor.repeat 20, which matters at batch size 1.
        return np.ascontiguousarray(np.tile(values.detach().to(real).numpy(), self.run // self.channels))

    def tiled_row(self, row: Tensor, real: torch.dtype) -> NDArray[Any]:
        """A value per channel, or one for all [1 or C], repeated over a run [run]."""
        return self.tiled(row.expand(self.channels)[None], real)[0]

    def threshold(self, learned: Tensor, constants: Constants, real: torch.dtype) -> Any:
        """V_th as the compiled loops take it: a number, or a row [run] if it is learned."""
        row = learned[V_THRESHOLD]
        return self.tiled_row(row, real) if constants.learns_threshold else number(float(row[0]), real)

    def settings(self, learned: Tensor, constants: Constants, real: torch.dtype) -> tuple[Any, ...]:
        """T, sizes, pool, constants and V_th, the last arguments of the compiled loops."""
        sizes = self.steps, self.height, self.width, self.channels, self.run
        return *sizes, self.pool, constants.of_type(real), self.threshold(learned, constants, real)

    def summed(self, totals: NDArray[Any]) -> Tensor:
        """Reduce sums per slot and position in a run [slots, ..., run] to sums per channel [..., C]."""
        by_channel = totals.reshape(*totals.shape[:-1], -1, self.channels)
        return torch.from_numpy(by_channel.sum((0, -2), dtype=np.float64))
