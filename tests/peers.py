"""Parts of other libraries that cannot be imported in the usual way."""

import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any


@cache
def spikingjelly_dataset_utils() -> Any:
    """spikingjelly.datasets.utils alone: its package imports torchaudio, which may not match this torch."""
    import spikingjelly

    name = "spikingjelly.datasets"
    package = types.ModuleType(name)
    package.__path__ = []
    sys.modules.setdefault(name, package)
    path = Path(spikingjelly.__path__[0]) / "datasets" / "utils.py"
    spec = importlib.util.spec_from_file_location(f"{name}.utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
