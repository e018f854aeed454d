"""Report memory-mapped files that are truncated while in use."""

import ctypes
import faulthandler
import os
import signal

from plif_lightning.runtime.signals import takes_signals

_SENTENCE = (
    b"error: a memory-mapped file was truncated while it was read, for example because another program rewrote it or "
    b"its disk failed. Prepare the data again; an interrupted run resumes from its last.ckpt.\n"
)


def _end(number: int) -> None:
    os.write(2, _SENTENCE)
    os._exit(128 + number)


def explain_bus_errors() -> None:
    """Print a message before exiting when this process reads past the end of a truncated mapped file.

    The kernel sends SIGBUS in the middle of an instruction, where Python's handlers never run. This handler is
    therefore installed through C; it only writes and exits.
    """
    if not hasattr(signal, "SIGBUS") or not takes_signals() or faulthandler.is_enabled():
        return  # Windows has no SIGBUS; faulthandler reports it itself
    if signal.getsignal(signal.SIGBUS) is signal.SIG_DFL:
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(int(signal.SIGBUS), _HANDLER)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)  # must not be garbage-collected
