"""Find the shipped configurations and build their networks."""

import difflib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plif_lightning.errors import UserError

if TYPE_CHECKING:
    from plif_lightning.network import SpikingNetwork

# Input shape (C, H, W) and number of classes of each data set, so that a network can be built without the data.
INPUTS = {
    "mnist": ((1, 28, 28), 10),
    "fashionmnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "nmnist": ((2, 34, 34), 10),
    "cifar10dvs": ((2, 128, 128), 10),
    "dvsgesture": ((2, 128, 128), 11),
}


@cache
def folder() -> Path:
    """Return the folder of the configurations: inside an installed package, beside it in a checkout.

    Raises:
        UserError: neither folder contains `base.yaml`.
    """
    package = Path(__file__).resolve().parent
    candidates = [package / "_configs", package.parent / "configs"]
    for candidate in candidates:
        if (candidate / "base.yaml").is_file():
            return candidate
    raise UserError(
        f"base.yaml, the base of every configuration, is neither in {' nor in '.join(map(str, candidates))}: "
        "reinstall plif_lightning, or restore the folder configs."
    )


def names(kind: str = "") -> dict[str, Path]:
    """Return the shipped files by their bare names.

    Args:
        kind: `sweeps` for sweep files; by default all configurations.
    """
    kinds = [kind] if kind else ["", "sequences", "variants", "recipes", "networks", "leaderboard"]
    below = [folder() / name for name in kinds]
    paths = {path.stem: path for directory in below for path in sorted(directory.glob("*.yaml"))}
    paths.pop("base", None)
    return paths


def resolve(name: str, kind: str = "") -> Path:
    """Resolve a path or bare name to a file: `my.yaml`, `quickstart`, `lif`, `configs/variants/lif.yaml`.

    Args:
        name: path or bare name; an existing path takes precedence.
        kind: see `names`.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.parts[:1] == ("configs",) and folder().joinpath(*path.parts[1:]).is_file():
        return folder().joinpath(*path.parts[1:])
    paths = names(kind)
    if name in paths:
        return paths[name]
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a configuration file in it.")
    near = difflib.get_close_matches(path.stem, paths, n=1)
    raise UserError(
        f"there is no configuration {name}.{f' Did you mean {near[0]}?' if near else ''} "
        f"Give the path of a file, or one of {', '.join(paths)}."
    )


@cache
def shipped_settings() -> dict[str, dict[str, Any]]:
    """Return the `model` and `data` blocks of each shipped configuration, merged over base.yaml, by name."""
    base = yaml.safe_load((folder() / "base.yaml").read_text("utf-8"))
    blocks_of = {}
    for path in sorted(folder().glob("*.yaml")):
        loaded = yaml.safe_load(path.read_text("utf-8"))
        if "data" in loaded:
            blocks_of[path.stem] = {"model": {**base["model"], **loaded["model"]}, "data": loaded["data"]}
    return blocks_of


def network_of(name: str, time_steps: int | None = None, **changes: Any) -> "SpikingNetwork":
    """Build the network of a configuration of the paper.

    Args:
        name: name of the configuration, such as `fashionmnist`.
        time_steps: T; by default the configuration's.
        changes: arguments of the network that override the configuration's.
    """
    from plif_lightning.network.network import ARGUMENTS, SpikingNetwork

    blocks = shipped_settings()[name]
    model = {key: value for key, value in blocks["model"].items() if key in ARGUMENTS}
    steps = time_steps or blocks["data"]["init_args"]["time_steps"]
    return SpikingNetwork(*INPUTS[name], steps, **{**model, **changes})
