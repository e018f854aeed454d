"""Break-even densities: up to which share of non-zero inputs an operator is faster event-driven than dense.

    python benchmarks/sparse.py [--operator conv] [--dtype bfloat16] [--rounds 9] [--widths 64 128] ...

`BREAK_EVEN` in plif_lightning/kernels/density.py is made from its last lines. Every operator is timed as a network
calls it, in both forms, in alternation, on random spikes; packing them is part of the event-driven output. The least
time of all rounds counts, because other load only adds. The break-even density lies on a line through the neighbouring
densities that were timed. `_weight` is the gradient of the operator's weight. The whole grid of an operator takes
minutes: `--widths 16 32 64 128 256 --sides 4 7 8 14 28 --kernels 3 5`.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does

import torch
from torch import Tensor

from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.leaky import leaky
from plif_lightning.kernels import Norm, conv_fire_pool, conv_of_spikes, linear_of_spikes
from plif_lightning.kernels.dense import conv2d, linear
from plif_lightning.kernels.density import ALWAYS, NEVER, Skip
from plif_lightning.runtime.process import processor

DENSITIES = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4]
# Widths and sides by default.
CELLS = {"conv": ([64, 128], [8, 14, 28]), "linear": ([512, 2048], [1]), "events": ([64, 128], [32, 64])}
OPERATORS = [f"{name}{of}" for name in CELLS for of in ("", "_weight")]
# Input channels and time-steps of a block of events; pixels of all images (of a step), and rows of an FC layer.
POLARITIES, STEPS, PIXELS, ROWS = 2, 8, 4096, 128


class Cell(NamedTuple):
    """An operator on inputs of a shape.

    Attributes:
        width: inputs and outputs, or channels; of events, which have two channels, the outputs.
        side: height and width of the maps; 1 for an FC layer.
        batch: images, of events those of a time-step, or rows of an FC layer.
    """

    operator: str
    dtype: torch.dtype
    width: int
    side: int
    kernel: int
    stride: int
    batch: int

    def __str__(self) -> str:
        shape = f"{self.width:5} wide, {self.batch:4} rows"
        if not self.operator.startswith("linear"):
            shape = f"{self.width:5} wide, {self.side}x{self.side}, k{self.kernel}s{self.stride}, {self.batch} images"
        return f"{self.operator} {str(self.dtype)[6:]}, {shape}"


def spikes(cell: Cell, density: float) -> Tensor:
    """Random input, channels innermost in memory."""
    generator = torch.Generator().manual_seed(0)
    if cell.operator.startswith("linear"):
        return torch.rand(cell.batch, cell.width, generator=generator).lt(density).to(cell.dtype)
    events = cell.operator.startswith("events")
    images, channels = (STEPS * cell.batch, POLARITIES) if events else (cell.batch, cell.width)
    x = torch.rand(images, cell.side, cell.side, channels, generator=generator).lt(density).to(cell.dtype)
    x = x.permute(0, 3, 1, 2)
    return x.unflatten(0, (STEPS, -1)) if events else x


def output(cell: Cell, x: Tensor, weight: Tensor, skip: Skip) -> Tensor:
    """The operator's output, as a network computes it; in its dense form spikes are not packed."""
    if cell.operator.startswith("events"):
        zero, one = torch.zeros(1, cell.width), torch.ones(1, cell.width)
        norm, dynamics = Norm(one[0], zero[0], zero, one), leaky(torch.tensor(0.5), Firing())
        return conv_fire_pool(x, weight, norm, dynamics, pool="max_first", skip=skip)
    if cell.operator.startswith("linear"):
        return linear_of_spikes(x, weight, skip) if skip.any else linear(x, weight.to(x.dtype), None)
    if skip.any:
        return conv_of_spikes(x, weight, skip, cell.stride)
    return conv2d(x, weight.to(x.dtype), stride=cell.stride, padding=cell.kernel // 2)


def form(cell: Cell, x: Tensor, skip: Skip) -> Callable[[], Any]:
    """A form of the operator, ready to be timed. The weight is in float32, as under autocast; that of events is not."""
    events, size = cell.operator.startswith("events"), (cell.kernel, cell.kernel)
    inputs = POLARITIES if events else cell.width
    shape = (cell.width, inputs) if cell.operator.startswith("linear") else (cell.width, inputs, *size)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight = weight.to(cell.dtype) if events else weight
    if not cell.operator.endswith("_weight"):

        def run() -> Tensor:
            with torch.no_grad():
                return output(cell, x, weight, skip)

        return run
    y = output(cell, x, weight.requires_grad_(), skip)
    grad = torch.rand_like(y)
    return lambda: torch.autograd.grad(y, weight, grad, retain_graph=True)


def least(forms: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Seconds of the fastest call of each form, in alternation; the first round warms up."""
    times = [math.inf] * len(forms)
    for i in range(rounds + 1):
        for j, run in enumerate(forms):
            start = time.perf_counter()
            run()
            times[j] = min(times[j], time.perf_counter() - start) if i else math.inf
    return times


def break_even(densities: list[float], events: list[float], dense: float) -> float:
    """The density at which both forms take as long; 0 or the largest one where they do not cross."""
    if events[0] > dense:
        return 0.0
    for (low, a), (high, b) in itertools.pairwise(zip(densities, events, strict=True)):
        if b > dense:
            return low + (high - low) * (dense - a) / (b - a)
    return densities[-1]


def measure(cell: Cell, densities: list[float], rounds: int) -> float:
    """Print the seconds of a cell; returns its break-even density."""
    forms = [form(cell, spikes(cell, density), ALWAYS) for density in densities]
    dense, *events = least([form(cell, spikes(cell, densities[0]), NEVER), *forms], rounds)
    # More spikes take longer: a time above that of a higher density is other load.
    events = list(itertools.accumulate(reversed(events), min))[::-1]
    found = break_even(densities, events, dense)
    by_density = ", ".join(f"{1e3 * s:.2f} at {100 * d:g} %" for d, s in zip(densities, events, strict=True))
    more = " or more" if found == densities[-1] else ""
    print(f"{cell}: {found:.2f}{more}; dense {1e3 * dense:.2f} ms, event-driven {by_density}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operator", nargs="+", choices=OPERATORS, default=OPERATORS)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--widths", type=int, nargs="+", help="channels, or features of an FC layer")
    parser.add_argument("--sides", type=int, nargs="+", help="of the maps")
    parser.add_argument("--kernels", type=int, nargs="+", default=[3], help="events have 3 alone")
    parser.add_argument("--strides", type=int, nargs="+", default=[1], help="events have 1 alone")
    parser.add_argument("--batch", type=int, help=f"images or rows; by default {PIXELS} pixels, {ROWS} rows")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    amx = "with AMX" if torch.cpu._is_amx_tile_supported() else "without AMX"
    print(f"{processor()} {amx}, torch {torch.__version__}, {given.threads} threads, {given.rounds} rounds")
    densities, summary = sorted(given.densities), []
    for operator, dtype in itertools.product(given.operator, given.dtype):
        name = operator.removesuffix("_weight")
        widths, sides = given.widths or CELLS[name][0], given.sides or CELLS[name][1]
        windows = list(itertools.product(given.kernels, given.strides)) if name == "conv" else [(3, 1)]
        cells = []
        for width, side, (kernel, stride) in itertools.product(widths, [1] if name == "linear" else sides, windows):
            batch = given.batch or (ROWS if name == "linear" else max(1, PIXELS // side**2))
            cells.append(Cell(operator, getattr(torch, dtype), width, side, kernel, stride, batch))
        found = [measure(cell, densities, given.rounds) for cell in cells]
        spread = f"median {statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}] of {len(found)} shapes"
        summary.append(f"  {operator:14} {dtype:8} {spread}")
    print("break-even densities", *summary, sep="\n")


if __name__ == "__main__":
    main()
