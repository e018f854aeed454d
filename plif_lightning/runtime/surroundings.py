"""Environment of a run: processor, accelerator, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from plif_lightning.runtime.cores import cores

_PACKAGE = Path(__file__).resolve().parents[1]


def processor() -> str:
    """Return the processor's name, with family and model if known, because many processors share a name."""
    known: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            known.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    name = known.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.split()[-1]} {known[key]}" for key in ("cpu family", "model") if known.get(key)]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` if code or configurations differ; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(_PACKAGE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        # An installed package may lie in a virtual environment inside the checkout of another project.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".", "../configs", "../main.py")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def surroundings(accelerator: str | None = None) -> dict[str, str]:
    """Return machine, versions and commit, each as one line of text.

    Args:
        accelerator: name of the accelerator, if one is used.
    """
    import torch

    used = f"{cores()} cores" if cores() != 1 else "1 core"
    packages = {"torch": torch.__version__} | {
        name: importlib.metadata.version(name) for name in ("lightning", "numba", "numpy")
    }
    versions = {"Python": platform.python_version(), **packages}
    found = {
        "machine": ", ".join(part for part in (processor(), used, accelerator) if part),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    made_from = commit()
    return found if made_from is None else {**found, "commit": made_from}
