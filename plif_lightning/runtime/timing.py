"""How long something takes, for choices between forms of one function."""

import time
from collections.abc import Callable
from typing import Any


def least_seconds(run: Callable[[], Any]) -> float:
    """The least of seven times, after one that warms up: what else runs on the machine only adds."""
    run()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
