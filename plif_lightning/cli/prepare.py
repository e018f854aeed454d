"""`prepare`: a data set's files and stores, without a network or a Trainer; and the help of a data set's arguments."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from plif_lightning.cli.arguments import values
from plif_lightning.cli.checkpoint import CONFIG, config_file, is_yaml_text
from plif_lightning.cli.lightning import place_absolutely, quieten
from plif_lightning.cli.messages import OWN_KEYS, Parser, data_classes, own_error
from plif_lightning.cli.summary import print_inventory
from plif_lightning.data import SpikingDataModule
from plif_lightning.errors import UserError


class DataOfConfigFile(ActionConfigFile):
    """The data of a configuration, by path or bare name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        ActionConfigFile.apply_config(parser, cfg, dest, _data_block(value))


def _data_parser() -> Parser:
    parser = Parser(prog="prepare", description="Fetches, verifies and unpacks a data set, and says what is there.")
    parser.add_argument("--config", "-c", action=DataOfConfigFile, help="a configuration by path or name")
    parser.add_argument("--verify", type=bool, default=False, help="read all once, and compare its checksums")
    parser.add_subclass_arguments(SpikingDataModule, "data", required=True)
    return parser


# A run's own arguments may stand beside those of its data: the same line with `fit` instead of `prepare` trains.
_OF_THE_RUN = ("--model", "--trainer", "--checkpoint", *(f"--{key}" for key in OWN_KEYS if key != "config"))


def _without_the_runs(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    left_out = False  # whether the argument before is left out, and its value stands here
    for argument in argv:
        if argument.startswith("--") or argument == "-c":
            left_out = argument.split("=")[0].split(".")[0] in _OF_THE_RUN
        if not left_out:
            kept.append(argument)
    return kept


def _data_block(value: str) -> str:
    """The `data` block of a configuration, as YAML."""
    value = config_file(value)
    try:
        loaded: Any = yaml.safe_load(value if is_yaml_text(value) else Path(value).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the configuration {value} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"the configuration {value} must hold names and values, got {type(loaded).__name__}.")
    return yaml.safe_dump({key: part for key, part in loaded.items() if key == "data"})


def data_of(argv: Sequence[str]) -> tuple[SpikingDataModule, bool]:
    """The data set that is named in some arguments or their configurations, and whether it is to be verified.

    Raises:
        UserError: an argument is none of the data set's, or lies outside its range.
    """
    parser = _data_parser()
    config = parser.parse_args(_without_the_runs(argv))
    place_absolutely(config.data.init_args)
    try:
        return parser.instantiate(config).data, config.verify
    except Exception as error:  # jsonargparse wraps what a data set says of its arguments
        own = own_error(error)
        if own is None:
            raise
        raise own from error


def prepare(argv: list[str]) -> int:
    """Does what the data needs before the first run, and says what is there."""
    quieten()
    if "--help-all" in argv:
        print(_data_parser().format_help(), help_of_data(argv), sep="\n")
        return 0
    data, verify = data_of(argv)
    data.prepare_data()
    print_inventory(data, data.verify() if verify else None)
    return 0


def help_of_data(argv: Sequence[str]) -> str:
    """All arguments of the data set that is named in some arguments or their configurations, with what each does."""
    blocks = [yaml.safe_load(_data_block(value)) for value in values(argv, *CONFIG)]
    paths = [path for block in blocks if (path := (block.get("data") or {}).get("class_path"))]
    paths += values(argv, "--data")
    if not paths:
        return f"--config NAME of one of the data sets ({', '.join(data_classes())}) shows their --data.* arguments."
    module, name = paths[-1].rsplit(".", 1) if "." in paths[-1] else ("plif_lightning.data", paths[-1])
    kind = getattr(importlib.import_module(module), name, None)
    if kind is None:
        raise UserError(f"data must be one of {', '.join(data_classes())} or a class path, got {name!r}.")
    parser = Parser(usage="", add_help=False)
    parser.add_class_arguments(kind, "data")
    text = parser.format_help()
    return f"--data.* of {name}:\n" + re.sub(r"\n\n+", "\n", text[text.index("  --data.") :]).rstrip()
