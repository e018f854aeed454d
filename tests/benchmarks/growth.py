"""How a training step's time and memory grow with T and with the batch, ours beside SpikingJelly 2.0.

    python tests/benchmarks/growth.py [--config fashionmnist] [--steps 5] [--most 64]

Every figure is a process of its own: peak memory beyond what it held after its imports, median time of the steps after
the first. Same network, weights, fused Adam, fp32; BN over all time-steps together, the first winner in a pool.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does; it serves the other too

import torch

from plif_lightning.runtime.process import processor
from tests.benchmarks.networks import alone

CONTENDERS = ("ours", "SpikingJelly, multi-step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fashionmnist")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--here", nargs=3, help="measure in this process: T BATCH CONTENDER")
    given = parser.parse_args()
    if given.here:
        time_steps, batch, title = given.here
        seconds, mib = alone(given.config, int(batch), title, given.steps + 1, int(time_steps))
        print(statistics.median(seconds[1:]), mib)
        return
    print(f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads, {given.config}, fp32")
    sizes = [2**i for i in range(given.most.bit_length())]
    print("   T  batch | step [ms]: ours, SpikingJelly, ratio | peak [MiB]: ours, SpikingJelly, ratio")
    for steps, batch in [*((t, 16) for t in sizes), *((8, n) for n in sizes if n != 16)]:
        rows = []
        for title in CONTENDERS:
            command = [sys.executable, __file__, "--config", given.config, "--steps", str(given.steps)]
            command += ["--here", str(steps), str(batch), title]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append([float(value) for value in done.stdout.split()])
        (ms, mib), (their_ms, their_mib) = rows
        print(
            f"{steps:4} {batch:6} | {1e3 * ms:8.1f} {1e3 * their_ms:10.1f} {their_ms / ms:6.2f} | "
            f"{mib:8,.0f} {their_mib:8,.0f} {their_mib / mib:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
