"""A trained network from a checkpoint, for commands that take no run: its data set, class names and camera."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plif_lightning.cli.parser import PlainParser
from plif_lightning.errors import UserError
from plif_lightning.runs.settings import names_class
from plif_lightning.runtime.input_spec import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from plif_lightning.network import SpikingNetwork


def checkpoint_parser(name: str, description: str) -> PlainParser:
    """Parser of a command with `--ckpt_path`."""
    parser = PlainParser(name, description)
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        required=True,
        help="the checkpoint, such as RUN/checkpoints/best.ckpt, or a folder that export wrote",
    )
    return parser


@dataclass(frozen=True)
class Trained:
    """A network and its data set, read from a checkpoint.

    Attributes:
        net: the network.
        data: `data` block of the configuration; empty if the checkpoint has none.
        class_names: name of each class; its number if the name is unknown.
        input: what its data set said of its input.
    """

    net: "SpikingNetwork"
    data: dict[str, Any]
    class_names: list[str]
    input: InputSpec


def read_trained(path: Path) -> Trained:
    """Read a checkpoint or an exported folder, without importing classes of other packages that it names."""
    from plif_lightning.network.storage.checkpoint import (
        checkpoint_file,
        class_names_in,
        configuration_in,
        load_checkpoint,
        network_in,
    )

    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path)
    net, data = network_in(checkpoint, path), configuration_in(checkpoint).get("data", {})
    names = class_names_in(checkpoint, net.num_classes) or [str(i) for i in range(net.num_classes)]
    return Trained(net, data, names, InputSpec.of(checkpoint.get("preprocessing")))


def for_evaluation(data: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A `data` block in one process and without augmentation, which a user-defined data set may lack."""
    arguments = {name: value for name, value in data.get("init_args", {}).items() if name != "augmentation"}
    return {**data, "init_args": {**arguments, "num_workers": 0, **changed}}


def read_to_test(
    path: Path, root: str | None, number: int, named: Sequence[str] = ()
) -> tuple["SpikingNetwork", "Tensor", "Tensor"]:
    """Return the network of a checkpoint, and test samples of its data set with labels, evenly spaced.

    Args:
        path: path of the checkpoint.
        root: folder of the data sets, if not the configuration's.
        number: number of samples.
        named: `--data NAME` and other arguments of a data set that replaces the checkpoint's.

    Raises:
        UserError: no data set is named, or its data are not available.
    """
    from plif_lightning.cli.lightning import quieten
    from plif_lightning.cli.prepare import data_in, data_of

    quieten()
    read = read_trained(path)
    if named:
        roots = [] if root is None else [f"--data.root={root}"]
        module, _ = data_of([*named, *roots, f"--data.time_steps={read.net.time_steps}"])
    elif names_class(read.data):
        module = data_in(for_evaluation(read.data, **({} if root is None else {"root": root})))
    else:
        raise UserError(f"{path} names no data set because another Trainer wrote it: pass --data NAME.")
    return read.net, *module.test_samples(number)
