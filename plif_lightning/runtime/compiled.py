"""Compile numeric loops to machine code, cached on disk if a cache folder is writable."""

import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock, Timeout
from numba.core.compiler_lock import global_compiler_lock

from plif_lightning.errors import UserError
from plif_lightning.runtime.locks import file_lock

# How long to wait for another process that compiles the same function [s]; after that this process compiles it, too.
_LOCK_TIMEOUT = 120
_DIGEST = 16  # bytes
_log = logging.getLogger(__name__)


@functools.cache
def _warn_once() -> None:
    """Explain the delay of up to half a minute at the first use of a kernel."""
    _log.warning("Compiling kernels for their first use here: up to half a minute. The machine code is cached.")


@functools.cache
def compiled_code() -> Path | None:
    """Return the folder of the cached machine code; None if no folder is writable."""
    try:
        path = numba.njit(cache=True)(_warn_once.__wrapped__).stats.cache_path
    except (RuntimeError, AttributeError):  # no writable folder; compilation is disabled
        return None
    return None if path is None else Path(path)


@functools.cache
def _compile_lock(function: Callable[..., Any]) -> FileLock | None:
    """Return the lock held by the process that compiles a function; None if no folder is writable."""
    folder = compiled_code()
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}.lock"
    return None if folder is None else file_lock(folder / name)


def _checksum(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=_DIGEST).digest()


def _check_files(cache: Any) -> None:
    """Append a checksum to each cache file; treat a file damaged by a power loss, say, as missing.

    Otherwise numba would raise an error or run the corrupted machine code.
    """
    files = cache._cache_file
    dump, load_data, load_index = files._dump, files._load_data, files._load_index

    def dump_with_checksum(value: Any) -> bytes:
        code = dump(value)
        return code + _checksum(code)  # pickle ignores trailing bytes

    def is_whole(path: str, beside: int = 0) -> bool:
        content = Path(path).read_bytes()[beside:]
        return content[-_DIGEST:] == _checksum(content[:-_DIGEST])

    def load_whole_data(name: str) -> Any:
        if not is_whole(files._data_path(name)):
            raise FileNotFoundError(name)
        return load_data(name)

    def load_whole_index() -> Any:
        try:
            with Path(files._index_path).open("rb") as file:
                pickle.load(file)  # numba's version
                return load_index() if is_whole(files._index_path, file.tell()) else {}
        except Exception:  # missing, or damaged: pickle raises many types
            return {}

    files._dump, files._load_data, files._load_index = dump_with_checksum, load_whole_data, load_whole_index


def _compile_once(dispatcher: Any, cache: Any) -> None:
    """Let one of several concurrent processes compile a function; the others wait and load it from the cache.

    A process that waits for a function's lock holds only locks of its callers, so there is no deadlock.
    """
    load, compile_for = cache.load_overload, dispatcher.compile
    held = ExitStack()

    def load_or_lock(*arguments: Any) -> Any:
        code = load(*arguments)
        if code is None:
            _warn_once()
            with suppress(Timeout, OSError, NotImplementedError):  # without locks every process compiles
                if (lock := _compile_lock(dispatcher.py_func)) is not None:
                    held.enter_context(lock.acquire(timeout=_LOCK_TIMEOUT))
                    code = load(*arguments)
        return code

    def compile_and_release(*arguments: Any) -> Any:
        # Take numba's own lock first, because compiling a function also compiles the functions that it calls.
        with global_compiler_lock, held:
            return compile_for(*arguments)

    cache.load_overload, dispatcher.compile = load_or_lock, compile_and_release


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function to machine code on its first call, for the argument types of that call.

    It runs single-threaded and without the GIL, so it is safe in a forked or spawned worker process. Division by zero
    follows NumPy: checking for it would add a branch that prevents vectorisation. With NUMBA_DISABLE_JIT the returned
    function raises a UserError, because uncompiled loops are about 1000 times slower.
    """
    if getattr(numba.config, "DISABLE_JIT", False):

        @functools.wraps(function)
        def refused(*arguments: Any) -> Any:
            raise UserError("NUMBA_DISABLE_JIT is set, but the kernels need numba's compiler: unset it.")

        return refused
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither the installation nor the user's cache is writable: every process recompiles.
        return numba.njit(nogil=True, error_model="numpy")(function)
    cache = getattr(dispatcher, "_cache", None)
    if cache is not None:
        save = cache.save_overload

        def save_if_possible(signature: Any, code: Any) -> None:
            with suppress(OSError):  # disk full: every process recompiles
                save(signature, code)

        cache.save_overload = save_if_possible
        _check_files(cache)
        _compile_once(dispatcher, cache)
    return dispatcher
