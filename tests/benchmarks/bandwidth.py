"""Data parallelism on paper: bytes of a step's gradients against the computation that may hide them.

    python tests/benchmarks/bandwidth.py [--rate 100]

A ring moves 2 (n - 1) / n times the gradients through each GPU's link; two thirds of a step's arithmetic, the backward
pass, run meanwhile. Nothing here is measured.
"""

import argparse

from torch import nn

from plif_lightning import configs

LINKS = {"25 Gbit/s": 25e9 / 8, "400 Gbit/s": 400e9 / 8}
GPUS = (8, 64, 512)


def macs(name: str) -> tuple[int, int]:
    """(learned values, multiply-accumulates of one sample's forward pass over T time-steps)."""
    network = configs.network_of(name)
    _, height, width = network.input_shape
    static = name in ("mnist", "fashionmnist", "cifar10")
    total, first = 0, True
    for block in network.encoder:
        weight = block.conv.weight
        steps = 1 if first and static else network.time_steps
        total += weight.numel() * height * width * steps
        if block.pool is not None:
            height, width = height // 2, width // 2
        first = False
    total += sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear)) * network.time_steps
    return sum(p.numel() for p in network.parameters()), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, help="arithmetic that a GPU attains [TFLOP/s]")
    rate = parser.parse_args().rate * 1e12
    links = " | ".join(f"{name}, {n} GPUs" for name in LINKS for n in GPUS)
    print(f"| network | gradients [MB] | GFLOP a sample | {links} |\n|{'---|' * (3 + len(LINKS) * len(GPUS))}")
    for name in configs.INPUTS:
        values, forward = macs(name)
        sample = 3 * 2 * forward  # forward, gradient of the weight, gradient of the input; 2 FLOP a MAC
        cells = []
        for link in LINKS.values():
            for n in GPUS:
                seconds = 2 * (n - 1) / n * 4 * values / link
                cells.append(f"{seconds / (2 / 3 * sample / rate):.1f}")
        print(f"| {name} | {4 * values / 1e6:.1f} | {sample / 1e9:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
