"""Console output."""

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Rich's console, which raises BrokenPipeError as `print` does when a reader such as `head` closes the pipe."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def in_few_digits(value: float, digits: int) -> str:
    """`1,048.6`; a small number with two digits that count, as `0.0083`, and not 0.0."""
    return f"{value:.2g}" if 0 < value < 10.0**-digits else f"{value:,.{digits}f}"
