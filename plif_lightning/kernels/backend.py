"""Choice of kernels: which form of each function runs on which device."""

import importlib.util
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from plif_lightning.dynamics import reference
from plif_lightning.errors import UserError
from plif_lightning.kernels import fused
from plif_lightning.kernels.bits import pixels_of, share_of_spikes
from plif_lightning.kernels.layout import interpreted
from plif_lightning.kernels.policy import TYPES, WORTH_LOOKING, Op, OpName, Sparse, choose

BackendName = Literal["auto", "reference", "cpu", "triton"]


# numba does not support float16; the Triton kernels compute in float32.
_UNSUPPORTED_TYPE = {"cpu": torch.float16, "triton": torch.float64}


def triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def _name(weight: Tensor, binary: bool) -> OpName:
    """The operator of a layer; arguments as in `Backend.skips_silence`."""
    if weight.dim() != 4:
        return "linear"
    return "conv" if binary else "events"


def _is_faster(op: Op, x: Tensor, weight: Tensor) -> bool:
    """True if an operator, or in training the gradient of its weight, is faster event-driven at the density of x."""
    density = share_of_spikes(pixels_of(x) if op.size else x.flatten(0, -2))
    trained = torch.is_grad_enabled() and weight.requires_grad
    return choose(op, density) or (trained and choose(op.of_weight(), density))


class Backend:
    """Selects the implementation by the device of the data: plain PyTorch (reference), numba (cpu) or Triton.

    Args:
        name: `auto` takes the fastest form that runs on the device of the data: numba kernels on a CPU, Triton on a
            CUDA device, otherwise the reference. `reference`, `cpu` and `triton` force one.
        sparse: skip silent inputs in convolutions and FC layers of spikes on a CPU: `auto` where it is faster, by the
            density of the input and the break-even density measured on this machine; `never` and `always` are for
            tests.

    Raises:
        UserError: an unknown name, or one that cannot run on this machine.
    """

    def __init__(self, name: BackendName = "auto", sparse: Sparse = "auto") -> None:
        for argument, value, known in (("sparse", sparse, Sparse), ("backend", name, BackendName)):
            if value not in get_args(known):
                raise UserError(f"{argument} must be one of {', '.join(get_args(known))}, got {value!r}.")
        if name == "triton" and not triton_is_there():
            raise UserError("backend='triton' needs the package triton, which is not installed: pass backend='auto'.")
        self.name, self.sparse = name, sparse
        self._triton = triton_is_there()
        self._triton_runs_on = "cpu" if interpreted() else "cuda"

    def chosen(self, device: torch.device) -> str:
        """The form that runs on this device: reference, cpu or triton.

        Raises:
            UserError: the requested backend does not run on this device.
        """
        if self.name == "auto":
            if device.type == "cuda" and self._triton:
                return "triton"
            return "cpu" if device.type == "cpu" else "reference"
        runs_on = {"reference": device.type, "cpu": "cpu", "triton": self._triton_runs_on}[self.name]
        if device.type != runs_on:
            raise UserError(
                f"backend={self.name!r} runs on {runs_on}, but the data is on {device.type}: pass --model.backend auto."
            )
        return self.name

    def fuses(self, device: torch.device, dtype: torch.dtype | None = None) -> bool:
        """True if the fused forms run on this device in this type, False for the reference; errors as `chosen`."""
        chosen = self.chosen(device)
        if dtype is not None and dtype == _UNSUPPORTED_TYPE.get(chosen):
            if self.name == "auto":
                return False
            raise UserError(f"backend={chosen!r} does not compute in {str(dtype)[6:]}: pass --model.backend auto.")
        return chosen != "reference"

    def skips_silence(self, x: Tensor, weight: Tensor, binary: bool = True, stride: int = 1) -> bool:
        """True if the event-driven form of a layer, or of its weight's gradient, is likely faster for x.

        The density is estimated from a sample of x, so that dense inputs need not be packed into bits. The operators
        then count all of x and choose a form themselves, by `sparse`.

        Args:
            x: [N, C, H, W], C innermost in memory, or [*, K], in the type that the layer computes in.
            weight: weight of a convolution [O, C, K, K], or of an FC layer [O, K].
            binary: x holds only zeros and ones; False for event counts, the input of a network's first block.
            stride: of the convolution.
        """
        if self.sparse == "never" or x.dtype not in TYPES or x.device.type != "cpu" or self.chosen(x.device) != "cpu":
            return False
        if self.sparse == "always":
            return True
        op = Op.of(_name(weight, binary), x, weight, stride)
        if op.multiplications < WORTH_LOOKING or op.inputs != weight.shape[1]:
            return False
        return torch.compiler.is_compiling() or _is_faster(op, x, weight)

    def run(self, x: Tensor, *arguments: Any, **settings: Any) -> tuple[Tensor, reference.States]:
        """`reference.run` in the form of this backend; same arguments."""
        run = fused.run if self.fuses(x.device, x.dtype) else reference.run
        return run(x, *arguments, **settings)
