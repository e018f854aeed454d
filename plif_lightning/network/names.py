"""Names of a network's parameters."""

from torch import nn

from plif_lightning.neurons import Neuron
from plif_lightning.neurons.modules import LIF


def parameter_names(net: nn.Module) -> dict[str, list[str]]:
    """The names of each parameter: in the network, and of a neuron's by what it gives, such as `fc1.neuron.tau`."""
    first = {id(parameter): name for name, parameter in net.named_parameters()}  # of tied ones
    found = {name: [name] for name in first.values()}
    for path, neuron in net.named_modules():
        if not isinstance(neuron, Neuron):
            continue
        stored = {parameter.stored_as: name for name, parameter in neuron.declared.items()}
        given = stored | {"v_threshold_raw": "v_threshold"} | ({"a": "tau"} if isinstance(neuron, LIF) else {})
        for own, parameter in neuron.named_parameters(recurse=False):
            if own in given:
                found[first[id(parameter)]].append(f"{path}.{given[own]}".lstrip("."))
    return found
