"""Each part of a training step, or of inference, beside its bound on this machine.

    python benchmarks/roofline.py [--config fashionmnist] [--batch 16] [--bf16] [--inference] [--steps 5]

A part is a PyTorch operator, or a kernel of ours, with the shapes that it was called with. Its bound is the larger of
its arithmetic at the peak, and its bytes at the bandwidth, which probes measure in the same run: the fastest of
products of square matrices and of a convolution, in the part's type, and of sums of arrays that exceed every cache.
Arithmetic of an event-driven part is that of inputs that are not zero; neurons are the operations of their equations.
Bytes are those of arguments and results, each once; they may lie in a cache, so a part can be faster than its bound.
"share" is the part's of the whole; parts below 1 % are added up as "others".
"""

import argparse
import inspect
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.networks import fire_as_trained, training_step
from benchmarks.step import inputs
from plif_lightning.configs import network_of
from plif_lightning.dynamics.equations import program
from plif_lightning.dynamics.expression import in_order
from plif_lightning.kernels import block, ops, sparse
from plif_lightning.kernels.bits import number_of_spikes
from plif_lightning.runtime.process import processor


def least(run: Callable[[], Any], seconds: float = 1.0) -> float:
    """Seconds of the fastest of some calls."""
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def probes() -> tuple[dict[torch.dtype, float], float]:
    """Multiply-adds a second of each type, and bytes a second."""
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.rand(2048, 2048).to(dtype) for _ in range(2))
        x, weight = torch.rand(64, 128, 28, 28).to(dtype), torch.rand(128, 128, 3, 3).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        by_conv = _conv(x, weight) / least(lambda x=x, w=weight: F.conv2d(x, w, padding=1))
        peaks[dtype] = max(2048**3 / least(lambda a=a, b=b: a @ b), by_conv)
    x, y = torch.rand(2**26), torch.rand(2**26)
    out = torch.empty_like(x)
    return peaks, 3 * x.numel() * 4 / least(lambda: torch.add(x, y, out=out))


# Arithmetic of operators [multiply-adds]; any other one is a few of them for each value, far below its bytes.


def _conv(x: Tensor, weight: Tensor, *_: Any) -> float:
    return x[:, :1].numel() * weight.numel()


def _density(x: Tensor) -> float:
    return (x != 0).float().mean().item()


def _neurons(y: Tensor, steps: int, key: str, backward: bool = False) -> float:
    """Operations of neurons: half of them count, as a multiply-add is two."""
    p = program(key)
    values = [p.spike, *p.after]
    forward, back = len(in_order(values)), [v for v in (p.by_x, *p.by_states, *p.by_parameters) if v is not None]
    return y[0].numel() * steps * (forward + (len(in_order(back)) if backward else 0)) / 2


WORK: dict[str, Callable[..., float]] = {
    "aten.convolution": _conv,
    "aten.convolution_backward": lambda grad, x, weight, *a: _conv(x, weight) * sum(a[-1][:2]),
    "aten.mm": lambda a, b: a.shape[0] * a.shape[1] * b.shape[1],
    "mkldnn._linear_pointwise": lambda a, weight, *_: a.shape[0] * weight.numel(),
    "fire": lambda y, *a: _neurons(y, a[4], a[6]),
    "fire_backward": lambda y, *a: _neurons(y, a[8], a[10], backward=True),
    "conv_events": lambda x, table, *_, stride=1: number_of_spikes(x.bits) * table.numel() / x.shape[1] / stride**2,
    "conv_weight_events": lambda bits, grad, window: (
        number_of_spikes(bits) * (window.kernel / window.stride) ** 2 * grad.shape[1]
    ),
    "linear_events": lambda bits, weight: number_of_spikes(bits) * len(weight),
    "linear_weight_events": lambda bits, grad, _: number_of_spikes(bits) * grad.shape[1],
    "conv_fire_pool": lambda x, conv, *a: _block(x, conv, a[13]),
    "conv_fire_pool_backward": lambda x, conv, *a: _block(x, conv, a[7], backward=True),
}


def _block(x: Tensor, conv: Tensor, neuron: str, backward: bool = False) -> float:
    """A convolution of what is not zero, in the backward pass computed again, and its neurons."""
    products = x[:, :, :1].numel() * conv.numel() * _density(x)
    return (1 + backward) * products + _neurons(x[:, :, :1], len(x), neuron, backward) * len(conv)


# Our kernels, which are plain functions on a CPU: where each is looked up when it is called.
KERNELS: dict[str, tuple[Any, str]] = {
    **{name: (ops, name) for name in ("fire", "fire_backward", "moments", "normalize_backward")},
    **{name: (sparse, name) for name in ("conv_events", "pack_bits", "unpack_bits")},
    **{name: (sparse, f"_{name}") for name in ("conv_weight_events", "linear_events", "linear_weight_events")},
    "conv_fire_pool": (block._ConvFirePool, "forward"),
    "conv_fire_pool_backward": (block, "_backward_of_events"),
    "conv_fire_pool_backward, dense": (block, "_backward_in_bands"),
    "patch_moments": (block.PatchMoments, "of"),
}


# Why a part stays below half of its bound.
_GATHER = "adds rows of a table that a list selects: each row is a load from the second-level cache, for 16 additions"
_ROWS = "reads and writes rows of a workspace several times for each value, from the first- and second-level cache"
_MANY = "reads its argument in several passes, or is too small for two threads"
WHY = {
    **dict.fromkeys(("conv_events", "conv_weight_events", "linear_events", "linear_weight_events"), _GATHER),
    **dict.fromkeys(("conv_fire_pool", "conv_fire_pool_backward"), _GATHER),
    **dict.fromkeys(("fire", "fire_backward", "moments"), _ROWS),
    "patch_moments": "products of every two inputs of a patch, in float64, one after another",
    "aten.bernoulli_.float": "PyTorch draws on one thread",
}


class Parts(TorchDispatchMode):
    """Times every operator that is called below autograd, and our kernels, which are one part with all they call.

    Attributes:
        found: (operator, shapes) to seconds of each call, arithmetic, bytes and type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], list[tuple[float, float, float, torch.dtype]]] = defaultdict(list)
        self._inside = False
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> "Parts":
        for name, (owner, attribute) in KERNELS.items():
            original = inspect.getattr_static(owner, attribute)
            self._undo.append(partial(setattr, owner, attribute, original))
            timed = self._timed(name, getattr(owner, attribute))
            setattr(owner, attribute, staticmethod(timed) if inspect.isclass(owner) else timed)
        return super().__enter__()

    def __exit__(self, *of_error: Any) -> None:
        super().__exit__(*of_error)
        for undo in self._undo:
            undo()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._inside:
            return function(*args, **(kwargs or {}))
        return self._part(str(function).removesuffix(".default"), function, args, kwargs or {})

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            try:
                return self._part(name, function, args, kwargs)
            finally:
                self._inside = False

        return run

    def _part(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds = time.perf_counter() - start
        if seconds > 2e-5:
            args = args[1:] if name == "conv_fire_pool" else args  # without the context of the autograd function
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            tensors = {x.data_ptr(): x for x in [*given, *tree_leaves(result)] if isinstance(x, Tensor) and x.numel()}
            shapes = " ".join("x".join(map(str, x.shape)) for x in given if x.dim() > 1)
            work = WORK[name](*args, **kwargs) if name in WORK else 0.0
            dtype = next((x.dtype for x in given if x.is_floating_point()), torch.float32)
            moved = float(sum(x.numel() * x.element_size() for x in tensors.values()))
            self.found[name, shapes].append((seconds, work, moved, dtype))
        return result


def show(parts: Parts, whole: float, steps: int) -> None:
    peaks, bandwidth = probes()
    rates = ", ".join(f"{str(dtype)[6:]} {2e-9 * rate:,.0f} GFLOP/s" for dtype, rate in peaks.items())
    print(f"peaks: {rates}; bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    print(f"{'part':34} {'shapes':58} {'ms':>8} {'share':>6} {'bound':>8} {'of':>11} {'reached':>8}")
    rows = []
    for (name, shapes), calls in parts.found.items():
        of_step = len(calls) / steps
        seconds = statistics.median(call[0] for call in calls) * of_step
        _, work, moved, dtype = calls[-1]
        by_work, by_bytes = work / peaks.get(dtype, peaks[torch.float32]), moved / bandwidth
        rows.append((seconds, name, shapes, max(by_work, by_bytes) * of_step, by_work > by_bytes))
    others, below = whole, {}
    for seconds, name, shapes, bound, arithmetic in sorted(rows, reverse=True):
        if seconds < 0.01 * whole:
            break
        others -= seconds
        of = "arithmetic" if arithmetic else "bytes"
        print(
            f"{name[:34]:34} {shapes[:58]:58} {1e3 * seconds:8.2f} {seconds / whole:6.1%} {1e3 * bound:8.2f} {of:>11} "
            f"{bound / seconds:8.0%}"
        )
        if bound < 0.5 * seconds:
            below[name] = WHY.get(name, _MANY)
    print(f"{'others':34} {'':58} {1e3 * others:8.2f} {others / whole:6.1%}\nwhole {1e3 * whole:.1f} ms")
    for name, why in below.items():
        print(f"{name} {why}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fashionmnist")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    net = network_of(arguments.config, norm_statistics="all_steps", pool_ties="first")
    x = inputs(arguments.config, net, arguments.batch)
    fire_as_trained(net, x, training=not arguments.inference)
    label = torch.randint(0, net.num_classes, (arguments.batch,))
    if arguments.inference:
        net.eval()

        def step() -> Any:
            with torch.no_grad():
                return net(x)
    else:
        step = training_step(net, net.parameters(), x, label, arguments.bf16)
    step()
    step()
    whole = least(step, 3.0)
    parts = Parts()
    with parts:
        for _ in range(arguments.steps):
            step()
    show(parts, whole, arguments.steps)


if __name__ == "__main__":
    main()
