"""Compilation of numeric loops to machine code, kept on disk where a place can be written."""

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

# For another process that compiles [s]; who waits longer compiles, too.
_PATIENCE = 120
_DIGEST = 16  # bytes
_log = logging.getLogger(__name__)


@functools.cache
def _say_once() -> None:
    """Why nothing seems to happen: what is used for the first time is waited for, up to half a minute."""
    _log.warning("Compiling kernels that were not needed here before: up to half a minute. They are kept.")


@functools.cache
def compiled_code() -> Path | None:
    """The folder that machine code is kept in; None where none can be written."""
    try:
        path = numba.njit(cache=True)(_say_once.__wrapped__).stats.cache_path
    except (RuntimeError, AttributeError):  # no place can be written; nothing is compiled
        return None
    return None if path is None else Path(path)


@functools.cache
def _turn(function: Callable[..., Any]) -> FileLock | None:
    """Held by the process that compiles a function; None where no file can be written."""
    folder = compiled_code()
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}.lock"
    return None if folder is None else file_lock(folder / name)


def _checksum(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=_DIGEST).digest()


def _check_files(cache: Any) -> None:
    """Files of machine code end in their checksum: one that was damaged, as by a power loss, counts as missing.

    numba would end in an error, or run whatever a flipped bit has made of the code.
    """
    files = cache._cache_file
    dump, load_data, load_index = files._dump, files._load_data, files._load_index

    def dump_with_checksum(value: Any) -> bytes:
        code = dump(value)
        return code + _checksum(code)  # reading pickled values ends where they end

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
        except Exception:  # there is none, or it is damaged, for which pickle has many
            return {}

    files._dump, files._load_data, files._load_index = dump_with_checksum, load_whole_data, load_whole_index


def _compile_alone(dispatcher: Any, cache: Any) -> None:
    """Processes that begin together, as those of one run do, compile a function once: the others wait and load it.

    Who waits for a function's lock holds at most those of its callers, so nobody waits for ever.
    """
    load, compile_for = cache.load_overload, dispatcher.compile
    held = ExitStack()

    def load_or_take_turn(*arguments: Any) -> Any:
        code = load(*arguments)
        if code is None:
            _say_once()
            with suppress(Timeout, OSError, NotImplementedError):  # storage without locks: each compiles
                if (turn := _turn(dispatcher.py_func)) is not None:
                    held.enter_context(turn.acquire(timeout=_PATIENCE))
                    code = load(*arguments)
        return code

    def compile_and_release(*arguments: Any) -> Any:
        # Numba's own lock first: a function is also compiled within the compilation of one that calls it.
        with global_compiler_lock, held:
            return compile_for(*arguments)

    cache.load_overload, dispatcher.compile = load_or_take_turn, compile_and_release


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code for the types of its first call, which runs without Python's global lock.

    A division by zero gives what NumPy gives, instead of a branch that keeps loops from using vector instructions.
    Single-threaded, so that it is safe in a forked or spawned worker process.

    Called where numba is told not to compile, it raises a UserError: the loops are some thousand times slower then.
    """
    if getattr(numba.config, "DISABLE_JIT", False):

        @functools.wraps(function)
        def refused(*arguments: Any) -> Any:
            raise UserError("numba is told not to compile (NUMBA_DISABLE_JIT is set), and nothing runs so: unset it.")

        return refused
    try:
        dispatcher = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Neither the installation nor the user's cache can be written: compile anew in each process.
        return numba.njit(nogil=True, error_model="numpy")(function)
    cache = getattr(dispatcher, "_cache", None)
    if cache is not None:
        save = cache.save_overload

        def save_if_possible(signature: Any, code: Any) -> None:
            with suppress(OSError):  # a full disk: compile anew in each process
                save(signature, code)

        cache.save_overload = save_if_possible
        _check_files(cache)
        _compile_alone(dispatcher, cache)
    return dispatcher
