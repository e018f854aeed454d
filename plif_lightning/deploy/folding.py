"""Fold BN into the preceding convolution for inference (Sec. 4.1 of the paper)."""

import copy
import itertools
from typing import Any

import torch
from torch import nn

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import Blocks, NeuronBlock, layers_of
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.hooks import has_hooks
from plif_lightning.network.layers import Pool2d
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.tracing import plain


def _is_plain(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and "weight" in conv._parameters and not has_hooks(conv)


def fold(net: nn.Module) -> Any:
    """Return a copy of a trained network with BN folded into its convolutions, in evaluation mode.

    W' = W w / sqrt(var + eps) and b' = b - mean w / sqrt(var + eps), computed in float64 and rounded once. Votes equal
    those of the network in evaluation mode up to the rounding of potentials.

    Args:
        net: network with BN, or already folded. In a network of one's own, BN is folded that follows a convolution in
            a `ConvBlock` or directly in an `nn.Sequential`.

    Raises:
        UserError: a convolution or BN was replaced by another module, or has hooks; or it is not known what a BN of a
            network of one's own follows. The message names it.

    Source: Fang et al. 2021, Sec. 4.1.
    """
    net = plain(net)
    if not isinstance(net, SpikingNetwork):
        return _folded(net)
    for name, block in layers_of(net.encoder):
        if not isinstance(block, (NeuronBlock, Pool2d)):
            _require_foldable(name, block)
    folded = copy.deepcopy(net).eval()
    for block in folded.encoder.modules():
        if isinstance(block, ConvBlock) and block.norm is not None:
            _fold(block.norm.bn, block.conv)
            block.norm = None
    folded.arguments = {**folded.arguments, "folded": True}
    return folded


def _folded(net: nn.Module) -> nn.Module:
    """`fold` of a network of one's own."""
    folded = copy.deepcopy(net).eval()
    for name, part in folded.named_modules():
        if isinstance(part, ConvBlock):
            _require_foldable(name, part)
            if part.norm is not None:
                _fold(part.norm.bn, part.conv)
                part.norm = None
        elif isinstance(part, nn.Sequential) and type(part).forward in (nn.Sequential.forward, Blocks.forward):
            parts = list(part.named_children())
            for (_, conv), (key, norm) in itertools.pairwise(parts):
                bn = norm.bn if isinstance(norm, TimeBatchNorm2d) else norm
                if _is_plain(conv) and type(bn) is nn.BatchNorm2d and TimeBatchNorm2d.has_averages(bn):
                    if has_hooks(norm) or has_hooks(bn):
                        continue
                    assert isinstance(conv, nn.Conv2d)
                    _fold(bn, conv)
                    part._modules[key] = nn.Identity()
    for name, part in folded.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{name} of {type(net).__name__} cannot be folded: it is not known to follow a convolution directly. "
                "Put both into a ConvBlock, or one after the other into an nn.Sequential."
            )
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
