"""The layers of a network as what is deployed sees them."""

from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import ConvBlock, FCBlock, has_hooks, is_usual_neuron, own_method
from plif_lightning.network.tracing import plain
from plif_lightning.neurons import Neuron

_POLARITIES = 2


def network_of(net: nn.Module) -> SpikingNetwork:
    """The network itself, or that of a task or a compiled module.

    Raises:
        UserError: it is none.
    """
    net = plain(net)
    if not isinstance(net, SpikingNetwork):
        raise UserError(f"net must be a SpikingNetwork, or a task with one, got {type(net).__name__}.")
    return net


def unusual(block: nn.Module) -> str | None:
    """Why a block is not one of the paper's, in words that follow its name; None where it is."""
    if not isinstance(block, (ConvBlock, FCBlock)):
        return f"is a {type(block).__name__}"
    if any(map(has_hooks, block.modules())):
        return "has hooks, which would be lost"
    if not is_usual_neuron(block.neuron):
        kind = type(block.neuron)
        own = isinstance(block.neuron, Neuron) and f", whose {own_method(block.neuron)} is its own"
        return f"has neurons of the kind {kind.__name__}{own or ''}"
    if isinstance(block, ConvBlock) and not block.has_usual_conv:
        return "has a convolution that is not the paper's 3x3 one"
    if isinstance(block, FCBlock) and not block.has_usual_fc:
        return "has another dropout or FC layer than the paper's"
    return None


def is_usual(block: nn.Module) -> bool:
    """Whether a block is one of the paper's: its parts are this project's own, without hooks that would be lost."""
    return unusual(block) is None


def takes_spikes(net: SpikingNetwork) -> dict[str, bool]:
    """Whether the input of each layer is zeros and ones."""
    found, spikes = {}, net.inputs.name != "direct"
    for name, block in net.blocks().items():
        found[name] = spikes
        if isinstance(block, ConvBlock):
            spikes = is_usual(block) and block.pool_name in ("none", "max_first", "max_random")
        else:
            spikes = is_usual(block)
    return found if not has_hooks(net.encoder) and not has_hooks(net.classifier) else dict.fromkeys(found, False)


def spiking_layers(net: SpikingNetwork) -> list[str]:
    """The layers that may be given another form: usual ones, whose input is zeros and ones."""
    blocks = net.blocks()
    return [name for name, takes in takes_spikes(net).items() if takes and is_usual(blocks[name])]


def event_layers(net: SpikingNetwork, x: Tensor | None) -> list[str]:
    """The layer that takes frames of events, in which little is not zero, where it may be given another form.

    Args:
        net: the network.
        x: what it takes: frames [T, N, C, H, W] or static images [N, C, H, W]. Without it, two channels, the polarities
            of events, tell an event network.
    """
    name, block = next(iter(net.blocks().items()))
    of_events = net.input_shape[0] == _POLARITIES if x is None else x.dim() == 5
    usual = isinstance(block, ConvBlock) and is_usual(block) and not has_hooks(net.encoder)
    return [name] if of_events and usual and net.inputs.name == "direct" else []


def weighted(block: nn.Module) -> str:
    """Which part of a block is its convolution or FC layer."""
    return "conv" if isinstance(block, ConvBlock) else "fc"
