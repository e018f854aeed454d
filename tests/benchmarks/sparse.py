"""Layers that skip silent inputs beside the dense library, over the share of spikes, and how near to the cache's limit.

    python tests/benchmarks/sparse.py [--rounds 7] [--threads 2] [--plot sparse.png]

Forward and gradient of the weight, of layers of the paper's networks, on random spikes; what they need to know of the
input included. `rows` is how many bytes of weight (or gradient) rows are added up in a second; the limit is what one
dot product over vectors in the second-level cache reads in that time, times the threads.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plif_lightning.runtime.allocator import tune_allocator

tune_allocator()  # as main.py does

import numpy as np
import torch

from plif_lightning.kernels.policy import Op, break_even, candidates
from plif_lightning.runtime.surroundings import processor
from tests.benchmarks.networks import alternate

SHARES = (0.01, 0.03, 0.07, 0.1, 0.14, 0.2, 0.3)
# rows, inputs, outputs and size of a map
LAYERS = {
    "conv 128 to 128, 14x14, 8 images": (8 * 196, 128, 128, 14, 14),
    "conv 128 to 128, 14x14, 128 images": (128 * 196, 128, 128, 14, 14),
    "conv 128 to 128, 64x64, 4 images": (4 * 4096, 128, 128, 64, 64),
    "FC 6272 to 2048, 128 rows": (128, 6272, 2048),
    "FC 8192 to 512, 40 rows": (40, 8192, 512),
}


def bandwidth() -> float:
    """Bytes a second that one thread reads from its second-level cache."""
    a = np.ones(2**16, np.float32)
    b = np.ones_like(a)
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(20):
            np.dot(a, b)
        seconds.append((time.perf_counter() - start) / 20)
    return 2 * a.nbytes / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    reads = bandwidth() * arguments.threads
    machine = f"{processor()}, torch {torch.__version__}, {arguments.threads} threads"
    print(f"{machine}; reads {reads / 1e9:.0f} GB/s from its caches")
    curves: dict[tuple[str, str], list[float]] = {}
    for title, shape in LAYERS.items():
        kind = title.split()[0].lower().replace("fc", "linear")
        for what in (kind, f"{kind}_weight"):
            for dtype in (torch.float32, torch.bfloat16):
                op = Op(what, dtype, *shape[:3], shape[3:])
                name = str(dtype).removeprefix("torch.")
                print(f"{title}, {what.removeprefix(kind + '_')}, {name}: worth it up to ", end="")
                print(f"{100 * break_even(op):.0f} %")
                for share in SHARES:
                    events, dense = candidates(op, share)
                    times = alternate({"events": events, "dense": dense}, arguments.rounds)
                    ratios = [d / e for e, d in zip(times["events"], times["dense"], strict=True)]
                    taps = 9 if kind == "conv" else 1
                    row_bytes = share * shape[0] * shape[1] * taps * shape[2] * dtype.itemsize
                    seconds = statistics.median(times["events"])
                    rate = row_bytes / seconds
                    print(
                        f"  {100 * share:4.0f} %: {1e3 * seconds:7.2f} ms, dense "
                        f"{1e3 * statistics.median(times['dense']):7.2f}, {statistics.median(ratios):5.2f}x "
                        f"[{min(ratios):.2f}, {max(ratios):.2f}], rows {rate / 1e9:4.0f} GB/s, "
                        f"{100 * rate / reads:3.0f} % of the limit"
                    )
                    curves.setdefault((title, f"{what.removeprefix(kind + '_')}, {name}"), []).append(
                        statistics.median(ratios)
                    )
    if arguments.plot:
        draw(curves, machine, arguments.plot)


def draw(curves: dict[tuple[str, str], list[float]], machine: str, file: Path) -> None:
    import matplotlib.pyplot as plt

    titles = list(dict.fromkeys(title for title, _ in curves))
    figure, axes = plt.subplots(1, len(titles), figsize=(4 * len(titles), 3.6), sharey=True, layout="constrained")
    for axis, title in zip(np.atleast_1d(axes), titles, strict=True):
        for (of, form), ratios in curves.items():
            if of == title:
                axis.plot([100 * share for share in SHARES], ratios, marker="o", markersize=3, label=form)
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set(title=title, xlabel="inputs that spike [%]", yscale="log", yticks=[0.5, 1, 2, 5, 10, 20])
        axis.set_yticklabels(["0.5", "1", "2", "5", "10", "20"])
        axis.title.set_fontsize(9)
    np.atleast_1d(axes)[0].set_ylabel("times as fast as dense")
    np.atleast_1d(axes)[0].legend(fontsize=8)
    figure.suptitle(machine, fontsize=9)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
