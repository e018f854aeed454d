"""Errors that a user can cause; `main.py` prints them as one sentence, without a traceback."""

import difflib
from collections.abc import Collection, Iterable


class Stopped(SystemExit):
    """The program was told to end, and has left everything as it should be.

    Args:
        status: with which the program ends.
        message: what the user is told; nothing on all but the first of several processes.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status)
        self.message = message


class UserError(ValueError):
    """A mistake in an argument, a configuration or a file, with the way out in its message."""


def require_known_arguments(of: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuses keyword arguments that something does not have.

    Raises:
        UserError: one of them is unknown.
    """
    for name in given:
        if name not in known:
            near = (
                ["init_tau"] if name == "tau" and "init_tau" in known else difflib.get_close_matches(name, known, n=1)
            )
            hint = f" Did you mean {near[0]}?" if near else f" It has {', '.join(known)}."
            raise UserError(f"{of} has no argument {name}.{hint}")


class DatasetNotFoundError(UserError):
    """The files of a dataset are not where `data.root` points."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable, or belongs to another network."""


class NonFiniteError(UserError):
    """The loss or a gradient became NaN or infinite during training."""
