"""Read a run's JSON and YAML files, which are untrusted; an unreadable file never stops the others from being read."""

import json
from pathlib import Path
from typing import Any

import yaml


def printable(value: Any) -> Any:
    """Escape characters that UTF-8 cannot encode (lone surrogates)."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [printable(part) for part in value]
    if isinstance(value, dict):
        return {printable(key): printable(part) for key, part in value.items()}
    return value


def loaded(path: Path, problems: list[str], optional: bool = False) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        value = printable(json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader))
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path} does not exist.")
        return {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {' '.join(str(error).split())}.")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path} must hold names and values, got {type(value).__name__}.")
        return {}
    return value


# libyaml's loader, if available, reads a hundred configurations in one second instead of ten.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
