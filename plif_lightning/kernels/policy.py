"""Dense or event-driven: which form of an operator is faster at a given density, on this machine.

The break-even density of an operator, the share of non-zero inputs up to which its event-driven form is faster, is
measured once per shape, on first use, and cached on disk, so a resumed or repeated run takes the same forms. If the
cache is not writable, nothing is measured and a constant is used.
"""

import json
import logging
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plif_lightning.runtime.files import written_whole
from plif_lightning.runtime.locks import file_lock
from plif_lightning.runtime.surroundings import processor
from plif_lightning.runtime.timing import least_seconds
from plif_lightning.runtime.version import __version__

_log = logging.getLogger(__name__)

Sparse = Literal["auto", "never", "always"]
OpName = Literal["conv", "conv_weight", "linear", "linear_weight", "events", "events_weight"]
# Types of the event-driven loops; float64 and float16 always take the dense form.
TYPES = (torch.float32, torch.bfloat16)
# Multiplications of the dense form below which even sampling the density costs too much.
WORTH_LOOKING = 2**24
# Input rows of a measurement: enough to keep all threads busy.
_PIXELS, _SAMPLES = 4096, 128
_DENSITIES = (0.04, 0.16)
# The event-driven form must be faster by at least this factor.
_MARGIN = 1.05
# Upper limit of the extrapolated break-even density.
_MOST = 0.4
# Break-even density if nothing can be measured: that of the slowest machine tested.
_UNMEASURED = 0.08


class Op(NamedTuple):
    """The properties of an operator that its speed depends on.

    Attributes:
        name: conv and linear: layers of spikes; events: a block of convolution, neurons and pool on frames of events;
            with `_weight`, the gradient of its weight.
        dtype: dtype of the input.
        rows: input rows: pixels of all images, or samples.
        inputs: input values per row: channels or features.
        outputs: output channels or features.
        size: (H, W) of feature maps; empty for an FC layer.
        kernel: K of a K x K convolution with padding K // 2.
        stride: of the convolution.
    """

    name: OpName
    dtype: torch.dtype
    rows: int
    inputs: int
    outputs: int
    size: tuple[int, ...] = ()
    kernel: int = 3
    stride: int = 1

    @classmethod
    def of(cls, name: OpName, x: Tensor, weight: Tensor, stride: int = 1) -> "Op":
        """The operator of a convolution of x [*, C, H, W] or an FC layer of x [*, K], by the weight's shape."""
        if weight.dim() == 2:
            return cls(name, x.dtype, math.prod(x.shape[:-1]), x.shape[-1], len(weight))
        *images, channels, height, width = x.shape
        rows = math.prod(images) * height * width
        return cls(name, x.dtype, rows, channels, len(weight), (height, width), weight.shape[-1], stride)

    def of_weight(self) -> "Op":
        """The gradient of this operator's weight."""
        return self._replace(name=f"{self.name}_weight")  # type: ignore[arg-type]

    @property
    def multiplications(self) -> int:
        """Multiplications of the dense form."""
        taps = self.kernel**2 / self.stride**2 if self.size else 1
        return int(self.rows * self.inputs * self.outputs * taps)


Timed = Callable[[], Any]
# Returns the event-driven and the dense form of an operator on random input of a density, ready to be timed.
Candidates = Callable[[Op, float], tuple[Timed, Timed]]
_candidates: dict[str, Candidates] = {}


def candidates_of(*names: OpName) -> Callable[[Candidates], Candidates]:
    """Decorator: register the function that builds the candidates of these operators."""

    def register(make: Candidates) -> Candidates:
        _candidates.update(dict.fromkeys(names, make))
        return make

    return register


def candidates(op: Op, density: float) -> tuple[Timed, Timed]:
    """The event-driven and the dense form of an operator on random input, ready to be timed."""
    return _candidates[op.name](op, density)


def choose(op: Op, density: float, sparse: str = "auto") -> bool:
    """True to take the event-driven form of an operator, False for the dense one.

    Args:
        op: the operator and its shape.
        density: share of its inputs that are not zero.
        sparse: `auto` takes the faster one; `never` and `always` ignore the density.
    """
    if op.dtype not in TYPES or sparse == "never" or not op.rows:
        return False
    return sparse == "always" or density <= break_even(op)


def break_even(op: Op) -> float:
    """The density up to which the event-driven form of an operator is faster, 0 to 1."""
    return _break_even(_representative(op), torch.get_num_threads())


def _representative(op: Op) -> Op:
    """The operator of similar or smaller size that is measured in place of this one, to measure few shapes quickly."""
    if not op.size:
        return op._replace(rows=min(_SAMPLES, _rounded(op.rows)))
    pixels = op.size[0] * op.size[1]
    images = min(op.rows // pixels, max(1, _PIXELS // pixels))
    return op._replace(rows=_rounded(images) * pixels)


def _rounded(number: int) -> int:
    """Round up to one of eight numbers between two powers of two, so that there are few shapes to measure."""
    step = 1 << max(0, (number - 1).bit_length() - 4)
    return -(-number // step) * step


@cache
def _break_even(op: Op, threads: int) -> float:
    shape = "x".join(map(str, (op.rows, op.inputs, op.outputs, *op.size)))
    window = "" if (op.kernel, op.stride) == (3, 1) else f" k{op.kernel}s{op.stride}"
    name = f"{op.name} {str(op.dtype).removeprefix('torch.')} {shape}{window}, {threads} threads"
    # Spinning OpenMP threads slow the kernels' own threads down by up to a factor of two.
    spinning = os.environ.get("GOMP_SPINCOUNT", "default")
    machine = f"{processor()}, torch {torch.__version__}, plif_lightning {__version__}, GOMP_SPINCOUNT {spinning}"
    file = _file()
    if file is None:
        return _UNMEASURED
    try:
        # One process measures while the others wait, then read its result.
        with file_lock(file.with_suffix(".lock")):
            known = _known(file)
            found = known.setdefault(machine, {}).get(name)
            if not isinstance(found, float) or not 0 <= found <= _MOST:
                found = known[machine][name] = round(_measured(op), 4)
                with written_whole(file) as whole:
                    json.dump(known, whole, indent=1)
                _log.info("%s: event-driven up to a density of %.1f %% (%s)", name, 100 * found, file)
            return found
    except (OSError, NotImplementedError):  # not writable, or a file system without locks
        return _UNMEASURED


def _file() -> Path | None:
    from plif_lightning.runtime.compiled import compiled_code  # deferred: imports numba

    folder = compiled_code()
    return None if folder is None else folder / "sparse_limits.json"


def _known(file: Path) -> dict[str, Any]:
    """Cached measurements by machine and operator; empty if the file is missing or damaged."""
    try:
        known = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(limits, dict) for limits in known.values()) else {}


def _measured(op: Op) -> float:
    """The density at which the event-driven time, a line through two measurements, equals the dense time."""
    for _ in range(3):
        times, dense_times = zip(*(least_seconds(*candidates(op, density)) for density in _DENSITIES), strict=True)
        a, b = times
        if b > a:  # otherwise the machine was busy
            found = _DENSITIES[0] + (min(dense_times) / _MARGIN - a) / (b - a) * (_DENSITIES[1] - _DENSITIES[0])
            return min(max(found, 0.0), _MOST)
    return _UNMEASURED
