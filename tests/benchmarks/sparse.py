"""FC1's product of the Fashion-MNIST network, skipping silent inputs, beside the dense one.

    python tests/benchmarks/sparse.py [--rounds 15]

[T N, 6272] by [6272, 2048], batch 16, T = 8, float32: the compiled product, what it needs to know of the input
included, and PyTorch's.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plif_lightning.runtime.allocator import tune_allocator

tune_allocator()  # as main.py does

import torch

from plif_lightning.kernels.sparse import count_nonzero, sparse_linear
from tests.benchmarks.networks import alternate, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    weight = torch.randn(2048, 6272)
    rows = weight.t().contiguous()
    for share in (0.03, 0.07, 0.1, 0.15, 0.2):
        x = torch.rand(8 * 16, 6272).lt(share).float()
        with torch.no_grad():
            torch.testing.assert_close(sparse_linear(x, rows, count_nonzero(x)), x @ weight.T, rtol=1e-3, atol=1e-3)
            cases = {"ours": lambda x=x: sparse_linear(x, rows, count_nonzero(x)), "dense": lambda x=x: x @ weight.T}
            show(f"{100 * share:.0f} % of the inputs are spikes", alternate(cases, rounds))


if __name__ == "__main__":
    main()
