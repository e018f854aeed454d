"""Callbacks and loggers, one concern per file, under the names that configurations use."""

from plif_lightning.callbacks.averaging import EMA
from plif_lightning.callbacks.checkpoints import RunCheckpoints
from plif_lightning.callbacks.logger import RunLogger
from plif_lightning.callbacks.monitor import LayerMonitor
from plif_lightning.callbacks.predictions import ConfusionMatrix, PredictionWriter
from plif_lightning.callbacks.records import RunRecord, SampleRecord, WeightRecord
from plif_lightning.callbacks.wandb import WandbRunLogger

__all__ = [
    "EMA",
    "ConfusionMatrix",
    "LayerMonitor",
    "PredictionWriter",
    "RunCheckpoints",
    "RunLogger",
    "RunRecord",
    "SampleRecord",
    "WandbRunLogger",
    "WeightRecord",
]
