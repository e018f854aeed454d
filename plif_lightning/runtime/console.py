"""What is printed for people."""

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Rich's, but that whoever wants no more of its output, such as `head`, ends the program as all others do."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError
