"""Import path of event augmentations in configurations of earlier versions; they are in `plif_lightning.data`."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("plif_lightning.data.event_augment"), name)
