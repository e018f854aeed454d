"""Read a run's JSON and YAML files."""

import json
from pathlib import Path
from typing import Any

import yaml

from plif_lightning.errors import UserError


def load_mapping(path: Path) -> dict[str, Any]:
    """Content of a file.

    Raises:
        UserError: the file does not exist, cannot be read, or holds something else.
    """
    try:
        text = path.read_text("utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold names and values, got {type(value).__name__}.")
    return value


# libyaml's loader, if available, reads a hundred configurations in a second instead of ten.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
