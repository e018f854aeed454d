"""Networks in the form of an inference: BN folded into the layer before it (Sec. 4.1 of the paper), delays rounded."""

import copy
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from plif_lightning.errors import UserError
from plif_lightning.layers.delay import Delay
from plif_lightning.layers.plan import ConvBlock, FCBlock
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.stepping import unwrapped
from plif_lightning.network.storage.fingerprint import fingerprint
from plif_lightning.signals.hooks import has_hooks
from plif_lightning.structure.layers import Delay as WrittenDelay


def require_structure(net: nn.Module) -> SpikingNetwork:
    """The network itself, unwrapped from a task or a compiled module.

    Raises:
        UserError: it is user-defined, or does more than its structure says: a part was replaced, or has hooks.
    """
    net = unwrapped(net)
    if not has_structure(net) or type(net).forward is not SpikingNetwork.forward:
        raise UserError(
            f"folding, frozen networks, streams and NIR need a network from a structure, got a {type(net).__name__}. A "
            "user-defined network, whose layers have no known order, exports to pt2 and ONNX."
        )
    with torch.device("meta"):
        as_written = fingerprint(SpikingNetwork(**net.arguments))
    if fingerprint(net) != as_written:
        raise UserError(f"a part of the network was replaced, so that it is no longer {net.structure}: write it there.")
    if hooked := [name or "the network" for name, module in net.named_modules() if has_hooks(module)]:
        raise UserError(
            f"{', '.join(hooked)} has hooks, which would be lost: remove them, or make them permanent "
            "(torch.nn.utils.prune.remove)."
        )
    return net


def fold(net: nn.Module, dtype: torch.dtype | None = None) -> SpikingNetwork:
    """A copy of a trained network with BN folded into its convolutions and FC layers, in evaluation mode.

    W' = W w / sqrt(var + eps) and b' = b - mean w / sqrt(var + eps), computed in float64 and rounded once. Votes equal
    the network's in evaluation mode up to the rounding of potentials.

    Args:
        net: network from a structure, with BN or already folded.
        dtype: of the copy; by default the network's.

    Raises:
        UserError: as `require_structure`.

    Source: Fang et al. 2021, Sec. 4.1.
    """
    folded = copy.deepcopy(require_structure(net)).eval().to(dtype)
    for block in folded.layers().values():
        if isinstance(block, (ConvBlock, FCBlock)) and block.norm is not None:
            _fold(block.norm.bn, block.conv if isinstance(block, ConvBlock) else block.fc)
            block.norm = None
    folded.arguments = {**folded.arguments, "folded": True}
    return folded


def round_delays(net: nn.Module) -> nn.Module:
    """A copy of a network, in evaluation mode, whose delays are whole numbers: spikes behind them stay spikes.

    Args:
        net: any with layers `Delay`, or a `SpikingClassifier` of it; in a network from a structure, its `DELAY`s get
            the argument `rounds=true`.

    Raises:
        UserError: a part of a network from a structure was replaced, or has hooks.
    """
    net = unwrapped(net)
    if not has_structure(net):
        rounded = copy.deepcopy(net)
        for module in rounded.modules():
            if isinstance(module, Delay):
                module.rounds = True
        return rounded.eval()

    def rounding(delay: WrittenDelay) -> WrittenDelay:
        return replace(delay, arguments=tuple({**dict(delay.arguments), "rounds": True}.items()))

    net = require_structure(net)
    structure = str(net.structure.substitute(WrittenDelay, rounding))
    whole = SpikingNetwork(**{**net.arguments, "structure": structure}).to(next(net.parameters()))
    whole.load_state_dict(net.state_dict())
    return whole.eval()


def for_evaluation(net: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode; folded if it has a structure."""
    return fold(net) if has_structure(net) else copy.deepcopy(net).eval()


def has_structure(net: nn.Module) -> TypeGuard[SpikingNetwork]:
    """True for a network from a structure, False for a user-defined one."""
    return isinstance(net, SpikingNetwork)


@torch.no_grad()
def _fold(bn: _BatchNorm, layer: nn.Conv2d | nn.Linear) -> None:
    """Replace the weight and bias of a convolution or FC layer by values that include its BN."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = torch.rsqrt(bn.running_var.double() + bn.eps)
    if bn.affine:
        scale = bn.weight.double() * scale
    shift = -bn.running_mean.double() * scale
    if bn.affine:
        shift += bn.bias.double()
    if layer.bias is not None:
        shift += layer.bias.double() * scale
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype))
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype))
