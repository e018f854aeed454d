"""Errors that a user can cause; `main.py` prints them as one sentence, without a traceback."""


class Stopped(SystemExit):
    """A fit was told to end, and has saved where it was.

    Args:
        status: with which the program ends.
        message: what the user is told; nothing on all but the first of several processes.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status)
        self.message = message


class UserError(ValueError):
    """A mistake in an argument, a configuration or a file, with the way out in its message."""


class DatasetNotFoundError(UserError):
    """The files of a dataset are not where `data.root` points."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable, or belongs to another network."""


class NonFiniteError(UserError):
    """The loss or a gradient became NaN or infinite during training."""
