"""How much memory this process may take."""

import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """Bytes of the machine's memory, or of the container's where that is less; None where the system does not say."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):  # not on Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits += [limit for file in _limit_files() if (limit := _number_in(file)) is not None]
    return min(limits, default=None)


def _limit_files() -> list[Path]:
    """Of this process's control group and those above it, version 2 and 1."""
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
    with suppress(OSError, ValueError):  # there is none, or it says max
        return int(file.read_text())
    return None
