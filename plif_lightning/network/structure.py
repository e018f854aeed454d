"""A network's layers in the notation of Table S1, read from its modules."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from plif_lightning.network.blocks import FCBlock
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.layers import Pool2d, TimeDropout
from plif_lightning.network.norm import TimeBatchNorm2d
from plif_lightning.network.pooling import SpikeMaxPool2d


@dataclass(frozen=True)
class Structure:
    """The current layers of a network; `str()` is its row of Table S1.

    A module that the notation does not cover is written as its class name.

    Attributes:
        convs: (convolution with BN and neuron, pool or "") of each block of the encoder.
        fcs: dropout, FC layer and neuron of each block of the classifier; without DP if p is 0.
        voting: the last layer.
    """

    convs: tuple[tuple[str, str], ...]
    fcs: tuple[str, ...]
    voting: str

    @classmethod
    def of(cls, encoder: Iterable[nn.Module], classifier: Iterable[nn.Module], voting: nn.Module) -> "Structure":
        """The structure of these blocks."""
        votes = getattr(voting, "votes_per_class", None)
        last = _name(voting) if votes is None else f"APk{votes}s{votes}"
        return cls(tuple(map(_conv_block, encoder)), tuple(map(_fc_block, classifier)), last)

    def __str__(self) -> str:
        stages, inside = [], []
        for conv, pool in self.convs:
            inside.append(conv)
            if pool:
                stages.append("-".join([*_repeated(inside), pool]))
                inside = []
        return "-".join(
            [*_repeated(stages), *_repeated(inside), *_repeated(self.fcs[:-1]), *self.fcs[-1:], self.voting]
        )


def _repeated(parts: Sequence[str]) -> list[str]:
    """Parts with runs of equal ones merged into `{part}*times`."""
    counted = [(part, len(list(group))) for part, group in itertools.groupby(parts)]
    return [part if times == 1 else f"{{{part}}}*{times}" for part, times in counted]


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _size(size: int | Sequence[int]) -> str:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return str(sides[0]) if len(set(sides)) == 1 else "x".join(map(str, sides))


def _conv(conv: nn.Module) -> str:
    """Such as c128k3s1; padding, dilation and groups only if they are not the default."""
    if not isinstance(conv, nn.Conv2d):
        return _name(conv)
    padding = conv.padding if isinstance(conv.padding, str) else _size(conv.padding)
    same_padding = _size([side // 2 for side in conv.kernel_size])
    more = [("p", padding, same_padding), ("d", _size(conv.dilation), "1"), ("g", str(conv.groups), "1")]
    others = "".join(f"{letter}{value}" for letter, value, default in more if value != default)
    return f"c{conv.out_channels}k{_size(conv.kernel_size)}s{_size(conv.stride)}{others}"


def _pool(pool: nn.Module | None) -> str:
    if pool is None:
        return ""
    inside = pool.pool if isinstance(pool, Pool2d) else pool
    if isinstance(inside, SpikeMaxPool2d):
        return "MPk2s2"
    if isinstance(inside, (nn.MaxPool2d, nn.AvgPool2d)):
        letters = "MP" if isinstance(inside, nn.MaxPool2d) else "AP"
        return f"{letters}k{_size(inside.kernel_size)}s{_size(inside.stride)}"
    return _conv(inside)


def _conv_block(block: nn.Module) -> tuple[str, str]:
    if not isinstance(block, ConvBlock):
        return _name(block), ""
    norm = [] if block.norm is None else ["BN" if isinstance(block.norm, TimeBatchNorm2d) else _name(block.norm)]
    return "-".join([_conv(block.conv), *norm, _name(block.neuron)]), _pool(block.pool)


def _fc_block(block: nn.Module) -> str:
    if not isinstance(block, FCBlock):
        return _name(block)
    dropout = "DP" if isinstance(block.dropout, TimeDropout) else _name(block.dropout)
    drops = not isinstance(block.dropout, nn.Identity) and getattr(block.dropout, "p", 1) != 0
    fc = f"FC{block.fc.out_features}" if isinstance(block.fc, nn.Linear) else _name(block.fc)
    return "-".join([*([dropout] if drops else []), fc, _name(block.neuron)])
