"""Checkpoints as files: read when they are whole, and the trained network out of one, without a Trainer."""

import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml

from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.network import ARGUMENTS, SpikingNetwork
from plif_lightning.network.parts import parts_of, require_parts

_PREFIX = "network."
# Characters and parts of a configuration, and how deep they lie, far beyond what any has.
_LONGEST, _MOST_PARTS, _DEEPEST = 2**20, 10_000, 50
# What an export folder holds beside its files: their hashes, and what they are.
EXPORTED = "export.json"


def checkpoint_file(path: Path) -> Path:
    """The file itself, or the checkpoint in a folder that `export` wrote; errors as `load_network`."""
    return _in_export(path) if path.is_dir() else path


def _in_export(folder: Path) -> Path:
    """The checkpoint in a folder that `export` wrote, when it is what was written.

    Raises:
        CheckpointError: the folder is none, or one of its files is missing or altered.
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
            raise CheckpointError(f"{file} is not what was exported: its hash differs. Export the network again.")
    return folder / "network.ckpt"


def sha256_of(file: Path) -> str:
    """The hash of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """What a checkpoint holds. Nothing but tensors and plain values is read.

    Args:
        path: of the file.
        mapped: leave its tensors in the file and map them into memory.

    Raises:
        CheckpointError: there is no such file, it is damaged or no checkpoint, or a weight in it is NaN or infinite.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: pass a file, such as --ckpt_path RUN/checkpoints/best.ckpt.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch itself reads the checksums, but does not compare them
        if damaged is not None:
            raise CheckpointError(
                f"{path} is damaged: its part {damaged} is not what was written. Use another copy of it."
            )
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        # PyTorch's own message would advise to run whatever is in the file.
        raise CheckpointError(
            f"{path} was refused: it holds Python objects beside tensors and plain values, which could run any code. "
            "No checkpoint that `fit` wrote does."
        ) from error
    except Exception as error:  # zipfile, pickle and PyTorch have many for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated or another file ({reason})."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it holds no weights.")
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: its {name} is no tensor.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path} is of no use: {name} in it is NaN or infinite.")
    return checkpoint


def configuration_in(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint; an empty one where the checkpoint holds none.

    It is a stranger's: only its outline is checked here, that `model`, `data`, its `init_args` and `trainer` are there
    and hold names and values.

    Raises:
        CheckpointError: it is none that `fit` wrote.
    """
    text = checkpoint.get("cli_config")
    if text is None:
        return {}
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ValueError("it is no text of a usual length")
        config: Any = yaml.safe_load(text)
        _require_small(config)
        for name in ("model", "data", "trainer"):
            if not isinstance(config.setdefault(name, {}), dict):
                raise ValueError(f"{name} must hold names and values, got {str(config[name])[:80]!r}")
        data = config["data"]
        if not isinstance(data.setdefault("init_args", {}), dict) or not isinstance(data.get("class_path", ""), str):
            raise ValueError("data must have a class_path and init_args")
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not a checkpoint that `fit` wrote: its configuration cannot be read ({reason})."
        ) from error
    return config


def _require_small(value: Any) -> None:
    """Refuses what has more parts than any configuration; a YAML file of a few lines can have billions."""
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
    """Names of the classes that a checkpoint's network tells apart; None where it does not say them.

    Args:
        checkpoint: anyone's.
        number: of the network's classes.
    """
    names = checkpoint.get("class_names")
    known = isinstance(names, list) and len(names) == number and all(isinstance(name, str) for name in names)
    return names if known else None


def load_network(path: str | Path) -> SpikingNetwork:
    """The network of a checkpoint that `fit` wrote, in evaluation mode, on the CPU.

    Args:
        path: such as RUN/checkpoints/best.ckpt, or a folder that `export` wrote. Nothing but tensors and plain values
            is read from it.

    Raises:
        CheckpointError: as `load_checkpoint`; files of an export folder are missing or altered.
    """
    path = checkpoint_file(Path(path))
    return network_in(load_checkpoint(path), path)


def network_in(checkpoint: dict[str, Any], path: Path) -> SpikingNetwork:
    """`load_network` of a checkpoint that was read already, from `path`."""
    if not isinstance(checkpoint.get("hyper_parameters"), dict):
        raise CheckpointError(f"{path} is not a checkpoint that `fit` wrote: it does not say what its network is.")
    try:
        arguments = {k: v for k, v in checkpoint["hyper_parameters"].items() if k in ARGUMENTS}
        # The form that it was trained with may not run here: `use_backend` chooses another one than the fastest.
        network = SpikingNetwork(**{**arguments, "backend": "auto", "sparse": "auto"})
        if "network_parts" in checkpoint:  # older ones do not say
            require_parts(parts_of(network), checkpoint["network_parts"], path)
        weights = checkpoint["state_dict"]
        weights = {k.replace("._orig_mod.", "."): v for k, v in weights.items()}  # of a network that was compiled
        network.load_state_dict({k.removeprefix(_PREFIX): v for k, v in weights.items() if k.startswith(_PREFIX)})
    except UserError:
        raise
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the network in {path} cannot be made: {reason}") from error
    return network.eval()
