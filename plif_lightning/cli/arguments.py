"""Options of an argument list that are read before any other parser sees them."""

import argparse
from collections.abc import Sequence


def take(argv: Sequence[str], *flags: str) -> tuple[list[str], list[str]]:
    """Split an option off an argument list.

    Args:
        argv: arguments.
        flags: of the option, such as `--config`, `-c`.

    Returns:
        The option's values in order, an empty text where it has none; and all other arguments in order.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage="")
    parser.add_argument(*flags, dest="values", nargs="?", const="", action="append", default=[])
    found, rest = parser.parse_known_args(argv)
    return found.values, rest


def values(argv: Sequence[str], *flags: str) -> list[str]:
    """The values of an option, in order."""
    return take(argv, *flags)[0]
