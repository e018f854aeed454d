"""Standard output and error of a program that goes on without readers. Nothing here imports Rich: see the tests."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Indifferent:
    """A stream that goes on without readers, and without room on its disk: the rest of what is written is lost."""

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
def whoever_listens() -> Iterator[None]:
    """While this lasts, nobody who stops reading what is printed ends the program, as `fit | head` would a training."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Indifferent, before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before
