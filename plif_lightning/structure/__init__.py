"""A network as a text, in the notation of Table S1: its layers, read and written without PyTorch."""

from plif_lightning.structure.layers import (
    FC,
    NEURONS,
    Conv,
    LayerSpec,
    Neurons,
    NotationLayer,
    Pool,
    Readout,
    Residual,
    Structure,
    Votes,
)
from plif_lightning.structure.notation import parse
from plif_lightning.structure.paper import NUMBERS, Numbers, numbers_of, resolve_structure
from plif_lightning.structure.shapes import FROM_DATA, layer_specs

__all__ = [
    "FC",
    "FROM_DATA",
    "NEURONS",
    "NUMBERS",
    "Conv",
    "LayerSpec",
    "Neurons",
    "NotationLayer",
    "Numbers",
    "Pool",
    "Readout",
    "Residual",
    "Structure",
    "Votes",
    "layer_specs",
    "numbers_of",
    "parse",
    "resolve_structure",
]
