"""Networks: from a structure, or user-defined; their time, and how they are stored."""

from plif_lightning.layers.pooling import SpikeMaxPool2d
from plif_lightning.layers.recurrent import Recurrent
from plif_lightning.network.inspect import layer_outputs
from plif_lightning.network.network import SpikingNetwork, use_backend
from plif_lightning.network.over_time import over_time
from plif_lightning.network.stepping import step, traces
from plif_lightning.network.storage.checkpoint import load_network
from plif_lightning.network.storage.pretrained import from_pretrained, push_to_hub, save_pretrained

__all__ = [
    "Recurrent",
    "SpikeMaxPool2d",
    "SpikingNetwork",
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
