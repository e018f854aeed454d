import importlib.util
import sys
import types
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def spikingjelly_utils():
    """spikingjelly.datasets.utils alone: its package imports torchaudio, which may not match this torch."""
    import spikingjelly

    name = "spikingjelly.datasets"
    package = types.ModuleType(name)
    package.__path__ = []
    sys.modules.setdefault(name, package)
    path = Path(spikingjelly.__path__[0]) / "datasets" / "utils.py"
    spec = importlib.util.spec_from_file_location(f"{name}.utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
