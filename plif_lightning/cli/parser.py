"""Parsers of the commands that need no Lightning, and YAML from any argument."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml

from plif_lightning.errors import UserError
from plif_lightning.runtime import program


class PlainParser(argparse.ArgumentParser):
    """Reports errors in one sentence."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"{program.program_name()} {name}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how recordings of text are written."""
    parser.add_argument(
        "--columns", nargs="+", help="of text, such as t x y p (default: the data set's, or the header)"
    )
    parser.add_argument("--time_unit", choices=["s", "ms", "us", "ns"], help="of text (default: the data set's, or us)")


def take(argv: Sequence[str], *flags: str) -> tuple[list[str], list[str]]:
    """Split an option off an argument list.

    Args:
        argv: arguments.
        flags: names of the option, such as `--config`, `-c`.

    Returns:
        The option's values in order, an empty text where it has none; and all other arguments in order.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage="")
    parser.add_argument(*flags, dest="values", nargs="?", const="", action="append", default=[])
    namespace, rest = parser.parse_known_args(argv)
    return namespace.values, rest


def values(argv: Sequence[str], *flags: str) -> list[str]:
    """Return the values of an option, in order."""
    return take(argv, *flags)[0]


def option_names(argv: Sequence[str]) -> set[str]:
    """Return all arguments, each without `=VALUE`."""
    return {argument.split("=")[0] for argument in argv}


def parsed_yaml(text: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: YAML.
        source: name of the text, for the message.

    Raises:
        UserError: the text is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
