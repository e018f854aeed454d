"""Classify a network's layers for deployment and export."""

from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import Blocks, gives_spikes, refuses_block
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.hooks import has_hooks
from plif_lightning.network.tracing import plain

_POLARITIES = 2


def network_of(net: nn.Module) -> SpikingNetwork:
    """Return the network itself, unwrapped from a task or a compiled module.

    Raises:
        UserError: there is no SpikingNetwork in it.
    """
    net = plain(net)
    if not isinstance(net, SpikingNetwork):
        raise UserError(
            f"net must be a SpikingNetwork, or a task with one, got {type(net).__name__}: of a network of your own the "
            "layers are known, but not their order. Describe it by a structure, if the notation has its layers."
        )
    return net


def overrides_containers(net: SpikingNetwork) -> str | None:
    """Reason why a network has something of its own around its blocks; None if it has not. Hooks do not count."""
    if type(net).forward is not SpikingNetwork.forward:
        return f"{type(net).__name__} has a forward of its own"
    for part in (net.encoder, net.classifier):
        if type(part) not in (Blocks, nn.Sequential):
            return f"a container is a {type(part).__name__}"
    return None


def refuses_containers(net: SpikingNetwork) -> str | None:
    """Reason why a network is more than its blocks one after another; None if it is not."""
    if reason := overrides_containers(net):
        return reason
    containers = net, net.encoder, net.classifier, net.inputs, net.voting
    return "it has hooks" if any(map(has_hooks, containers)) else None


def takes_spikes(net: SpikingNetwork) -> dict[str, bool]:
    """Return for each layer True if its input is binary (zeros and ones)."""
    found, spikes = {}, net.inputs.name != "direct"
    for name, block in net.blocks().items():
        found[name] = spikes
        spikes = _gives_spikes(block, spikes)
    # Nothing is known about what other networks do between their blocks.
    hooked = any(map(has_hooks, (net.inputs, net.encoder, net.classifier)))
    return dict.fromkeys(found, False) if hooked or overrides_containers(net) else found


def _gives_spikes(block: nn.Module, spikes: bool) -> bool:
    """True if a block's output is binary; `spikes`: its input is."""
    return gives_spikes(block, spikes) and not any(map(has_hooks, block.modules()))


def spiking_layers(net: SpikingNetwork) -> list[str]:
    """Return the layers that can be replaced by an event-driven or integer form: known kinds with binary input."""
    blocks = net.blocks()
    return [name for name, takes in takes_spikes(net).items() if takes and refuses_block(blocks[name]) is None]


def event_layers(net: SpikingNetwork, x: Tensor | None) -> list[str]:
    """Return the first layer in a list if it takes sparse event frames and can be replaced; otherwise an empty list.

    Args:
        net: the network.
        x: example input: frames [T, N, C, H, W] or static images [N, C, H, W]. Without it, a network with two input
            channels, the polarities, is assumed to take events.
    """
    name, block = next(iter(net.blocks().items()))
    of_events = net.input_shape[0] == _POLARITIES if x is None else x.dim() == 5
    known = isinstance(block, ConvBlock) and refuses_block(block) is None and refuses_containers(net) is None
    return [name] if of_events and known and net.inputs.name == "direct" else []


def weighted(block: nn.Module) -> str:
    """Return the attribute name of a block's convolution or FC layer."""
    return "conv" if isinstance(block, ConvBlock) else "fc"
