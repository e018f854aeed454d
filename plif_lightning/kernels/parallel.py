"""Run compiled loops on threads, without numba's threading layers, which break after a fork."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


# A forked child has none of its parent's threads: it creates a pool on demand.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def unnamed(*arguments: Any) -> list[Any]:
    """Arguments of a loop with plain tuples in the place of named ones, which take numba a microsecond longer each."""
    return [tuple(argument) if isinstance(argument, tuple) else argument for argument in arguments]


def parallel(loop: Callable[..., Any], units: int, threads: int, *arguments: Any) -> None:
    """Call `loop(first, last, slot, *arguments)` for consecutive ranges that cover 0 .. units - 1.

    Up to `threads` calls run concurrently, with slots 0, 1, ...; the calling thread runs the first. The loop must
    release the GIL.
    """
    threads = min(threads, units)
    if threads <= 1:
        loop(0, units, 0, *arguments)
        return
    global _pool
    if _pool is None or _pool._max_workers < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="plif")
    bounds = [units * i // threads for i in range(threads + 1)]
    rest = [_pool.submit(loop, bounds[i], bounds[i + 1], i, *arguments) for i in range(1, threads)]
    try:
        loop(0, bounds[1], 0, *arguments)
    finally:
        for call in rest:
            call.result()
