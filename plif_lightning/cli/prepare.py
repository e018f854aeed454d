"""`prepare`: download and verify a data set without a network or a Trainer; and the help of its arguments."""

from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from plif_lightning import configs
from plif_lightning.cli.lightning import make_paths_absolute, quieten
from plif_lightning.cli.messages import Parser, user_error_of
from plif_lightning.cli.parser import parsed_yaml
from plif_lightning.cli.start import require_data_set
from plif_lightning.cli.summary import print_inventory
from plif_lightning.data import SpikingDataModule


class DataOfConfigFile(ActionConfigFile):
    """Read only the data set of a configuration, given by path or name."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        ActionConfigFile.apply_config(parser, cfg, dest, _data_block(value))


def _data_parser() -> Parser:
    parser = Parser(prog="prepare", description="Download, verify and unpack a data set, and list its contents.")
    parser.add_argument("--config", "-c", action=DataOfConfigFile, help="a configuration by path or name")
    parser.add_argument("--verify", type=bool, default=False, help="read all files and compare their checksums")
    parser.add_subclass_arguments(SpikingDataModule, "data", required=True)
    return parser


def _data_block(value: str) -> str:
    """Return the `data` block of a configuration as YAML."""
    path = configs.resolve(value)
    loaded = parsed_yaml(path.read_text("utf-8"), f"the configuration {path}") or {}
    return yaml.safe_dump({"data": loaded["data"]} if "data" in loaded else {})


def data_of(argv: Sequence[str]) -> tuple[SpikingDataModule, bool]:
    """Build the data set that arguments or their configurations name.

    Returns:
        The data set; and True if its files are to be verified.

    Raises:
        UserError: an argument is unknown to the data set, or lies outside its range.
    """
    parser = _data_parser()
    config = parser.parse_args(argv)
    make_paths_absolute(config.data.init_args)
    return _instantiate(parser, config), config.verify


def data_in(block: dict[str, Any]) -> SpikingDataModule:
    """Build the data set that the `data` block of a configuration names.

    Raises:
        UserError: it is no data set, or an argument is unknown to it or lies outside its range.
    """
    parser = _data_parser()
    require_data_set(block)
    return _instantiate(parser, parser.parse_object({"data": block}))


def _instantiate(parser: Parser, config: Any) -> SpikingDataModule:
    try:
        module: SpikingDataModule = parser.instantiate(config).data
    except Exception as error:  # jsonargparse wraps the errors of a data set
        user_error = user_error_of(error)
        if user_error is None:
            raise
        raise user_error from error
    return module


def prepare(argv: list[str]) -> int:
    """Prepare a data set for its first run, and list its contents."""
    quieten()
    data, verify = data_of(argv)
    data.prepare_data()
    print_inventory(data, data.verify() if verify else None)
    return 0
