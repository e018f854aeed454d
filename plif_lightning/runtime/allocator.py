"""Settings of the C allocator for training on a CPU."""

import ctypes
import os
import sys

# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def tune_allocator() -> None:
    """Makes glibc keep large blocks instead of returning each to the system; does nothing elsewhere.

    A training step allocates and frees the same few large tensors over and over. By default each is a
    fresh mapping, whose every page costs a page fault: a third of a training step of the MNIST network.
    `PLIF_ALLOCATOR=default` leaves everything as it is. Call it before `import torch`, which reads the
    switch for huge pages when it starts.
    """
    if os.environ.get("PLIF_ALLOCATOR") == "default" or not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # PyTorch's threads wait for their next work in a loop: for a millisecond and more, in which the kernels' own
    # threads want the cores. A training step of the CIFAR10-DVS network took 7 % longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
