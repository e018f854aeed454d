"""How many processes or threads pay."""

import os


def cores() -> int:
    """The cores that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(61, available)  # more processes than that Windows cannot wait for
