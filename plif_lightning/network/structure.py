"""The structure of a network, read from its modules."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from plif_lightning.network.blocks import FCBlock, NeuronBlock, Residual
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.output import Integral, Output, Voting
from plif_lightning.network.pooling import SpikeMaxPool2d, TiedMaxPool2d
from plif_lightning.neurons import Neuron
from plif_lightning.structure import FC, Conv, Integrator, Layer, Neurons, Other, Pool, Structure, Votes
from plif_lightning.structure import Residual as ResidualLayer
from plif_lightning.structure.layers import Size, half_of


def structure_of(
    encoder: Iterable[nn.Module], classifier: Iterable[nn.Module], output: nn.Module, dropout: float | Sequence[float]
) -> Structure:
    """The structure of these modules; one that the notation does not cover appears by the name of its class.

    Args:
        encoder: blocks of the encoder.
        classifier: blocks of the classifier.
        output: what makes votes of the last block's output.
        dropout: drop probabilities that are written as `DP`.
    """
    layers = [layer for block in encoder for layer in _layers(block)]
    usual = {dropout} if isinstance(dropout, (int, float)) else set(dropout)
    fcs = [layer for block in classifier for layer in _fc(block, usual)]
    match output:
        case Voting():
            last: list[Layer] = [Votes(output.votes_per_class)]
        case Integral():
            own = () if output.init_tau == 2.0 else (("init_tau", output.init_tau),)
            last = [Integrator(own)]
        case Output():
            last = []
        case _:
            last = [_other(output)]
    return Structure((*layers, *fcs, *last))


def _other(module: nn.Module) -> Other:
    return Other(type(module).__name__)


def _size(size: int | Sequence[int]) -> Size:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _neurons(neuron: nn.Module) -> Neurons:
    kind = type(neuron)
    if not isinstance(neuron, Neuron):
        return Neurons(kind.__name__)
    ours = kind.__module__.startswith("plif_lightning.")
    # One that was not made with the network tells by its own arguments what it is.
    given = tuple((name, value) for name, value in neuron.given.items() if name != "channels")
    name = kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"
    return Neurons(name, getattr(neuron, "_written", given))


def _pool(pool: nn.Module) -> Pool | Other:
    inside = pool.pool if isinstance(pool, Pool2d) else pool
    if isinstance(inside, SpikeMaxPool2d):
        return Pool("MP", 2, 2)
    if isinstance(inside, (nn.MaxPool2d, nn.AvgPool2d, TiedMaxPool2d)):
        window = [_size(side) for side in (inside.kernel_size, inside.stride, inside.padding)]
        return Pool("AP" if isinstance(inside, nn.AvgPool2d) else "MP", *window)
    if isinstance(inside, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and inside.output_size == 1:
        return Pool("AP" if isinstance(inside, nn.AdaptiveAvgPool2d) else "MP")
    return Other(Conv(**_convolution(inside), norm=False).convolution) if _is_conv(inside) else _other(inside)


def _is_conv(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)


def _convolution(conv: nn.Module) -> dict[str, Any]:
    """Size of a convolution, as `Conv` takes it."""
    assert isinstance(conv, nn.Conv2d)
    kernel, padding = _size(conv.kernel_size), _size([int(side) for side in conv.padding])
    sizes = {"stride": _size(conv.stride), "padding": None if padding == half_of(kernel) else padding}
    return {
        "channels": conv.out_channels,
        "kernel": kernel,
        **sizes,
        "dilation": _size(conv.dilation),
        "groups": conv.groups,
    }


def _layers(block: nn.Module) -> list[Layer]:
    match block:
        case ConvBlock():
            return _conv(block)
        case NeuronBlock():
            return [_neurons(block.neuron)]
        case Residual():
            parts = [tuple(layer for b in part for layer in _layers(b)) for part in (block.branch, block.shortcut)]
            return [ResidualLayer(block.how, *parts)]
        case Pool2d():
            return [_pool(block)]
    return [_other(block)]


def _conv(block: ConvBlock) -> list[Layer]:
    known = block.norm is None or isinstance(block.norm, TimeBatchNorm2d)
    neurons = None if block.neuron is None else _neurons(block.neuron)
    pool = None if block.pool is None else _pool(block.pool)
    if _is_conv(block.conv) and known and (neurons is not None or pool is None):
        norm = block.norm is not None
        return [Conv(**_convolution(block.conv), norm=norm, neurons=neurons, pool=pool)]
    parts = [block.conv, *([] if block.norm is None else [block.norm])]
    names = [Other("BN") if isinstance(part, TimeBatchNorm2d) else _other(part) for part in parts]
    return [*names, *(part for part in (neurons, pool) if part is not None)]


def _fc(block: nn.Module, usual: set[float]) -> list[Layer]:
    if not isinstance(block, FCBlock):
        return [_other(block)]
    drop = block.dropout
    before: list[Layer] = []
    p: float | None = 0.0
    if isinstance(drop, TimeDropout):
        p = None if drop.p in usual and drop.p else float(drop.p)
    elif not isinstance(drop, nn.Identity):
        before = [_other(drop)]
    neurons = None if block.neuron is None else _neurons(block.neuron)
    if isinstance(block.fc, nn.Linear):
        return [*before, FC(block.fc.out_features, block.fc.bias is not None, p, neurons)]
    return [*before, _other(block.fc), *([] if neurons is None else [neurons])]
