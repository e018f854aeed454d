"""Read options from an argument list before any other parser, and YAML from any argument."""

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from plif_lightning.errors import UserError


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
    found, rest = parser.parse_known_args(argv)
    return found.values, rest


def values(argv: Sequence[str], *flags: str) -> list[str]:
    """Return the values of an option, in order."""
    return take(argv, *flags)[0]


def joined(argv: Sequence[str]) -> list[str]:
    """Return arguments with each option and its value as one, `--a=1` for `--a 1`."""
    found: list[str] = []
    for argument in argv:
        follows = bool(found) and found[-1].startswith("--") and "=" not in found[-1] and not argument.startswith("--")
        if follows:
            found[-1] += f"={argument}"
        else:
            found.append(argument)
    return found


def option_names(argv: Sequence[str]) -> set[str]:
    """Return all arguments, each without `=VALUE`."""
    return {argument.split("=")[0] for argument in argv}


class _TwiceError(yaml.YAMLError):
    """A name is given twice in a mapping."""


class _Loader(yaml.SafeLoader):
    """Refuses a name that is given twice in a mapping, of which YAML would take the second value."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _TwiceError(f"{key.value} twice, the second time in line {key.start_mark.line + 1}")
                seen.add((key.tag, key.value))
        return node


def parsed_yaml(text: str, source: str) -> Any:
    """Parse YAML.

    Args:
        text: YAML.
        source: name of the text, for the message.

    Raises:
        UserError: the text is not YAML, or a mapping has a name twice.
    """
    try:
        return yaml.load(text, _Loader)
    except _TwiceError as error:
        raise UserError(f"{source} names {error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
