"""Memory limit of this process."""

import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """Return the smaller of the machine's memory and the container's limit [bytes]; None if both are unknown."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits += [limit for file in _limit_files() if (limit := _number_in(file)) is not None]
    return min(limits, default=None)


def _limit_files() -> list[Path]:
    """Files that may hold the limits of this process's cgroup and its parents, in cgroup v2 and v1."""
    found = [_CGROUPS / "memory.max", _CGROUPS / "memory/memory.limit_in_bytes"]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                root, name = (_CGROUPS, "memory.max") if not kinds else (_CGROUPS / kinds, "memory.limit_in_bytes")
                place = root / path.lstrip("/")
                found += [above / name for above in (place, *place.parents) if above.is_relative_to(root)]
    return found


def _number_in(file: Path) -> int | None:
    with suppress(OSError, ValueError):  # missing, or "max"
        return int(file.read_text())
    return None
