"""Names of the engines of `deployed`; loads no PyTorch, so that the command line can list them."""

from typing import Literal, get_args

from plif_lightning.errors import UserError

Engine = Literal["auto", "dense", "events", "int16", "int8", "int4"]


def require_engine(engine: str) -> None:
    """Refuses a name that is none of the engines.

    Raises:
        UserError: it is not.
    """
    if engine not in get_args(Engine):
        raise UserError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
