"""Compiled loops on PyTorch's number of threads, without a threading layer that a fork would break."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


# A forked child has none of its parent's threads: it makes its own when it needs them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def parallel(loop: Callable[..., Any], units: int, threads: int, *arguments: Any) -> None:
    """Calls `loop(first, last, slot, *arguments)` so that together the calls cover 0 .. units - 1.

    There are up to `threads` calls at the same time, with slots 0, 1, ...; this thread makes the first. The loop
    must release Python's global lock.
    """
    threads = min(threads, units)
    if threads <= 1:
        loop(0, units, 0, *arguments)
        return
    global _pool
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="plif")
    ends = [units * i // threads for i in range(threads + 1)]
    rest = [_pool.submit(loop, ends[i], ends[i + 1], i, *arguments) for i in range(1, threads)]
    try:
        loop(0, ends[1], 0, *arguments)
    finally:
        for call in rest:
            call.result()
