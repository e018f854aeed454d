"""Files that are mapped into memory and cut short while they are read."""

import ctypes
import faulthandler
import os
import signal

from plif_lightning.runtime.signals import takes_signals

_SENTENCE = (
    b"error: a file that is mapped into memory was cut short while it was read, as when another program writes it anew "
    b"or its disk fails. Prepare the data again; a run that was being trained resumes from its last.ckpt.\n"
)


def _end(number: int) -> None:
    os.write(2, _SENTENCE)
    os._exit(128 + number)


def explain_bus_errors() -> None:
    """Has this process end with a sentence where it reads behind the end of a mapped file, not without a word.

    The system answers that with SIGBUS in the midst of an instruction, where Python's own handlers never run. So this
    one is C's; nothing but writing and ending happens in it.
    """
    if not hasattr(signal, "SIGBUS") or not takes_signals() or faulthandler.is_enabled():
        return  # not on Windows; or somebody else says what happened
    if signal.getsignal(signal.SIGBUS) is signal.SIG_DFL:
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(int(signal.SIGBUS), _HANDLER)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)  # kept for as long as the process lives
