"""Networks: from a structure, or user-defined; their blocks, time, and checkpoints."""

from plif_lightning.network.checkpoint import load_network
from plif_lightning.network.converted import to_spikingjelly_state_dict
from plif_lightning.network.from_nir import from_nir
from plif_lightning.network.hooks import layer_outputs
from plif_lightning.network.inputs import InputEncoder, InputEncoderName
from plif_lightning.network.network import SpikingNetwork, use_backend
from plif_lightning.network.norm import NormStatistics
from plif_lightning.network.over_time import OverTime, over_time
from plif_lightning.network.pooling import Pooling, PoolTies, SpikeMaxPool2d
from plif_lightning.network.pretrained import from_pretrained, push_to_hub, save_pretrained
from plif_lightning.network.recurrent import Recurrent
from plif_lightning.network.spikingjelly import from_spikingjelly
from plif_lightning.network.stepping import step, traces
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
    "from_nir",
    "from_pretrained",
    "from_spikingjelly",
    "layer_outputs",
    "load_network",
    "over_time",
    "push_to_hub",
    "save_pretrained",
    "step",
    "to_spikingjelly_state_dict",
    "traces",
    "use_backend",
]
