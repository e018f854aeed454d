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


@contextmanager
def on_sigterm(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Has SIGTERM call a handler while this lasts, and puts back what was there before; not in other threads."""
    takes = takes_signals()
    before = signal.signal(signal.SIGTERM, handler) if takes else None
    try:
        yield
    finally:
        if takes:
            signal.signal(signal.SIGTERM, before)
