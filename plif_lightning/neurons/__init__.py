"""Spiking neurons as modules."""

from plif_lightning.neurons.modules import IF, LIF, PLIF, Neuron, NeuronName, TauPer, make_neuron

__all__ = ["IF", "LIF", "PLIF", "Neuron", "NeuronName", "TauPer", "make_neuron"]
