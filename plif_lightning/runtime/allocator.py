"""Tune the C allocator for training on a CPU."""

import ctypes
import os
import sys

# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def tune_allocator() -> None:
    """Make glibc keep large blocks instead of returning them to the system; no effect with other C libraries.

    Every training step allocates and frees the same few large tensors. By default each gets a new mapping, with a
    page fault per page: a third of a training step of the MNIST network. `PLIF_ALLOCATOR=default` disables all of
    this. Call it before `import torch`, which reads the setting for huge pages on import.
    """
    if os.environ.get("PLIF_ALLOCATOR") == "default" or not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # PyTorch's idle threads spin for a millisecond or more and compete with the threads of our kernels for the cores.
    # A training step of the CIFAR10-DVS network took 7 % longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
