"""How long something takes, for choices between forms of one function."""

import time
from collections.abc import Callable
from typing import Any


def least_seconds(run: Callable[[], Any]) -> float:
    """The least of seven times, after one that warms up: what else runs on the machine only adds.

    Of fewer, but one, where they take more than a second together.
    """
    run()
    times: list[float] = []
    while not times or (len(times) < 7 and sum(times) < 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
