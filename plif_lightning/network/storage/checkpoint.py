"""Read checkpoint files, and load the trained network without a Trainer."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
import yaml
from torch import nn

from plif_lightning.errors import CheckpointError
from plif_lightning.network.network import ARGUMENTS, SpikingNetwork
from plif_lightning.network.storage.fingerprint import require_same
from plif_lightning.network.user_networks import imported_network, user_network
from plif_lightning.structure import FROM_DATA

_PREFIX = "network."
# Manifest of an export folder.
EXPORTED = "export.json"


def checkpoint_file(path: Path) -> Path:
    """`path` if it is a file, or the checkpoint of a folder that `export` wrote."""
    return path / "network.ckpt" if path.is_dir() else path


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Contents of a checkpoint. Only tensors and plain values are read, so no code can run.

    Args:
        path: the checkpoint file.
        mapped: memory-map its tensors instead of reading them.

    Raises:
        CheckpointError: the file does not exist, is damaged or not a checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist, or is not a file such as RUN/checkpoints/best.ckpt.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not verify the checksums
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} differs.")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        checkpoint["state_dict"]
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        # PyTorch's message would advise weights_only=False, which runs any code in the file.
        raise CheckpointError(
            f"{path} was refused: it holds Python objects, not only tensors and plain values; they could run any code. "
            "No checkpoint that `fit` wrote does."
        ) from error
    except Exception as error:  # zipfile, pickle and PyTorch raise many types for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint that `fit` wrote: it is truncated or another kind of file "
            f"({type(error).__name__}: {error})."
        ) from error
    return checkpoint


def configuration_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint, with the blocks model, data and trainer; empty if none."""
    text = checkpoint.get("cli_config")
    if text is None:
        return {}
    config = {"model": {}, "trainer": {}, "data": {}, **yaml.safe_load(text)}
    config["data"] = {"init_args": {}, **config["data"]}
    return config


def class_names_in(checkpoint: dict[str, Any], number: int) -> list[str] | None:
    """Names of the classes of a checkpoint's network; None if there are not `number` of them."""
    names = checkpoint.get("class_names") or []
    return [str(name) for name in names] if len(names) == number else None


_Network = TypeVar("_Network", bound=nn.Module)


@overload
def load_network(path: str | Path) -> SpikingNetwork: ...
@overload
def load_network(path: str | Path, network: _Network) -> _Network: ...
def load_network(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """The network of a checkpoint that `fit` wrote, in evaluation mode, on the CPU.

    It is in PyTorch's default type, to which weights of a run in float64 are rounded: `torch.set_default_dtype` keeps
    them.

    Args:
        path: such as RUN/checkpoints/best.ckpt, or a folder that `export` wrote. Only tensors and plain values are
            read from it; for a user-defined network, the class in its configuration is imported.
        network: a user-defined network that was built in Python; it gets the checkpoint's weights.

    Returns:
        A `SpikingNetwork`, or the user-defined network (for a type checker only if it was passed).

    Raises:
        CheckpointError: as `load_checkpoint`; or it belongs to another network.
    """
    path = checkpoint_file(Path(path))
    found: nn.Module = network_in(load_checkpoint(path), path, network)
    return found


def network_in(checkpoint: dict[str, Any], path: Path, network: nn.Module | None = None) -> Any:
    """`load_network` of a checkpoint that was already read from `path`."""
    if "hyper_parameters" not in checkpoint or "fingerprint" not in checkpoint:
        raise CheckpointError(f"{path} does not say what its network is: it is older than 0.2.0, or not of `fit`.")
    network = _rebuild(checkpoint, path, network)
    require_same(network, checkpoint["fingerprint"], path)
    weights = {name.replace("._orig_mod.", "."): value for name, value in checkpoint["state_dict"].items()}
    try:
        network.load_state_dict({k.removeprefix(_PREFIX): v for k, v in weights.items() if k.startswith(_PREFIX)})
    except RuntimeError as error:  # such as an FC layer of another size
        raise CheckpointError(f"{path} holds the weights of another network: {error}") from error
    return network.eval()


def network_from(arguments: Mapping[str, Any]) -> SpikingNetwork:
    """A network from its stored arguments; others among them are left out."""
    known = {name: value for name, value in arguments.items() if name in ARGUMENTS}
    # The backend that it was trained with may not run here; `use_backend` selects another than the fastest.
    return SpikingNetwork(**{**known, "backend": "auto", "sparse": "auto"})


def from_data_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a checkpoint's network that came from its data set: input_shape, num_classes, time_steps."""
    stored = checkpoint["hyper_parameters"]
    return {name: tuple(stored[name]) if name == "input_shape" else stored[name] for name in FROM_DATA}


def _rebuild(checkpoint: dict[str, Any], path: Path, network: nn.Module | None) -> nn.Module:
    """The network that a checkpoint's arguments describe, without its weights.

    Raises:
        CheckpointError: it is user-defined, and neither given nor named by a configuration.
    """
    stored = checkpoint["hyper_parameters"]
    if stored.get("network") is None and network is None:
        return network_from(stored)
    from_data = from_data_in(checkpoint)
    if network is None:
        described = configuration_in(checkpoint).get("model", {}).get("network") or {}
        if "class_path" not in described:
            raise CheckpointError(
                f"the network in {path} is a {stored['network']} that was built in Python: pass it, too, as "
                "load_network(path, network), or to load_from_checkpoint. Commands need a class that "
                "fit --model.network named; torch.export.export(network, (x,)) exports any."
            )
        takes = _arguments_of(imported_network(described["class_path"]))
        network = _module(described, {name: value for name, value in from_data.items() if name in takes})
    return user_network(network, from_data, {})


def _arguments_of(kind: type) -> list[str]:
    """Names of a class's arguments as on the command line, arguments of its bases included."""
    from jsonargparse import ArgumentParser  # deferred: only user-defined networks need it

    return ArgumentParser().add_class_arguments(kind, fail_untyped=False)


def _module(described: dict[str, Any], further: Mapping[str, Any]) -> nn.Module:
    """A module from {class_path, init_args}, with modules among its arguments, and further arguments."""

    def built(value: Any) -> Any:
        if isinstance(value, dict) and "class_path" in value:
            return _module(value, {})
        if isinstance(value, dict):
            return {name: built(item) for name, item in value.items()}
        return [built(item) for item in value] if isinstance(value, list) else value

    return imported_network(described["class_path"])(**built(described.get("init_args") or {}), **further)
