"""Choice of kernels: the implementation that runs on a device, and whether a layer skips silent inputs."""

import functools
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from plif_lightning.dynamics import reference
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.errors import UserError, require_one_of
from plif_lightning.kernels import fused
from plif_lightning.kernels.bits import estimate_density
from plif_lightning.kernels.dense import WIDENS_BFLOAT16, takes_patches
from plif_lightning.kernels.layout import ACCELERATORS, uses_interpreter
from plif_lightning.kernels.trust import agrees

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal["auto", "reference", "cpu", *ACCELERATORS]  # which the command line shows
Sparse = Literal["auto", "never", "always"]
# Layers of spikes, and a block of convolution, neurons and pool on frames of events.
OpName = Literal["conv", "linear", "events"]

# Types of the event-driven loops; float64 and float16 are always dense.
TYPES = (torch.float32, torch.bfloat16)
# Densities, shares of non-zero inputs, up to which an operator, and the gradient of its weight, skip silent inputs: in
# float32 without and with AMX, in bfloat16 without and with it. (A processor with AMX is an Intel, whose library of
# dense products is faster in float32, too.) Measured by benchmarks/sparse.py and structures.py.
BREAK_EVEN: dict[OpName, tuple[tuple[float, float], ...]] = {
    "conv": ((0.3, 0.35), (0.2, 0.3), (0.12, 0.15), (0.0, 0.05)),
    "linear": ((0.3, 0.3), (0.25, 0.15), (0.12, 0.12), (0.0, 0.0)),
    "events": ((0.3, 0.2), (0.3, 0.2), (0.2, 0.1), (0.2, 0.1)),
}
# Narrower layers, in inputs or outputs, are always dense; with AMX smaller maps are, too.
LEAST_WIDTH: dict[OpName, int] = {"conv": 64, "linear": 64, "events": 0}
# FC layers of fewer inputs or outputs than this are event-driven at low densities alone, in float32: from 64 on, a step
# takes a third to a seventh of the dense time at 2 % (256 to 2,048 inputs, one thread, Zen 4).
_NARROW, _NARROW_DENSITY = 512, 0.05
LEAST_SIDE = 8
# Multiplications of the dense form below which even sampling the density costs too much.
_WORTH_LOOKING = 2**24
# Types that a backend does not compute in: numba does not support float16.
_LACKS = {"cpu": torch.float16, **{name: one.lacks for name, one in ACCELERATORS.items()}}


class Skip(NamedTuple):
    """Which products of a layer skip silent inputs.

    Attributes:
        output: the layer's output.
        gradient: the gradient of its weight; as the output where there is none.
        density: share of non-zero inputs in a sample; None if none was taken.
        reason: why the output does not, in words.
    """

    output: bool
    gradient: bool
    density: float | None = None
    reason: str = ""

    @property
    def any(self) -> bool:
        return self.output or self.gradient


NEVER, ALWAYS = Skip(False, False), Skip(True, True)


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def break_even(name: OpName, weight: Tensor, dtype: torch.dtype, side: int) -> tuple[float, float]:
    """Densities up to which an operator, and the gradient of its weight, are faster event-driven.

    Args:
        name: the operator.
        weight: [O, C, K, K] or [O, K].
        dtype: of the products, a type of TYPES.
        side: shorter side of the maps.
    """
    if min(weight.shape[:2]) < LEAST_WIDTH[name] or (name == "conv" and side < LEAST_SIDE and _has_amx()):
        return 0.0, 0.0
    by_bfloat16 = dtype == torch.bfloat16 and not WIDENS_BFLOAT16
    if name == "linear" and min(weight.shape) < _NARROW:
        return (0.0, 0.0) if dtype == torch.bfloat16 else (_NARROW_DENSITY, _NARROW_DENSITY)
    return BREAK_EVEN[name][2 * by_bfloat16 + _has_amx()]


class Backend:
    """Selects the implementation by the device of the data: plain PyTorch (reference), numba (cpu) or an accelerator's.

    Args:
        name: `auto` takes the fastest form that runs on the device of the data: numba kernels on a CPU, Triton on a
            CUDA device, otherwise the reference, as in `torch.export`. `reference`, `cpu` and `triton` force theirs.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: `auto` up to the densities of
            `BREAK_EVEN`; `never` and `always` are for tests.

    Raises:
        UserError: an unknown name, or a backend that cannot run on this machine.
    """

    def __init__(self, name: BackendName = "auto", sparse: Sparse = "auto") -> None:
        for argument, value, literal in (("sparse", sparse, Sparse), ("backend", name, BackendName)):
            require_one_of(argument, value, literal)
        self.name, self.sparse = name, sparse
        self._installed = {
            accelerator.device: name
            for name, accelerator in ACCELERATORS.items()
            if importlib.util.find_spec(accelerator.package) is not None
        }

    def chosen(self, device: torch.device) -> str:
        """The implementation that runs on this device: reference, cpu or triton.

        Raises:
            UserError: the requested backend does not run on this device.
        """
        if self.name == "auto":
            if torch.compiler.is_exporting() or torch._C._is_tracing():  # a program of PyTorch's operators alone
                return "reference"
            return "cpu" if device.type == "cpu" else self._installed.get(device.type, "reference")
        runs_on = device.type if self.name == "reference" else "cpu"
        if self.name in ACCELERATORS and not uses_interpreter():
            runs_on = ACCELERATORS[self.name].device
        if device.type != runs_on:
            raise UserError(
                f"backend={self.name!r} runs on {runs_on}, but the data is on {device.type}: pass --model.backend auto."
            )
        return self.name

    def fuses(
        self, device: torch.device, dtype: torch.dtype | None = None, neurons: Callable[[], Dynamics] | None = None
    ) -> bool:
        """True if the fused forms run on this device in this type, False for the reference; errors as `chosen`.

        On a GPU `auto` first compares them with the reference for these neurons, once in a process.
        """
        chosen = self.chosen(device)
        if dtype is not None and dtype == _LACKS.get(chosen):
            if self.name == "auto":
                return False
            raise UserError(f"backend={chosen!r} does not compute in {str(dtype)[6:]}: pass --model.backend auto.")
        if self.name == "auto" and chosen in ACCELERATORS and neurons is not None and not agrees(neurons(), device):
            return False
        return chosen != "reference"

    def skips(self, name: OpName, x: Tensor, weight: Tensor, value: float = 1.0, stride: int = 1) -> Skip:
        """Which products of a layer skip silent inputs, by the density of a sample of x.

        Args:
            name: the operator.
            x: [N, C, H, W], C innermost in memory, or [*, K], in the type that the layer computes in.
            weight: weight of a convolution [O, C, K, K], or of an FC layer [O, K].
            value: of a spike; a layer of spikes is dense if its sample has values other than this and zero.
            stride: of the convolution.
        """
        if self.sparse == "never" or x.dtype not in TYPES or self.chosen(x.device) != "cpu":
            return NEVER._replace(reason=f"sparse={self.sparse}, {str(x.dtype)[6:]}, {x.device.type}")
        conv = weight.dim() == 4
        rows = x.permute(0, 2, 3, 1).flatten(0, 2) if conv else x.flatten(0, -2)
        multiplications = len(rows) / stride**2 * weight.numel()
        if not rows.numel() or rows.shape[1] != weight.shape[1]:
            return NEVER
        if self.sparse == "auto" and multiplications < _WORTH_LOOKING:
            return NEVER._replace(reason="too few products to look for silent inputs")
        if self.sparse == "auto" and conv and takes_patches(x, weight, stride):
            return NEVER._replace(reason="few pixels: a product of patches")
        density, only_spikes = estimate_density(rows, value)
        if name != "events" and not only_spikes:
            return NEVER._replace(density=density, reason="its input has other values than 0 and 1")
        if self.sparse == "always":
            return ALWAYS._replace(density=density)
        output, gradient = break_even(name, weight, x.dtype, min(x.shape[2:]) if conv else 1)
        trained = torch.is_grad_enabled() and weight.requires_grad
        skips = density <= output and output > 0
        reason = f"event-driven up to {100 * output:.2g} %" if output else "narrow, small or AMX: dense at any density"
        trained_skips = density <= gradient and gradient > 0
        return Skip(skips, trained_skips if trained else skips, density, "" if skips else reason)

    def run(self, x: Tensor, dynamics: Dynamics, *arguments: Any, **settings: Any) -> tuple[Tensor, reference.States]:
        """`reference.run` in the form of this backend; same arguments."""
        run = fused.run if self.fuses(x.device, x.dtype, lambda: dynamics) else reference.run
        return run(x, dynamics, *arguments, **settings)
