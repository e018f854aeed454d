"""A network as a text, in the notation of Table S1: its layers, read and written without PyTorch."""

from plif_lightning.structure.layers import (
    FC,
    Conv,
    Integrator,
    Layer,
    Neurons,
    Pool,
    Residual,
    Structure,
    Votes,
)
from plif_lightning.structure.notation import NEURONS, parse
from plif_lightning.structure.paper import NUMBERS, Numbers, numbers_of, resolved
from plif_lightning.structure.shapes import FROM_DATA, Placed, placed

__all__ = [
    "FC",
    "FROM_DATA",
    "NEURONS",
    "NUMBERS",
    "Conv",
    "Integrator",
    "Layer",
    "Neurons",
    "Numbers",
    "Placed",
    "Pool",
    "Residual",
    "Structure",
    "Votes",
    "numbers_of",
    "parse",
    "placed",
    "resolved",
]
