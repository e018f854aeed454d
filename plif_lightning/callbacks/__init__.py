"""Callbacks and loggers, one concern per file, under the names that configurations use."""

from plif_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from plif_lightning.callbacks.logger import RunLogger
from plif_lightning.callbacks.monitor import LayerMonitor
from plif_lightning.callbacks.plots import ConfusionMatrix, CurvePlots
from plif_lightning.callbacks.predictions import PredictionWriter
from plif_lightning.callbacks.records import CommandRecord, SampleRecord, WeightRecord
from plif_lightning.callbacks.wandb import WandbRecord, WandbRunLogger

__all__ = [
    "BestCheckpoint",
    "CommandRecord",
    "ConfusionMatrix",
    "CurvePlots",
    "LastCheckpoint",
    "LayerMonitor",
    "PredictionWriter",
    "RunLogger",
    "SampleRecord",
    "WandbRecord",
    "WandbRunLogger",
    "WeightRecord",
]
