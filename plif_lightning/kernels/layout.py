"""Shared by all kernels: numbers of named options, memory layout of feature maps, division into units of work."""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plif_lightning.dynamics.equations import Dynamics

Pool = Literal["none", "max_first", "max_random", "avg"]
# Compiled loops take the index of a name in its Literal.
POOLS: dict[str, int] = {name: i for i, name in enumerate(get_args(Pool))}
# Values per run, the stretch of a feature map that is processed at a time: long enough to amortise loop overhead, short
# enough for its T potentials to stay in the second-level cache.
_RUN = 1024
_CACHE = 2**17  # values
# Vector width of the loops written in LLVM IR.
LANES = 16
# Neuron-steps from which a second thread pays: 0.2 ms of work. Handing work over takes 0.07 ms, more while OpenMP's
# threads are still spinning.
WORTH_THREADS = 2**20
# Cost in forward neuron-steps: of a backward step, and of a sum of an event-driven convolution.
BACKWARD, SUM = 4, 12


# Sizes of a kernel, and strides, that the event-driven convolution has; the padding is half the kernel.
KERNELS, STRIDES = (1, 3, 5), (1, 2)


def conv_output_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of the output of a convolution with padding K // 2, K odd."""
    height, width = size
    return (height - 1) // stride + 1, (width - 1) // stride + 1


def threads_for(work: int) -> int:
    """Number of threads for an amount of work in neuron-steps."""
    return torch.get_num_threads() if work >= WORTH_THREADS else 1


def rows_of(dynamics: Dynamics, like: Tensor) -> Tensor:
    """The parameters of a layer of neurons as rows [P, 1 or C], a learned V_th last; gradients flow to them.

    Args:
        dynamics: the neurons.
        like: an input, which sets the device and real type of the rows.
    """
    real, threshold = real_type(like), dynamics.firing.v_threshold
    values = [dynamics.parameters[name].to(real).reshape(-1) for name in dynamics.equations.parameters]
    values += [threshold.to(real).reshape(-1)] if isinstance(threshold, Tensor) else []
    if not values:
        return torch.empty(0, 1, dtype=real, device=like.device)
    return torch.stack(torch.broadcast_tensors(*values))


def channels_innermost(images: Tensor) -> Tensor:
    """[N, C, H, W] with C innermost in memory; a copy only if needed.

    As `contiguous(memory_format=torch.channels_last)`, which vmap refuses.
    """
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def channels_last(y: Tensor) -> Tensor:
    """[T, N, C, H, W] with C innermost in memory; a copy only if needed."""
    return channels_innermost(y.flatten(0, 1)).unflatten(0, y.shape[:2])


def empty_map(y: Tensor, steps: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [T, N, C, height, width] with C innermost, of the type of y or `dtype`.

    Made with these strides and not by permuting: nobody may write to the output of an autograd function in place if it
    is a view.
    """
    _, n, c = y.shape[:3]
    strides = n * height * width * c, height * width * c, 1, width * c, c
    return y.new_empty_strided((steps, n, c, height, width), strides, dtype=dtype or y.dtype)


def empty_images(
    n: int, c: int, height: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Empty images [n, c, height, width] with C innermost; no view either, see `empty_map`."""
    strides = height * width * c, 1, width * c, c
    return torch.empty_strided((n, c, height, width), strides, dtype=dtype, device=device)


def empty_states(y: Tensor, states: int) -> Tensor:
    """Empty states [S, N, C, H, W] for a feature map y [T, N, C, H, W]; of size 0 if there are none."""
    real = real_type(y)
    return empty_map(y, states, y.shape[3], y.shape[4], real) if states else y.new_empty(0, dtype=real)


def array_of(y: Tensor) -> NDArray[Any]:
    """A feature map with C innermost as a NumPy array [T, N H W C] that shares its memory; bfloat16 as its bits."""
    flat = y.detach().permute(0, 1, 3, 4, 2).reshape(len(y), y[0].numel())
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def real_type(y: Tensor) -> torch.dtype:
    """The type that kernels compute in: float32 at least."""
    return torch.promote_types(y.dtype, torch.float32)


class Accelerator(NamedTuple):
    """A backend beside the CPU's kernels.

    Attributes:
        device: type of the devices that it runs on.
        module: its file in `kernels`, with the functions `fire`, `fire_backward`, `moments` and `normalize_backward` of
            `ops`, for tensors on these devices.
        package: the package that it needs.
        lacks: type that it does not compute in.
    """

    device: str
    module: str
    package: str
    lacks: torch.dtype


# Accelerators by the name of their backend. A backend for other devices is a row here and its module.
ACCELERATORS = {"triton": Accelerator("cuda", "plif_lightning.kernels.gpu", "triton", torch.float64)}
# The backend of tensors on a CPU. Tests name an accelerator here, to try its kernels without one (Triton's in its
# interpreter).
ON_CPU = "cpu"


# Values of a convolution's output per band: fewer stay in the cache, more need fewer calls.
BAND = {"cpu": 2**23, "others": 2**26}


def at_a_time(device: torch.device) -> int:
    """Values of a large feature map to process at a time."""
    return BAND.get(device.type, BAND["others"])


class Sizes(NamedTuple):
    """Sizes of a feature map and its division, as the compiled loops take them.

    Attributes:
        steps: T.
        height: of an image; without a pool, of all images together.
        width: of an image.
        channels: C.
        run: values of a run, see `Geometry`.
        pool: number of the pooling, see POOLS.
    """

    steps: int
    height: int
    width: int
    channels: int
    run: int
    pool: int


class AffineRows(NamedTuple):
    """BN's affine map X = scale y + shift, as the compiled loops take it.

    Attributes:
        scale: [T or 1, run]; [0, run] where neurons see y itself.
        shift: as scale.
        mean: of y, for the sums of a backward pass; as scale.
    """

    scale: NDArray[Any]
    shift: NDArray[Any]
    mean: NDArray[Any]


class NeuronCode(NamedTuple):
    """A layer of neurons, as the compiled loops take it.

    Attributes:
        fire: address of the code of a step, see `machine_code`.
        fire_back: of a step back; 0 in a forward pass.
        parameters: [P, 1] shared by all neurons, or [P, width].
        start: the states before the first step [S].
    """

    fire: int
    fire_back: int
    parameters: NDArray[Any]
    start: NDArray[Any]


class Gradients(NamedTuple):
    """Gradients of a backward pass, as the compiled loops take them; each may be empty.

    Attributes:
        out: of the output, [T, N H' W' C].
        last: of the states after the last step, [S, N H W C].
        y: of BN's output X, in the shape of y; written.
        first: of the states before the first step, [S, N H W C]; written.
    """

    out: NDArray[Any]
    last: NDArray[Any]
    y: NDArray[Any]
    first: NDArray[Any]


class Geometry:
    """Division of a feature map into units of work, and arguments of the compiled loops that depend on it.

    Args:
        y: the feature map [T, N, C, H, W].
        steps: T.
        pool: number of the pooling.
        states: states of a neuron.
        work: cost of a value of a step, in neuron-steps.

    Attributes:
        run: values per run.
        width: the same, rounded up to full vectors: the length of a row of the workspace.
    """

    def __init__(self, y: Tensor, steps: int, pool: int, states: int = 1, work: int = 1) -> None:
        _, n, self.channels, height, self.width_of_map = y.shape
        self.steps, self.pool = steps, pool
        self.pooled = pool != POOLS["none"]
        neurons = 4 if self.pooled else 1
        longest = max(1, min(_RUN, _CACHE // (steps * neurons * states)) // self.channels)
        if self.pooled:
            self.height, windows = height, self.width_of_map // 2
            per_run = min(longest, max(windows, 1))
            self.units = n * (height // 2) * -(-windows // per_run)
        else:
            # without windows, all images form a long row
            self.height, positions = n * height, n * height * self.width_of_map
            per_run = min(longest, max(positions, 1))
            self.units = -(-positions // per_run)
        self.use_run(per_run * self.channels)
        self.threads = threads_for(work * steps * y[0].numel())

    def use_run(self, run: int) -> None:
        """Set the number of values per run."""
        self.run, self.width = run, -(-run // LANES) * LANES

    def tile_channels(self, values: Tensor, real: torch.dtype) -> NDArray[Any]:
        """Values per channel [S, C], repeated over a run [S, run]."""
        # np.tile takes 2 microseconds, Tensor.repeat 20, which matters at batch size 1.
        return np.ascontiguousarray(np.tile(values.detach().to(real).numpy(), self.run // self.channels))

    def parameters(self, learned: Tensor, real: torch.dtype) -> NDArray[Any]:
        """Parameters [P, 1 or C] as the compiled loops take them: [P, 1], or repeated over a run, [P, width]."""
        values = learned.detach().to(real)
        if values.shape[1] == 1:
            return values.numpy()
        table = np.ones((len(values), self.width), values.numpy().dtype)
        table[:, : self.run] = self.tile_channels(values, real)
        return table

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.steps, self.height, self.width_of_map, self.channels, self.run, self.pool)

    def sum_slots(self, totals: NDArray[Any]) -> Tensor:
        """Reduce sums per slot and position in a run [slots, ..., run] to sums per channel [..., C]."""
        by_channel = totals[..., : self.run].reshape(*totals.shape[:-1], self.run // self.channels, self.channels)
        return torch.from_numpy(by_channel.sum((0, -2), dtype=np.float64))

    def sum_parameter_slots(self, totals: NDArray[Any], learned: Tensor) -> Tensor:
        """Reduce sums of gradients of parameters [slots, P, width] to the shape of `learned`, [P, 1 or C]."""
        if learned.shape[1] == 1:
            return torch.from_numpy(totals.sum((0, 2))[:, None])
        return self.sum_slots(totals)
