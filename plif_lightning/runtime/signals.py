"""Handlers of signals, where they may be set."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def takes_signals() -> bool:
    """Whether handlers may be set here: Python sets them in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


def ending() -> list[signal.Signals]:
    """Signals that tell a program to end, Ctrl-C aside: SIGTERM, and SIGHUP, which comes when a terminal is closed.

    Not SIGHUP where it is ignored, as `nohup` has it.
    """
    found = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not on Windows
        found.append(signal.SIGHUP)
    return found


@contextmanager
def on_termination(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Has SIGTERM and SIGHUP call a handler while this lasts, and restores theirs; does nothing in other threads."""
    before = {number: signal.signal(number, handler) for number in ending()} if takes_signals() else {}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def ignore_loaders_end() -> None:
    """Drop PyTorch's handler, which raises for a loader's process that was killed, even while its loss is reported."""
    if takes_signals() and hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
