"""The two repeated parts of the network: conv-BN-neuron and dropout-FC-neuron."""

from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.errors import UserError
from plif_lightning.kernels import (
    Backend,
    PatchMoments,
    Pool,
    SparseLinear,
    conv_of_spikes,
    encode_fire_pool,
    moments,
    norm_fire_pool,
)
from plif_lightning.network.norm import Statistics, TimeBatchNorm2d
from plif_lightning.network.pooling import SpikeMaxPool2d, draw_seed
from plif_lightning.neurons import Neuron


def channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] with C innermost, which the kernels want and in which convolutions are faster; they keep it."""
    images = images.contiguous(memory_format=torch.channels_last)
    n, c, h, w = images.shape
    # With one channel both layouts are the same in memory, and only the strides tell the convolution which is meant.
    return images.as_strided((n, 1, h, w), (h * w, 1, w, 1)) if c == 1 else images


def is_watched(module: nn.Module) -> bool:
    """Whether somebody hooked this module, so that it must be called by itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


# Input channels up to which a convolution is computed again in the backward pass rather than kept: events have 2,
# images 3.
_FEW_CHANNELS = 4
# Values of an input of spikes from which on to keep them as bytes is worth the two conversions.
_MANY_SPIKES = 2**23


class ConvBlock(nn.Module):
    """Conv2d 3x3 (no bias) - BN - neuron over [T, N, C, H, W].

    An input [1, N, C, H, W] is held for `time_steps`: convolution and BN then run once, not T times.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: TimeBatchNorm2d, neuron: Neuron, time_steps: int, backend: Backend | None = None
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.time_steps = time_steps
        self.backend = backend or Backend("reference")

    def forward(self, x: Tensor, pool: "Pool2d | None" = None, of_spikes: bool = False) -> Tensor:
        """Spikes of x [T, N, C, H, W], pooled where a pool is given.

        `of_spikes` says that x is known to be zeros and ones.
        """
        steps = self.time_steps if len(x) == 1 else len(x)
        fuses = self.backend.fuses(x.device)
        plain = fuses and self._is_plain(pool)
        if plain and self._takes_input(x):
            return self._encoded(x, pool)
        images = x.flatten(0, 1)
        if fuses:
            images = channels_last(images)
        if plain and of_spikes and self._keeps_bytes(images):
            dtype = self._dtype(images)
            y = conv_of_spikes(images.to(dtype), self.conv.weight.to(dtype))
        else:
            y = self.conv(images)
        y = y.unflatten(0, x.shape[:2])
        if plain:
            return self._fused(y, pool, steps)
        spikes = self.neuron(self.norm(y, steps), steps)
        return spikes if pool is None else pool(spikes)

    def _is_plain(self, pool: "Pool2d | None") -> bool:
        """Whether nobody changed or watches the parts, so that they can be taken together."""
        parts = [self.norm, self.norm.bn, self.neuron, *([] if pool is None else [pool, pool.pool])]
        return (
            type(self.neuron).run is Neuron.run
            and self.norm.is_plain
            and (pool is None or pool.name is not None)
            and not any(map(is_watched, parts))
        )

    def gives_spikes(self, x: Tensor, pool: "Pool2d | None") -> bool:
        """Whether what is made of x are zeros and ones, whatever the parts are that somebody may have put in."""
        plain = self.backend.fuses(x.device) and self._is_plain(pool)
        return plain and (pool is None or pool.name != "avg")

    def _has_usual_conv(self) -> bool:
        """Whether the convolution is that of the paper's networks, and nobody watches it."""
        conv = self.conv
        return (
            type(conv) is nn.Conv2d
            and not is_watched(conv)
            and conv.bias is None
            and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
            and (conv.groups, conv.padding_mode) == (1, "zeros")
        )

    def _takes_input(self, x: Tensor) -> bool:
        """Whether x is what a network is given, of few channels, and the convolution the usual one."""
        usual = self._has_usual_conv()
        return usual and self.conv.in_channels <= _FEW_CHANNELS and len(x) > 1 and not x.requires_grad

    def _keeps_bytes(self, images: Tensor) -> bool:
        """Whether the convolution's input is to be kept as bytes: it is large, and kept at all."""
        kept = torch.is_grad_enabled() and self.conv.weight.requires_grad
        return kept and images.numel() >= _MANY_SPIKES and self._has_usual_conv()

    def _dtype(self, x: Tensor) -> torch.dtype:
        """That of the convolution."""
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return torch.promote_types(x.dtype, self.conv.weight.dtype)

    def _encoded(self, x: Tensor, pool: "Pool2d | None") -> Tensor:
        dtype = self._dtype(x)
        weight = self.conv.weight.to(dtype)
        x = channels_last(x.flatten(0, 1).to(dtype)).unflatten(0, x.shape[:2])
        patches = PatchMoments.of(x) if self.norm.bn.training else None
        statistics = self.norm.statistics_for(
            lambda: patches.of_convolution(weight),  # type: ignore[union-attr]
            x.shape[1] * x.shape[3] * x.shape[4],
            len(x),
        )
        return encode_fire_pool(
            x,
            weight,
            *self._normalisation(statistics),
            patches=patches,
            synchronise=statistics.of_all_processes,
            **self._firing(pool),
        )

    def _fused(self, y: Tensor, pool: "Pool2d | None", steps: int) -> Tensor:
        statistics = self.norm.statistics_for(lambda: moments(y), y.shape[1] * y.shape[3] * y.shape[4], steps)
        return norm_fire_pool(
            y,
            *self._normalisation(statistics),
            batch_statistics=statistics.of_batch,
            synchronise=statistics.of_all_processes,
            time_steps=steps,
            **self._firing(pool),
        )

    def _normalisation(self, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        bn = self.norm.bn
        return bn.weight, bn.bias, statistics.mean, statistics.invstd, self.neuron.k

    def _firing(self, pool: "Pool2d | None") -> dict[str, Any]:
        """What the kernels are told about neuron and pool."""
        name = "none" if pool is None else pool.name
        neuron = self.neuron
        return {
            "pool": name,
            "seed": draw_seed() if name == "max_random" and torch.is_grad_enabled() else None,
            "v_threshold": neuron.v_threshold,
            "v_reset": neuron.v_reset,
            "detach_reset": neuron.detach_reset,
            "surrogate": neuron.surrogate,
        }


class FCBlock(nn.Module):
    """Dropout - FC (no bias) - neuron over [T, N, F]."""

    def __init__(self, dropout: "TimeDropout", fc: nn.Linear, neuron: Neuron, backend: Backend | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.neuron = neuron
        self.backend = backend or Backend("reference")
        self.sparse = SparseLinear()  # not in use until `SpikingNetwork.hold_weights`

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of x [T, N, F]."""
        x = self.dropout(x)
        plain = type(self.fc) is nn.Linear and self.fc.bias is None and not is_watched(self.fc)
        y = self.sparse(x, self.fc.weight) if plain and self.backend.fuses(x.device) else None
        return self.neuron(self.fc(x) if y is None else y)


class TimeDropout(nn.Module):
    """Dropout of [T, N, *] with one mask per sample, the same at all T steps, scaled by 1 / (1 - p).

    Source: Lee et al. 2020, Sec. 3.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"dropout must be at least 0 and below 1, got {p}.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        return x * torch.empty_like(x[0]).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Pool2d(nn.Module):
    """Applies a 2x2 pooling of single images [N, C, H, W] to [T, N, C, H, W]."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    @property
    def name(self) -> Pool | None:
        """The pooling as the kernels know it; None where they do not."""
        if isinstance(self.pool, SpikeMaxPool2d):
            return "max_first" if self.pool.ties == "first" else "max_random"
        return "avg" if isinstance(self.pool, nn.AvgPool2d) else None

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.flatten(0, 1)).unflatten(0, x.shape[:2])
