"""Signal handlers."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def takes_signals() -> bool:
    """True in the main thread, the only one in which Python can set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def ending() -> list[signal.Signals]:
    """Return the signals besides SIGINT that terminate a program: SIGTERM and SIGHUP (a closed terminal).

    SIGHUP is left out if it is ignored, as under `nohup`.
    """
    found = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # absent from Windows
        found.append(signal.SIGHUP)
    return found


@contextmanager
def on_termination(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle SIGTERM and SIGHUP within the block, then restore the previous handlers; no effect in other threads.

    The handler of SIGINT is restored, too: Lightning leaves it ignored after a Ctrl-C while a fit is set up, and a
    notebook would hear no other one.
    """
    before = {}
    if takes_signals():
        before = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
        before |= {number: signal.signal(number, handler) for number in ending()}
    try:
        yield
    finally:
        for number, own in before.items():
            if own is not None:  # of a program that embeds Python, which Python cannot set
                signal.signal(number, own)


def ignore_loaders_end() -> None:
    """Remove PyTorch's SIGCHLD handler, which raises for a killed loader worker even while its loss is reported."""
    if takes_signals() and hasattr(signal, "SIGCHLD"):  # absent from Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
