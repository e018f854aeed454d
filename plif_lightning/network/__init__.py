"""Networks: from a structure, or user-defined; their time, and how they are stored."""

from plif_lightning.layers.inputs import InputEncoder, InputEncoderName
from plif_lightning.layers.norm import NormStatistics
from plif_lightning.layers.pooling import Pooling, PoolTies, SpikeMaxPool2d
from plif_lightning.layers.recurrent import Recurrent
from plif_lightning.network.inspect import layer_outputs
from plif_lightning.network.network import SpikingNetwork, use_backend
from plif_lightning.network.over_time import OverTime, over_time
from plif_lightning.network.stepping import step, traces
from plif_lightning.network.storage.checkpoint import load_network
from plif_lightning.network.storage.pretrained import from_pretrained, push_to_hub, save_pretrained
from plif_lightning.structure import Structure

__all__ = [
    "InputEncoder",
    "InputEncoderName",
    "NormStatistics",
    "OverTime",
    "PoolTies",
    "Pooling",
    "Recurrent",
    "SpikeMaxPool2d",
    "SpikingNetwork",
    "Structure",
    "from_pretrained",
    "layer_outputs",
    "load_network",
    "over_time",
    "push_to_hub",
    "save_pretrained",
    "step",
    "traces",
    "use_backend",
]
