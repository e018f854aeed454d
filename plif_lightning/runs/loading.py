"""Read a run's JSON and YAML files, which are untrusted; an unreadable file never stops reading the others."""

import json
from pathlib import Path
from typing import Any

import yaml


def load_mapping(path: Path, problems: list[str], optional: bool = False) -> dict[str, Any]:
    """Content of a file; empty, with a sentence in `problems`, if it cannot be read, or without if it is optional.

    Args:
        path: of the file.
        problems: list that receives the sentence.
        optional: the file may be missing.
    """
    try:
        text = path.read_text("utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path} does not exist.")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path} cannot be read: {' '.join(str(error).split())}.")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path} must hold names and values, got {type(value).__name__}.")
        return {}
    return value


# libyaml's loader, if available, reads a hundred configurations in a second instead of ten.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
