"""Test samples of the data set that a checkpoint names."""

import importlib
from typing import Any

import torch
from torch import Tensor

from plif_lightning.data.base import SpikingDataModule
from plif_lightning.data.batch import time_first
from plif_lightning.data.loading import BatchRequest
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
    """Evenly spaced test samples of a data set, [T, N, C, H, W] or [N, C, H, W], and their labels [N].

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
    return spread_test_samples(module, number)


def spread_test_samples(module: SpikingDataModule, number: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced test samples of a data module, [T, N, C, H, W] or [N, C, H, W], and their labels [N].

    Recordings and images in folders are sorted by class: the first ones would be of one class.
    """
    module.prepare_data()
    module.setup("test")
    n = len(module.labels(train=False))
    chosen = torch.linspace(0, n - 1, min(number, n), dtype=torch.float64).round().long()
    part = module.dataset(train=False, indices=chosen, augment=False)
    batches = [part.batch(BatchRequest(0, at)) for at in torch.arange(len(chosen)).split(module.eval_batch_size)]
    return time_first(torch.cat([b.x for b in batches])).float(), torch.cat([b.label for b in batches])
