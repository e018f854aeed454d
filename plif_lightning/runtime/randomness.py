"""Random numbers as pure functions of seed and position, independent of workers, devices and restarts."""

import hashlib
import os

import numpy as np
import torch
from torch import Tensor


def fold_in(*parts: int | str) -> int:
    """Hash `parts`, in their order, to a 63-bit seed.

    >>> fold_in(2020, "shuffle", 0) == fold_in(2020, "shuffle", 0) != fold_in(2020, "shuffle", 1)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def run_seed() -> int:
    """Return the seed of this run: that of `seed_everything` if it was called, otherwise PyTorch's initial seed."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


def hashed_uniform(key: int, index: Tensor, draws: int) -> Tensor:
    """Return uniform numbers in [0, 1), float32 [N, draws]; row i depends only on `key` and `index[i]`.

    Args:
        key: a seed, such as `fold_in(seed, epoch)`.
        index: int64 [N], at least 0.
        draws: numbers per index.

    Source: SplitMix64 (Steele, Lea and Flood 2014), evaluated at position index * draws + j.
    """
    position = index.numpy()[:, None] * draws + np.arange(1, draws + 1)
    z = position.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    # 24 bits are exact in float32 and never round to 1.0.
    return torch.from_numpy((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24))
