"""A layer of neurons by its name, class or another layer, with the settings of a network."""

from plif_lightning.neurons.making import make_layer, settings_of_all


def make_neuron(neuron, channels, **settings):
    return make_layer(neuron, channels, {}, settings_of_all(**settings))
