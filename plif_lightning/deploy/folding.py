"""Fold BN into the preceding convolution for inference (Sec. 4.1 of the paper)."""

import copy
import itertools
from collections import Counter
from typing import Any

import torch
from torch import nn

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.blocks import Blocks, NeuronBlock, layers_of
from plif_lightning.network.conv import ConvBlock, refuses_class
from plif_lightning.network.hooks import has_hooks
from plif_lightning.network.layers import Pool2d
from plif_lightning.network.norm import TimeBatchNorm2d, is_batch_norm
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
        UserError: a convolution or BN was replaced by another module or has hooks; a convolution has several places in
            the network; or it is not known what a BN of a network of one's own follows. The message names it.

    Source: Fang et al. 2021, Sec. 4.1.
    """
    net = plain(net)
    if not isinstance(net, SpikingNetwork):
        return _folded(net)
    for name, block in layers_of(net.encoder):
        if not isinstance(block, (NeuronBlock, Pool2d)):
            _require_foldable(name, block)
    folded = copy.deepcopy(net).eval()
    places = _places(folded)
    for name, block in folded.named_modules():
        if isinstance(block, ConvBlock):
            _fold_block(name, block, places)
    folded.arguments = {**folded.arguments, "folded": True}
    return folded


def _folded(net: nn.Module) -> nn.Module:
    """`fold` of a network of one's own."""
    folded = copy.deepcopy(net).eval()
    places = _places(folded)
    for name, part in folded.named_modules():
        if isinstance(part, ConvBlock):
            _require_foldable(name, part)
            _fold_block(name, part, places)
        elif isinstance(part, nn.Sequential) and type(part).forward in (nn.Sequential.forward, Blocks.forward):
            # Not named_children, which leaves out a module that comes again.
            for (before, conv), (key, norm) in itertools.pairwise([*part._modules.items()]):
                bn = None if norm is None else _bn_of(norm)
                if bn is not None and conv is not None and _is_plain(conv):
                    assert isinstance(conv, nn.Conv2d)
                    _require_once(f"{name}.{before}".removeprefix("."), conv, places)
                    _fold(bn, conv)
                    part._modules[key] = nn.Identity()
    for name, part in folded.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{name} of {type(net).__name__} cannot be folded: it is not known to be a plain BN2d with running "
                "statistics that follows a plain convolution directly, or one of them has hooks. Put both into a "
                "ConvBlock, or one after the other into an nn.Sequential."
            )
    return folded


def _places(net: nn.Module) -> Counter[int]:
    """Number of places that each module has in a network."""
    return Counter(id(child) for module in net.modules() for child in module._modules.values())


def _require_once(name: str, conv: nn.Module, places: Counter[int]) -> None:
    if places[id(conv)] > 1:
        raise UserError(
            f"{name} has several places in the network: its weights cannot include the BN of one of them. Give each "
            "place a module of its own."
        )


def _bn_of(norm: nn.Module) -> nn.BatchNorm2d | None:
    """The BN with running statistics that a module computes in evaluation mode; None if it computes something else."""
    bn: Any = norm
    if isinstance(norm, TimeBatchNorm2d):
        if has_hooks(norm) or refuses_class(norm, TimeBatchNorm2d, "forward"):
            return None
        bn = norm.bn
    plain = is_batch_norm(bn) and bn.running_mean is not None and not has_hooks(bn)
    return bn if plain else None


def _require_foldable(name: str, block: nn.Module) -> None:
    if not isinstance(block, ConvBlock) or not _is_plain(block.conv):
        raise UserError(
            f"{name} is not a plain convolution with BN and neurons, or it has hooks: BN cannot be folded into it."
        )
    if block.norm is not None and _bn_of(block.norm) is None:
        raise UserError(
            f"the norm of {name} is not a plain BN with running statistics, or it has hooks: it cannot be folded into "
            "a convolution."
        )


def _fold_block(name: str, block: ConvBlock, places: Counter[int]) -> None:
    if block.norm is not None:
        bn = _bn_of(block.norm)
        assert bn is not None
        _require_once(f"{name}.conv", block.conv, places)
        _fold(bn, block.conv)
        block.norm = None


@torch.no_grad()
def _fold(bn: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """Replace the weight and bias of a convolution by those that include its BN."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = torch.rsqrt(bn.running_var.double() + bn.eps)
    if bn.affine:
        scale = bn.weight.double() * scale
    shift = -bn.running_mean.double() * scale
    if bn.affine:
        shift += bn.bias.double()
    if conv.bias is not None:
        shift += conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
