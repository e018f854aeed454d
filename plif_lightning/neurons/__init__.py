"""Spiking neurons as modules."""

from plif_lightning.neurons.making import NeuronName, describe_neuron
from plif_lightning.neurons.modules import IF, LIF, PLIF, Neuron
from plif_lightning.neurons.parameters import fixed, learned
from plif_lightning.neurons.published import ALIF, CLIF, EIF, GLIF, ILIF, KLIF, QIF, AdLIF, SE_AdLIF, Synaptic

__all__ = [
    "ALIF",
    "CLIF",
    "EIF",
    "GLIF",
    "IF",
    "ILIF",
    "KLIF",
    "LIF",
    "PLIF",
    "QIF",
    "AdLIF",
    "Neuron",
    "NeuronName",
    "SE_AdLIF",
    "Synaptic",
    "describe_neuron",
    "fixed",
    "learned",
]
