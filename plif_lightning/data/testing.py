"""Some test samples of the data set that a checkpoint names."""

import importlib
from typing import Any

import torch
from torch import Tensor

from plif_lightning.data.base import SpikingDataModule
from plif_lightning.data.batch import time_first
from plif_lightning.errors import UserError


def _data_class(data: dict[str, Any]) -> Any:
    """The class of a checkpoint's data set, whose module is imported.

    Raises:
        UserError: it cannot be imported here, or is no data set.
    """
    path = str(data.get("class_path"))
    try:
        module, name = path.rsplit(".", 1)
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the network's data set {path} cannot be imported ({error}): run where its module can be found, "
            "such as with its folder in PYTHONPATH."
        ) from error
    # Whatever else a checkpoint names would be called with what it says.
    if not isinstance(kind, type) or not issubclass(kind, SpikingDataModule):
        raise UserError(f"the network's data set {path} is none: it must be a subclass of SpikingDataModule.")
    return kind


def samples_to_test(data: dict[str, Any], root: str | None, number: int) -> tuple[Tensor, Tensor]:
    """Some test samples of a data set, [T, N, C, H, W] or [N, C, H, W], and their labels [N].

    Args:
        data: the block of a configuration that names it.
        root: of the data sets, where it is another than the configuration's.
        number: of samples.

    Raises:
        UserError: the data cannot be had.
    """
    arguments = {**data.get("init_args", {}), "num_workers": 0}
    arguments.pop("augmentation", None)  # of training samples
    if root is not None:
        arguments["root"] = root
    try:
        module = _data_class(data)(**arguments)
    except TypeError as error:
        raise UserError(f"the data set {data['class_path']} takes other settings than this needs: {error}.") from error
    return first_test_samples(module, number)


def first_test_samples(module: SpikingDataModule, number: int) -> tuple[Tensor, Tensor]:
    """The first test samples of a data module, [T, N, C, H, W] or [N, C, H, W], and their labels [N]."""
    module.prepare_data()
    module.setup("test")
    x, label = [], []
    for batch in module.test_dataloader():
        x.append(batch.x)
        label.append(batch.label)
        if sum(map(len, x)) >= number:
            break
    return time_first(torch.cat(x)[:number]).float(), torch.cat(label)[:number]
