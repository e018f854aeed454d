"""A trained network out of a checkpoint, without a Trainer."""

import pickle
from pathlib import Path
from typing import Any

import torch

from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.network import ARGUMENTS, SpikingNetwork

_PREFIX = "network."


def load_network(path: str | Path) -> SpikingNetwork:
    """The network of a checkpoint that `fit` wrote, in evaluation mode, on the CPU.

    Args:
        path: such as RUN/checkpoints/best.ckpt. Nothing but tensors and plain values is read from it.

    Raises:
        CheckpointError: there is no such file, or it is no checkpoint of this project.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"checkpoint {path} does not exist, or is a folder.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        arguments = {k: v for k, v in checkpoint["hyper_parameters"].items() if k in ARGUMENTS}
        # The form that it was trained with may not run here: `use_backend` chooses another one than the fastest.
        network = SpikingNetwork(**{**arguments, "backend": "auto"})
        weights = checkpoint["state_dict"]
        network.load_state_dict({k.removeprefix(_PREFIX): v for k, v in weights.items() if k.startswith(_PREFIX)})
    except UserError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read as a network: it is truncated or another file ({reason})."
        ) from error
    return network.eval()
