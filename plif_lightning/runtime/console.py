"""Console output."""

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Rich's console, which raises BrokenPipeError as `print` does when a reader such as `head` closes the pipe."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError
