"""Parser of the commands that need no Lightning."""

import argparse
from typing import NoReturn

from plif_lightning.errors import UserError
from plif_lightning.runtime import program


class PlainParser(argparse.ArgumentParser):
    """Reports errors in one sentence."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"{program.shown()} {name}", description=description, allow_abbrev=False)
        self.add_argument("--help-all", action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")
