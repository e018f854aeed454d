"""Read checkpoint files with integrity checks, and load the trained network from one without a Trainer."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.network import ARGUMENTS, SpikingNetwork
from plif_lightning.network.own import imported_network, own_network
from plif_lightning.network.parts import parts_of, require_finite, require_parts
from plif_lightning.runtime.files import sha256_of
from plif_lightning.structure import FROM_DATA

_PREFIX = "network."
# Limits of a configuration, far above any real one: characters, parts and nesting depth.
_LONGEST, _MOST_PARTS, _DEEPEST = 2**20, 10_000, 50
# Manifest of an export folder: what its files are, and their hashes.
EXPORTED = "export.json"


def checkpoint_file(path: Path) -> Path:
    """`path` if it is a file, or the checkpoint of an export folder; errors as `load_network`."""
    return _in_export(path) if path.is_dir() else path


def _in_export(folder: Path) -> Path:
    """The checkpoint of a folder that `export` wrote, after checking the hashes of its files.

    Raises:
        CheckpointError: it is not an export folder, or one of its files is missing or altered.
    """
    try:
        hashes = dict(json.loads((folder / EXPORTED).read_text("utf-8"))["sha256"])
        hashes["network.ckpt"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is a folder without {EXPORTED}: pass a folder that `export` wrote, or a file such as "
            "RUN/checkpoints/best.ckpt."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / EXPORTED} is damaged: export the network again.") from error
    for name, expected in hashes.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, though {EXPORTED} names it: export the network again.")
        if sha256_of(file) != expected:
            raise CheckpointError(f"{file} was altered after the export: its hash differs. Export the network again.")
    return folder / "network.ckpt"


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Contents of a checkpoint. Only tensors and plain values are read, so no code can run.

    Args:
        path: the checkpoint file.
        mapped: memory-map its tensors instead of reading them.

    Raises:
        CheckpointError: the file does not exist, is damaged or not a checkpoint, or holds a NaN or infinite weight.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: pass a file, such as --ckpt_path RUN/checkpoints/best.ckpt.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist.")
    checkpoint = _read(path, mapped)
    _require_weights(checkpoint, path)
    return checkpoint


def _read(path: Path, mapped: bool) -> Any:
    """Content of a file that PyTorch wrote, of whatever type; arguments and errors as `load_checkpoint`."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not verify the checksums
        if damaged is not None:
            raise CheckpointError(
                f"{path} is damaged: the checksum of its part {damaged} differs. Use another copy of it."
            )
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        # PyTorch's own message would advise weights_only=False, which runs any code in the file.
        raise CheckpointError(
            f"{path} was refused: it holds Python objects, not only tensors and plain values; they could run any code. "
            "No checkpoint that `fit` wrote does."
        ) from error
    except Exception as error:  # zipfile, pickle and PyTorch raise many types for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated or another kind of file ({_in_one_line(error)})."
        ) from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _require_weights(checkpoint: Any, path: Path) -> None:
    """Refuse a file without weights, or with a weight that is NaN or infinite."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it holds no weights.")
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: its {name} is not a tensor.")
    require_finite(checkpoint["state_dict"], path)


def configuration_in(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint; empty if the checkpoint holds none.

    It is untrusted: only its outline is checked here, i.e. that `model`, `data`, its `init_args` and `trainer` are
    mappings; missing ones are added empty.

    Raises:
        CheckpointError: it is not a configuration that `fit` wrote.
    """
    text = checkpoint.get("cli_config")
    if text is None:
        return {}
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ValueError("it is not text, or is too long")
        config: Any = yaml.safe_load(text)
        _require_small(config)
        for name in ("model", "data", "trainer"):
            if not isinstance(config.setdefault(name, {}), dict):
                raise ValueError(f"{name} must hold names and values, got {str(config[name])[:80]!r}")
        data = config["data"]
        if not isinstance(data.setdefault("init_args", {}), dict) or not isinstance(data.get("class_path", ""), str):
            raise ValueError("data must have a class_path and init_args")
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that `fit` wrote: its configuration cannot be read ({_in_one_line(error)})."
        ) from error
    return config


def _require_small(value: Any) -> None:
    """Refuse a value with too many parts: YAML aliases can expand a few lines into billions."""
    waiting, seen = [iter([value])], 0
    while waiting:
        for part in waiting[-1]:
            seen += 1
            if seen > _MOST_PARTS or len(waiting) > _DEEPEST:
                raise ValueError("it has too many parts")
            if isinstance(part, (dict, list)):
                waiting.append(iter([*part, *part.values()] if isinstance(part, dict) else part))
                break
        else:
            waiting.pop()


def class_names_in(checkpoint: dict[str, Any], number: int) -> list[str] | None:
    """Names of the classes of a checkpoint's network; None if the checkpoint holds no valid ones.

    Args:
        checkpoint: an untrusted checkpoint.
        number: number of the network's classes.
    """
    names = checkpoint.get("class_names")
    known = isinstance(names, list) and len(names) == number and all(isinstance(name, str) for name in names)
    return names if known else None


def load_network(path: str | Path, network: nn.Module | None = None) -> Any:
    """The network of a checkpoint that `fit` wrote, in evaluation mode, on the CPU.

    Args:
        path: such as RUN/checkpoints/best.ckpt, or a folder that `export` wrote. Only tensors and plain values are
            read from it; of a network of one's own, the class that its configuration names is imported.
        network: a network of one's own that was built in Python; it gets the checkpoint's weights.

    Returns:
        A `SpikingNetwork`, or the network of one's own.

    Raises:
        CheckpointError: as `load_checkpoint`; or a file of an export folder is missing or altered.
    """
    path = checkpoint_file(Path(path))
    return network_in(load_checkpoint(path), path, network)


def _made(checkpoint: dict[str, Any], path: Path, network: nn.Module | None) -> nn.Module:
    """The network that a checkpoint's arguments describe, without its weights.

    Raises:
        UserError: it is one of one's own, and neither given nor named by a configuration.
    """
    stored = checkpoint["hyper_parameters"]
    arguments = {k: v for k, v in stored.items() if k in ARGUMENTS}
    if stored.get("network") is None and network is None:
        # The backend that it was trained with may not run here; `use_backend` selects another than the fastest.
        return SpikingNetwork(**{**arguments, "backend": "auto", "sparse": "auto"})
    from_data = {name: tuple(stored[name]) if name == "input_shape" else stored[name] for name in FROM_DATA}
    if network is None:
        named = configuration_in(checkpoint, path).get("model", {}).get("network")
        if not isinstance(named, dict) or not isinstance(named.get("class_path"), str):
            raise CheckpointError(
                f"the network in {path} is a {stored['network']} that was built in Python: pass it, too, as "
                "load_network(path, network), or to load_from_checkpoint."
            )
        takes = _arguments_of(imported_network(named["class_path"]))
        network = _module(named, {name: value for name, value in from_data.items() if name in takes})
    return own_network(network, from_data, {})


def _arguments_of(kind: type) -> list[str]:
    """Names of a class's arguments as the command line knows them, those included that it passes on to its bases."""
    from jsonargparse import ArgumentParser  # deferred: only networks of one's own need it

    return ArgumentParser().add_class_arguments(kind, fail_untyped=False)


def _module(described: dict[str, Any], further: Mapping[str, Any]) -> nn.Module:
    """A module from {class_path, init_args}, with those among its arguments, and further arguments."""

    def made(value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            return _module(value, {})
        if isinstance(value, dict):
            return {name: made(part) for name, part in value.items()}
        return [made(part) for part in value] if isinstance(value, list) else value

    return imported_network(described["class_path"])(**made(described.get("init_args") or {}), **further)


def network_in(checkpoint: dict[str, Any], path: Path, network: nn.Module | None = None) -> Any:
    """`load_network` of a checkpoint that was already read from `path`."""
    if not isinstance(checkpoint.get("hyper_parameters"), dict):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it does not say what its network is.")
    try:
        network = _made(checkpoint, path, network)
        if "network_parts" in checkpoint:  # missing in older checkpoints
            require_parts(parts_of(network), checkpoint["network_parts"], path)
        weights = checkpoint["state_dict"]
        weights = {k.replace("._orig_mod.", "."): v for k, v in weights.items()}  # of compiled networks
        network.load_state_dict({k.removeprefix(_PREFIX): v for k, v in weights.items() if k.startswith(_PREFIX)})
    except UserError:
        raise
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"the network in {path} cannot be built: {_in_one_line(error)}") from error
    return network.eval()
