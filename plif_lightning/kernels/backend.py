"""Choice of kernels: the implementation that runs on a device, and whether a layer skips silent inputs."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from plif_lightning.dynamics import reference
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.errors import UserError, require_one_of
from plif_lightning.kernels import fused, layout
from plif_lightning.kernels.density import NEVER, TYPES, OpName, Skip, skips
from plif_lightning.kernels.layout import ACCELERATORS
from plif_lightning.kernels.trust import agrees

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal["auto", "reference", "cpu", *ACCELERATORS]  # which the command line shows
Sparse = Literal["auto", "never", "always"]
# Types that a backend does not compute in: numba does not support float16.
_LACKS = {"cpu": torch.float16, **{name: one.lacks for name, one in ACCELERATORS.items()}}


class Backend:
    """Selects the implementation by the device of the data: plain PyTorch (reference), numba (cpu) or an accelerator's.

    Args:
        name: `auto` takes the fastest form that runs on the device of the data: numba kernels on a CPU, Triton on a
            CUDA device, otherwise the reference, as in `torch.export`. `reference`, `cpu` and `triton` force theirs.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: `auto` up to the densities of
            `density.BREAK_EVEN`; `never` and `always` are for tests.

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
        if self.name in ACCELERATORS and self.name != layout.ON_CPU:
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
        return skips(name, x, weight, value, stride, everything=self.sparse == "always")

    def run(self, x: Tensor, dynamics: Dynamics, *arguments: Any, **settings: Any) -> tuple[Tensor, reference.States]:
        """`reference.run` in the form of this backend; same arguments."""
        run = fused.run if self.fuses(x.device, x.dtype, lambda: dynamics) else reference.run
        return run(x, dynamics, *arguments, **settings)
