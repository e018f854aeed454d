"""Spiking neurons: the equations, their surrogate gradients, and modules around them."""

from plif_lightning.neurons.dynamics import integrate_and_fire
from plif_lightning.neurons.firing import Firing
from plif_lightning.neurons.modules import IF, LIF, PLIF, Neuron, NeuronName, TauPer, make_neuron
from plif_lightning.neurons.surrogate import Surrogate, SurrogateName

__all__ = [
    "IF",
    "LIF",
    "PLIF",
    "Firing",
    "Neuron",
    "NeuronName",
    "Surrogate",
    "SurrogateName",
    "TauPer",
    "integrate_and_fire",
    "make_neuron",
]
