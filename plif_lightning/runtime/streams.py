"""Keep a program running after the reader of its output has exited. Must not import Rich: see the tests."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _LossyStream:
    """A stream that discards all further output after a broken pipe or on a full disk."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ignoring_broken_pipes() -> Iterator[None]:
    """Ignore broken pipes within the block, so that `fit | head` does not end a training."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_LossyStream, before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before
