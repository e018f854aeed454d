"""Seconds and peak memory of a training step of the paper's networks, each in a process of its own.

    python benchmarks/step.py [--batch 2] [--steps 5] [--compile] [CONFIG ...]

The input is what the data module would give: random images, or counts of random events in one byte each. Forward,
the loss of the configuration, backward, fused Adam; the first step warms up, and compiles where that is asked for.
Memory is the process's peak beyond what it held before the first step, weights and optimiser state included.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plif_lightning.runtime.process import tune_allocator

tune_allocator()  # as main.py does

import torch
from torch import nn

from plif_lightning import configs
from plif_lightning.network import SpikingNetwork
from plif_lightning.runtime.process import processor
from plif_lightning.training.losses import LOSSES


def inputs(name: str, net: SpikingNetwork, batch: int) -> torch.Tensor:
    shape, _ = configs.INPUTS[name]
    if shape[0] == 2:  # about as many events in a pixel and step as a recording of a DVS128 has
        return torch.poisson(torch.full((net.time_steps, batch, *shape), 0.2)).to(torch.uint8)
    return torch.randn(batch, *shape)


def make_fire(module: nn.Module) -> None:
    """Scales BN and FC layers so that a new network fires in every layer from the first step on."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.weight, 4.0)
            nn.init.constant_(part.bias, 0.5)
        if isinstance(part, nn.Linear):
            part.weight.data *= 4


def peak() -> int:
    """Most memory that this process ever held [bytes]; getrusage would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def peak_of_imports() -> int:
    """What is held before anything is computed [bytes], PyTorch's compiler included.

    Any optimiser and any operator of its own loads that at its first call, some 200 MiB with what it needs.
    """
    importlib.import_module("torch._dynamo")
    return peak()


def measure(name: str, batch: int, steps: int, compiled: bool = False) -> None:
    torch.manual_seed(0)
    before = peak_of_imports()
    net, model = configs.network_of(name), configs.shipped_settings()[name]["model"]
    if compiled:
        net.compile()
    loss_of = LOSSES[model["loss"]]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    x = inputs(name, net, batch)
    label = torch.randint(0, configs.INPUTS[name][1], (batch,))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss_of(net(x), label).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    first = seconds.pop(0)
    print(
        f"{name:14} T = {net.time_steps:2}, batch {batch}: {statistics.median(seconds):.3f} s a step "
        f"[{min(seconds):.3f}, {max(seconds):.3f}], the first {first:.1f} s, peak {(peak() - before) / 2**20:,.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["cifar10dvs", "dvsgesture"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="the whole network, with torch.compile")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    if arguments.here:
        measure(arguments.configs[0], arguments.batch, arguments.steps, arguments.compile)
        return
    print(f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads, fp32")
    for name in arguments.configs:
        size = ["--batch", str(arguments.batch), "--steps", str(arguments.steps)]
        size += ["--compile"] if arguments.compile else []
        subprocess.run([sys.executable, __file__, name, *size, "--here"], check=True)


if __name__ == "__main__":
    main()
