"""Number of usable CPU cores."""

import os


def cores() -> int:
    """Return the number of cores that this process may use, 61 at most."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(61, available)  # Windows cannot wait for more processes
