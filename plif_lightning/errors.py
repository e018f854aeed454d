"""Errors that a user can cause; `main.py` prints their message without a traceback."""

import difflib
from collections.abc import Collection, Iterable
from numbers import Integral
from typing import Any, get_args


class Stopped(SystemExit):
    """The program was asked to stop and has saved everything.

    Args:
        status: exit status.
        message: text for the user; empty on all processes but the first.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status)
        self.message = message


class UserError(ValueError):
    """A mistake in an argument, a configuration or a file; the message says how to fix it."""


# Arguments of SpikingJelly and snnTorch, and their names here.
_ELSEWHERE = {
    "tau": "init_tau",
    "surrogate_function": "surrogate",
    "spike_grad": "surrogate",
    "threshold": "v_threshold",
}


def require_known_arguments(of: str, names: Iterable[str], accepted: Collection[str]) -> None:
    """Check keyword arguments against the arguments that `of` accepts.

    Raises:
        UserError: an argument is unknown.
    """
    for name in names:
        if name not in accepted:
            near = [here for here in [_ELSEWHERE.get(name)] if here in accepted] or difflib.get_close_matches(
                name, accepted, 1
            )
            hint = f" Did you mean {near[0]}?" if near else f" It has {', '.join(accepted)}."
            raise UserError(f"{of} has no argument {name}.{hint}")


def require_count(name: str, value: Any) -> None:
    """Check a number of things: an integer of Python's or numpy's, at least 1.

    Raises:
        UserError: it is another value, or a bool.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UserError(f"{name} must be a whole number, at least 1, got {value!r}.")


def require_one_of(name: str, value: Any, literal: Any) -> None:
    """Check a value of a `Literal`, which would otherwise silently count as another value.

    Raises:
        UserError: it is not among them.
    """
    if value not in get_args(literal):
        raise UserError(f"{name} must be one of {', '.join(map(str, get_args(literal)))}, got {value!r}.")


class DataNotFoundError(UserError):
    """The files of a dataset are not where `data.root` points."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable, or belongs to another network."""


class NonFiniteError(UserError):
    """The loss or a gradient became NaN or infinite during training."""
