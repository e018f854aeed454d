"""Names of a network's parameters."""

from torch import nn

from plif_lightning.neurons import Neuron
from plif_lightning.neurons.modules import LIF


def parameter_names(net: nn.Module) -> dict[str, list[str]]:
    """The names of each parameter: in the network, and of a neuron's by what it gives, such as `fc1.neuron.tau`."""
    found = {name: [name] for name, _ in net.named_parameters()}
    for path, neuron in net.named_modules():
        if not isinstance(neuron, Neuron):
            continue
        stored = {parameter.stored_as: name for name, parameter in neuron.declared.items()}
        given = stored | {"v_threshold_raw": "v_threshold"} | ({"a": "tau"} if isinstance(neuron, LIF) else {})
        for own, _ in neuron.named_parameters(recurse=False):
            found[f"{path}.{own}".lstrip(".")].append(f"{path}.{given[own]}".lstrip("."))
    return found
