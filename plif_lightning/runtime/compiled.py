"""Compilation of numeric loops to machine code, kept on disk where a place can be written."""

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba

_log = logging.getLogger(__name__)


@functools.cache
def _say_once() -> None:
    """Why nothing seems to happen: the first run of an installation waits here for up to half a minute."""
    _log.warning("Compiling kernels, once for this installation: this may take half a minute.")


@functools.cache
def compiled_code() -> Path | None:
    """The folder that machine code is kept in; None where none can be written."""
    try:
        path = numba.njit(cache=True)(_say_once.__wrapped__).stats.cache_path
    except RuntimeError:
        return None
    return None if path is None else Path(path)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code for the types of its first call, which runs without Python's global lock.

    A division by zero gives what NumPy gives, instead of a branch that keeps loops from using vector instructions.
    Single-threaded, so that it is safe in a forked or spawned worker process.
    """
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither the installation nor the user's cache can be written: compile anew in each process.
        return numba.njit(nogil=True, error_model="numpy")(function)
    cache = getattr(dispatcher, "_cache", None)
    if cache is not None:
        save, load = cache.save_overload, cache.load_overload

        def load_or_say(*arguments: Any) -> Any:
            code = load(*arguments)
            if code is None:
                _say_once()
            return code

        cache.load_overload = load_or_say

        def save_if_possible(signature: Any, code: Any) -> None:
            with suppress(OSError):  # a full disk: compile anew in each process
                save(signature, code)

        cache.save_overload = save_if_possible
    return dispatcher
