"""The neuron of this package for a node of SpikingJelly."""

from typing import Any

from torch import nn

from plif_lightning.convert.surrogates import counts_like_ilif, surrogate_of
from plif_lightning.neurons import CLIF, EIF, IF, KLIF, LIF, PLIF, QIF, Neuron
from plif_lightning.neurons.published import ILIF, UndecayedKLIF, UndecayedLIF, UndecayedPLIF

# Node -> our neuron, without and with `decay_input=False`, and its parameters by SpikingJelly's names.
NODES: dict[str, tuple[type[Neuron], type[Neuron] | None, dict[str, str]]] = {
    "IFNode": (IF, None, {}),
    "LIFNode": (LIF, UndecayedLIF, {}),
    "ParametricLIFNode": (PLIF, UndecayedPLIF, {}),
    "QIFNode": (QIF, None, {"a0": "a_0", "v_rest": "v_rest", "v_c": "v_c"}),
    "EIFNode": (EIF, None, {"delta_T": "delta_t", "v_rest": "v_rest", "theta_rh": "theta_rh"}),
    "KLIFNode": (KLIF, UndecayedKLIF, {}),
    "ComplementaryLIFNode": (CLIF, None, {}),
    "ILIFNode": (ILIF, ILIF, {}),
}
# Learned parameters of a node -> the tensor of our neuron.
_LEARNED = {"w": "a", "k": "slope_raw"}


def why_no_neuron(node: Any, name: str) -> str:
    """Why no neuron has a node's surrogate and reset; empty if one has.

    Args:
        node: the node.
        name: of its class in the newest generation.
    """
    surrogate = node.surrogate_function
    known = counts_like_ilif if NODES[name][0] is ILIF else surrogate_of
    if not known(surrogate) or not surrogate.spiking:
        return f"surrogate {type(surrogate).__name__}"
    return "scale_reset=True" if getattr(node, "scale_reset", False) else ""


def neuron_of(node: Any, name: str) -> Neuron:
    """The neuron with a node's equations and constants.

    Args:
        node: the node.
        name: of its class in the newest generation.
    """
    kind, undecayed, arguments = NODES[name]
    surrogate, width = surrogate_of(node.surrogate_function) or ("atan", 1.0)
    firing = {
        "v_threshold": node.v_threshold,
        "v_reset": node.v_reset or 0.0,
        "reset": "soft" if node.v_reset is None else "hard",
        "detach_reset": node.detach_reset,
        "surrogate": surrogate,
        "surrogate_width": float(width),
    }
    settings = {name_here: getattr(node, theirs) for theirs, name_here in arguments.items()}
    if kind is ILIF:
        settings["max_count"] = node.surrogate_function.max_spike_count
    if issubclass(kind, LIF):
        settings |= {"init_tau": getattr(node, "tau", 2.0)}
    elif hasattr(node, "tau"):
        settings |= {"k": 1 / node.tau}
    if not getattr(node, "decay_input", True):
        assert undecayed is not None
        kind = undecayed
    return kind(**settings, **firing)


def copy_learned(node: nn.Module, neuron: Neuron) -> dict[str, nn.Parameter]:
    """Give a neuron its node's parameters, as [1]; returns them by their names in SpikingJelly."""
    copied = {}
    for theirs, parameter in node.named_parameters(recurse=False):
        copied[theirs] = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
        setattr(neuron, _LEARNED[theirs], copied[theirs])
    return copied
