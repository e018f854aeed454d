"""Networks: from a structure, or user-defined; their blocks, time, and checkpoints."""

from plif_lightning.network.checkpoint import load_network
from plif_lightning.network.inputs import InputEncoder, InputEncoderName
from plif_lightning.network.network import SpikingNetwork, use_backend
from plif_lightning.network.norm import NormStatistics
from plif_lightning.network.over_time import OverTime, over_time
from plif_lightning.network.pooling import Pooling, PoolTies, SpikeMaxPool2d
from plif_lightning.network.stepping import step, traces
from plif_lightning.structure import Structure

__all__ = [
    "InputEncoder",
    "InputEncoderName",
    "NormStatistics",
    "OverTime",
    "PoolTies",
    "Pooling",
    "SpikeMaxPool2d",
    "SpikingNetwork",
    "Structure",
    "load_network",
    "over_time",
    "step",
    "traces",
    "use_backend",
]
