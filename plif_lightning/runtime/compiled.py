"""Compile numeric loops to machine code, cached on disk if a cache folder is writable."""

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock, Timeout
from llvmlite.ir import Constant  # type: ignore[import-untyped]  # numba's
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from plif_lightning.runtime.files import file_lock

# How long to wait for another process that compiles the same function [s]; after that this process compiles it, too.
_LOCK_TIMEOUT = 120
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
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


def _compile_once(dispatcher: Any, cache: Any) -> None:
    """Let a single process compile a function; concurrent ones wait and load it from the cache.

    A process that waits for a function's lock holds only locks of its callers, so there is no deadlock.
    """
    load, compile_for = cache.load_overload, dispatcher.compile
    locks = ExitStack()

    def load_or_lock(*arguments: Any) -> Any:
        code = load(*arguments)
        if code is None:
            _warn_once()
            with suppress(Timeout, OSError, NotImplementedError):  # without locks every process compiles
                if (lock := _compile_lock(dispatcher.py_func)) is not None:
                    locks.enter_context(lock.acquire(timeout=_LOCK_TIMEOUT))
                    code = load(*arguments)
        return code

    def compile_and_release(*arguments: Any) -> Any:
        # Take numba's lock first, because compiling a function also compiles the functions that it calls.
        with global_compiler_lock, locks:
            return compile_for(*arguments)

    cache.load_overload, dispatcher.compile = load_or_lock, compile_and_release


@functools.cache
def _stamp_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of the sources whose functions a loop may call: those beside it."""
    stats = [(file.name, file.stat()) for file in sorted(folder.glob("*.py"))]
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def compile_cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function to machine code on its first call, for the argument types of that call.

    It runs single-threaded and without the GIL, so it is safe in threads and in forked or spawned worker processes.
    Division by zero follows NumPy: checking for it would add a branch that prevents vectorisation.
    """
    try:
        dispatcher = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither the installation nor the user's cache is writable: every process recompiles.
        return numba.njit(**_OPTIONS)(function)
    if (cache := getattr(dispatcher, "_cache", None)) is not None:
        # numba looks only at the loop's own file, and would keep the code of functions that others changed.
        cache._cache_file._source_stamp = _stamp_of(Path(function.__code__.co_filename).parent)
        _compile_once(dispatcher, cache)
    return dispatcher


def _borrowed(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Code of an array, or of the arrays in a tuple, without the counter of its references."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = Constant(array.meminfo.type, None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        kinds: Any = kind
        parts = [_borrowed(context, builder, of, builder.extract_value(value, i)) for i, of in enumerate(kinds)]
        return context.make_tuple(builder, kind, parts)
    return value


@intrinsic
def borrow(typing: Any, value: Any) -> Any:
    """An argument of a compiled function whose arrays nobody counts references of: the caller holds them."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _borrowed(context, builder, signature.args[0], arguments[0])

    return value(value), code


def compile_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """`compile_cached` for a loop over arrays that its caller holds until it returns.

    numba counts the references of each array that a compiled function passes on, atomically: up to a fifth of the time
    of event-driven loops (AMD EPYC, Zen 5), and more in threads, which share the counters. In here nothing is counted.
    """
    names = [*inspect.signature(function).parameters]
    text = f"def {function.__name__}({', '.join(names)}):\n    return loop({', '.join(f'borrow({n})' for n in names)})"
    space: dict[str, Any] = {"loop": inner(function), "borrow": borrow, "__name__": function.__module__}
    # In the file of the loop, by which numba caches; its name is that of the loop, which has no cache of its own.
    exec(compile(text, function.__code__.co_filename, "exec"), space)
    return compile_cached(
        functools.wraps(function, ("__doc__", "__module__", "__qualname__"), ())(space[function.__name__])
    )


# The same for a function that only compiled functions call: no way in from Python, and no cache file, which take a
# fifth of the time.
inner: Any = functools.partial(numba.njit, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)
