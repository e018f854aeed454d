"""This process: its allocator, cores and signals, and the description of its machine."""

import ctypes
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
# The signal of schedulers before a time limit; absent from Windows.
OF_SCHEDULER: signal.Signals | None = getattr(signal, "SIGUSR1", None)


def tune_allocator() -> None:
    """Make glibc keep large blocks instead of returning them to the system; no effect with other C libraries.

    Every training step allocates and frees the same few large tensors. By default each gets a new mapping, with a
    page fault per page: a third of a training step of the MNIST network. `PLIF_ALLOCATOR=default` disables all of
    this. Call it before `import torch`, which reads the setting for huge pages on import.
    """
    if os.environ.get("PLIF_ALLOCATOR") == "default" or not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # PyTorch's idle threads spin for a millisecond or more and compete with the threads of our kernels for the cores.
    # A training step of the CIFAR10-DVS network took 7 % longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)


@contextmanager
def subnormals_as_zeros() -> Iterator[None]:
    """Let this thread take numbers below 1e-38 as zeros, and those that it starts meanwhile; older ones do not.

    Gradients through hundreds of steps and the potentials of silent neurons become so small, and Intel's processors
    compute several times as slowly with them: a training step of PS-MNIST (T = 784) took 3.7 times as long, neurons in
    silence 3 times.
    """
    import torch  # deferred: `tune_allocator` comes before it

    before = bool(torch.tensor(1e-20) * 1e-20 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def cores() -> int:
    """Return the number of cores that this process may use, 61 at most."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(61, available)  # Windows cannot wait for more processes


def takes_signals() -> bool:
    """True in the main thread, the only thread in which Python can set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def ending() -> list[signal.Signals]:
    """Return the signals besides SIGINT that terminate a program: SIGTERM and SIGHUP (a closed terminal).

    SIGHUP is left out if it is ignored, as under `nohup`.
    """
    signals = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # absent from Windows
        signals.append(signal.SIGHUP)
    return signals


@contextmanager
def on_termination(
    handler: Callable[[int, FrameType | None], Any], other: signal.Signals | None = None
) -> Iterator[None]:
    """Handle SIGTERM, SIGHUP and another signal within the block, then restore the previous handlers; no effect in
    other threads.

    The handler of SIGINT is restored, too: Lightning leaves it ignored after a Ctrl-C while a fit is set up, and a
    notebook would miss others.
    """
    before = {}
    if takes_signals():
        before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
        signals = [*ending(), *([] if other is None else [other])]
        before |= {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:  # of a program that embeds Python, which Python cannot set
                signal.signal(number, earlier)


def is_interrupt(error: BaseException) -> bool:
    """True for Ctrl-C, and for the errors that compiled functions and the compiler wrap it in, one or two deep."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__
    return cause is not None


def ignore_loaders_end() -> None:
    """Remove PyTorch's SIGCHLD handler, which raises for a killed loader worker even while its loss is reported."""
    if takes_signals() and hasattr(signal, "SIGCHLD"):  # absent from Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def processor() -> str:
    """Return the processor's name, with family and model if known, because many processors share a name."""
    import platform

    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.split()[-1]} {fields[key]}" for key in ("cpu family", "model") if fields.get(key)]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def milliseconds(step: Callable[[], object], device: Any = None) -> float:
    """Median time of five calls after two others [ms], on a CPU or the CUDA device that is given."""
    import torch

    times = []
    for _ in range(7):
        begin = time.perf_counter()
        step()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[2:])


def _git(*arguments: str) -> str | None:
    """Return git's output in this checkout; None outside of a checkout."""
    import subprocess

    try:
        # An installed package may lie in a virtual environment inside the checkout of another project.
        for of in (["ls-files", "--error-unmatch", "__init__.py"], [*arguments]):
            command = ["git", "-C", os.fspath(_PACKAGE), *of]
            output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return output


def commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` if code or configurations differ; None outside a checkout."""
    changed = _git("status", "--porcelain", "--", ".", "../configs", "../main.py")
    return None if changed is None else f"{_git('rev-parse', '--short=12', 'HEAD')}{'-dirty' if changed else ''}"


def changed_files() -> dict[Path, str]:
    """Return the files of this package's code that are not as in the commit of its checkout, and their text there."""
    changed = _git("diff", "--name-only", "--relative", "--diff-filter=d", "HEAD", "--", "*.py") or ""
    added = _git("ls-files", "--others", "--exclude-standard", "--", "*.py") or ""
    in_commit = {name: _git("show", f"HEAD:./{name}") or "" for name in changed.splitlines()}
    return {_PACKAGE / name: text for name, text in (in_commit | dict.fromkeys(added.splitlines(), "")).items()}


def surroundings(accelerator: str | None = None) -> dict[str, str]:
    """Return machine, versions and commit, each as a line of text.

    Args:
        accelerator: name of the accelerator, if used.
    """
    import importlib.metadata
    import platform

    import torch

    used = f"{cores()} cores" if cores() != 1 else "1 core"
    packages = {"torch": torch.__version__} | {
        name: importlib.metadata.version(name) for name in ("lightning", "numba", "numpy")
    }
    versions = {"Python": platform.python_version(), **packages}
    surroundings_here = {
        "machine": ", ".join(text for text in (processor(), used, accelerator) if text),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    revision = commit()
    return surroundings_here if revision is None else {**surroundings_here, "commit": revision}
