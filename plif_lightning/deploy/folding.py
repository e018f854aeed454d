"""Fold BN into the preceding convolution for inference (Sec. 4.1 of the paper)."""

import copy

import torch
from torch import nn

from plif_lightning.deploy.layers import network_of
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.hooks import has_hooks


def _is_plain(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and "weight" in conv._parameters and not has_hooks(conv)


def fold(net: SpikingNetwork) -> SpikingNetwork:
    """Return a copy of a trained network with BN folded into its convolutions, in evaluation mode.

    W' = W w / sqrt(var + eps) and b' = b - mean w / sqrt(var + eps), computed in float64 and rounded once. Votes equal
    those of the network in evaluation mode up to the rounding of potentials.

    Args:
        net: network with BN, or already folded.

    Raises:
        UserError: a convolution or BN was replaced by another module, or has hooks.

    Source: Fang et al. 2021, Sec. 4.1.
    """
    net = network_of(net)
    for name, block in net.encoder.named_children():
        _require_foldable(name, block)
    folded = copy.deepcopy(net).eval()
    for block in folded.encoder.children():
        assert isinstance(block, ConvBlock)
        if block.norm is not None:
            _fold(block.norm.bn, block.conv)
            block.norm = None
    return folded


def _require_foldable(name: str, block: nn.Module) -> None:
    if not isinstance(block, ConvBlock) or not _is_plain(block.conv):
        raise UserError(
            f"{name} is not a plain convolution with BN and neurons, or it has hooks: BN cannot be folded into it."
        )
    norm = block.norm
    if norm is not None and (not norm.is_affine_with_averages or has_hooks(norm) or has_hooks(norm.bn)):
        raise UserError(
            f"the norm of {name} is not BN with affine parameters and running averages, or it has hooks: it cannot be "
            "folded into a convolution."
        )


@torch.no_grad()
def _fold(bn: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """Replace the weight and bias of a convolution by those that include its BN."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() * torch.rsqrt(bn.running_var.double() + bn.eps)
    shift = bn.bias.double() - bn.running_mean.double() * scale
    if conv.bias is not None:
        shift += conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
