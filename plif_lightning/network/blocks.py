"""The two repeated parts of the network: conv-BN-neuron-pool and dropout-FC-neuron."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plif_lightning.dynamics.reference import autocast_in_force
from plif_lightning.errors import UserError
from plif_lightning.kernels import (
    Backend,
    PatchMoments,
    Pool,
    Sparse,
    conv_fire_pool,
    conv_of_spikes,
    encode_fire_pool,
    linear_of_spikes,
    moments,
    norm_fire,
    norm_fire_pool,
    real_type,
)
from plif_lightning.network.norm import Statistics, TimeBatchNorm2d
from plif_lightning.network.pooling import SpikeMaxPool2d, draw_seed
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carried


def images_channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] with C innermost, which the kernels want and in which convolutions are faster; they keep it."""
    images = images.contiguous(memory_format=torch.channels_last)
    n, c, h, w = images.shape
    # Sizes of one, such as one channel's, leave strides open, and only those tell a convolution which layout is meant.
    strides = (h * w * c, 1, w * c, c)
    return images if images.stride() == strides else images.as_strided((n, c, h, w), strides)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody hooked this module, so that it must be called by itself."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def hooks_on_all() -> bool:
    """Whether somebody hooked every module there is, so that each must be called by itself."""
    every = torch.nn.modules.module
    forward = every._global_forward_hooks, every._global_forward_pre_hooks
    return any((*forward, every._global_backward_hooks, every._global_backward_pre_hooks))


def must_be_called(module: nn.Module) -> bool:
    """Whether hooks wait for this module to be called: its own, or those of all modules."""
    return has_hooks(module) or hooks_on_all()


def own_method(neuron: Neuron) -> str | None:
    """`run` or `forward`, where a neuron computes something else in it than this project's neurons; else None."""
    for name in ("run", "forward"):
        if name in vars(neuron) or getattr(type(neuron), name) is not getattr(Neuron, name):
            return name
    return None


def is_usual_neuron(neuron: nn.Module) -> bool:
    """Whether a module is one of this project's neurons, which gives zeros and ones, without a `run` of its own."""
    return isinstance(neuron, Neuron) and own_method(neuron) is None


def computing_type(x: Tensor) -> torch.dtype:
    """The type that a layer computes in where its weight is of the type of x."""
    return torch.get_autocast_dtype(x.device.type) if autocast_in_force(x.device) else x.dtype


def dtype_of(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that a convolution or FC layer computes in."""
    if autocast_in_force(x.device):
        return computing_type(x)
    return torch.promote_types(x.dtype, weight.dtype)


# Input channels up to which a convolution is recomputed in the backward pass rather than kept: events have 2, images 3.
_FEW_CHANNELS = 4
# Values of a binary input from which on keeping it as bits or bytes is worth the two conversions.
_MANY_SPIKES = 2**23


class ConvBlock(nn.Module):
    """Conv2d 3x3 (no bias) - BN - neuron - pool over [T, N, C, H, W]; with a bias and no BN where that is folded.

    A part may be replaced by another module that takes the same arguments; see `not_fusible`.

    An input [1, N, C, H, W] is held for `time_steps`: convolution and BN then run once, not T times. In a `step` it
    is the step.

    Args:
        conv: over single images [N, C, H, W].
        norm: of its output; None where it is folded into the convolution, which then has a bias.
        neuron: the spiking neurons.
        pool: over [T, N, C, H, W]; None for a block without one.
        time_steps: T, for inputs that are held.
        backend: the form that runs; the reference where it is not given.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: TimeBatchNorm2d | None,
        neuron: Neuron,
        pool: nn.Module | None = None,
        *,
        time_steps: int,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.pool = pool
        self.time_steps = time_steps
        self.backend = backend or Backend("reference")

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """Pooled spikes of x [T, N, C, H, W]; `binary`: x is guaranteed to hold zeros and ones."""
        steps = self.time_steps if len(x) == 1 and carried() is None else len(x)
        if not self.backend.fuses(x.device, computing_type(x)):
            return self._by_parts(self.conv(x.flatten(0, 1)), x, steps)
        fusible = self.not_fusible is None
        if fusible and self._recomputes(x):
            return self._encoded(x)
        images = images_channels_last(x.flatten(0, 1))
        y = None
        if binary and self.has_usual_conv:
            images = images.to(dtype_of(images, self.conv.weight))
            if not fusible or not self._only_infers or steps > len(x):
                y = self._of_spikes(images)
            elif self.backend.skips_silence(images, self.conv.weight):
                return self._fired(images.unflatten(0, x.shape[:2]))
        if y is None:
            folded = fusible and self.norm is None and self.has_usual_conv
            # The kernels add the bias.
            y = F.conv2d(images, self.conv.weight, padding=1) if folded else self.conv(images)
        elif not fusible and self.conv.bias is not None:
            y = y + self.conv.bias[:, None, None]
        return self._fused(y.unflatten(0, x.shape[:2]), steps) if fusible else self._by_parts(y, x, steps)

    def _by_parts(self, y: Tensor, x: Tensor, steps: int) -> Tensor:
        y = y.unflatten(0, x.shape[:2])
        spikes = self.neuron(y if self.norm is None else self.norm(y, steps), steps)
        return spikes if self.pool is None else self.pool(spikes)

    @property
    def not_fusible(self) -> str | None:
        """Why BN, neuron and pool cannot be taken together, in words; None where they can."""
        known: list[tuple[nn.Module, type, tuple[str, ...]]] = [(self.neuron, Neuron, ("run", "forward"))]
        if self.norm is not None:
            known.append((self.norm, TimeBatchNorm2d, ("forward", "statistics_for")))
        for part, base, methods in known:
            if not isinstance(part, base):
                return f"the kernels know no {type(part).__name__}"
            own = [n for n in methods if n in vars(part) or getattr(type(part), n) is not getattr(base, n)]
            if own:
                return f"{type(part).__name__} has a {own[0]} of its own"
        if self.norm is not None and not self.norm.is_affine_with_averages:
            return "its BN is not affine with moving averages"
        if self.pool_name is None:
            return f"the kernels know no {type(self.pool).__name__}"
        parts: dict[str, list[nn.Module]] = {"neuron": [self.neuron]}
        if self.norm is not None:
            parts = {"BN": [self.norm, self.norm.bn], **parts}
        if isinstance(self.pool, Pool2d):
            parts["pool"] = [self.pool, self.pool.pool]
        if hooks_on_all():
            return "all modules have hooks"
        hooked = [name for name, modules in parts.items() if any(map(has_hooks, modules))]
        return f"its {' and '.join(hooked)} {'has' if len(hooked) == 1 else 'have'} hooks" if hooked else None

    @property
    def pool_name(self) -> Pool | None:
        """The pooling as the kernels know it; None where they do not."""
        if self.pool is None:
            return "none"
        return self.pool.name if isinstance(self.pool, Pool2d) else None

    def gives_binary(self, device: torch.device) -> bool:
        """Whether the output is guaranteed to hold zeros and ones."""
        fused = self.backend.fuses(device) and self.not_fusible is None and not must_be_called(self)
        return fused and self.pool_name != "avg"

    @property
    def has_usual_conv(self) -> bool:
        """Whether the convolution is that of the paper's networks, without hooks."""
        conv = self.conv
        return (
            type(conv) is nn.Conv2d
            and not must_be_called(conv)
            and (conv.bias is None) == (self.norm is not None)
            and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
            and (conv.groups, conv.padding_mode) == (1, "zeros")
        )

    def _recomputes(self, x: Tensor) -> bool:
        """Whether the backward pass recomputes the convolution: x is a network's input, of few channels."""
        return self.has_usual_conv and x.shape[2] <= _FEW_CHANNELS and len(x) > 1 and not x.requires_grad

    @property
    def _only_infers(self) -> bool:
        """Whether nothing but spikes is wanted, so that no map of sums need be made."""
        settled = self.norm is None or not self.norm.bn.training
        return settled and self.pool_name != "avg" and carried() is None and not torch.is_grad_enabled()

    def _fired(self, x: Tensor) -> Tensor:
        # BN asks for a batch's moments in training only.
        statistics = self._statistics(lambda: moments(x), x, len(x), len(self.conv.weight))
        firing_and_pool = self._firing_and_pool()
        firing_and_pool.pop("seed")  # who wins a window is nothing to its spike
        return conv_fire_pool(
            x,
            self.conv.weight.to(x.dtype),
            *self._normalisation(statistics),
            sparse=self.backend.sparse,
            **firing_and_pool,
        )

    def _of_spikes(self, images: Tensor) -> Tensor | None:
        """The convolution of spikes, where it may skip silent ones or is to keep them as bits; None where not."""
        weight = self.conv.weight
        large = torch.is_grad_enabled() and weight.requires_grad and images.numel() >= _MANY_SPIKES
        if large or self.backend.skips_silence(images, weight):
            return conv_of_spikes(images, weight, self.backend.sparse)
        return None

    def _encoded(self, x: Tensor) -> Tensor:
        dtype = dtype_of(x, self.conv.weight)
        weight = self.conv.weight.to(dtype)
        x = images_channels_last(x.flatten(0, 1).to(dtype)).unflatten(0, x.shape[:2])
        skips = self.pool_name != "avg" and self.backend.skips_silence(x.flatten(0, 1), weight, binary=False)
        sparse: Sparse = self.backend.sparse if skips else "never"
        patches = PatchMoments.of(x, sparse) if self.norm is not None and self.norm.bn.training else None
        statistics = self._statistics(
            lambda: patches.of_convolution(weight),  # type: ignore[union-attr]
            x,
            len(x),
            len(weight),
        )
        return encode_fire_pool(
            x,
            weight,
            *self._normalisation(statistics),
            patches=patches,
            synchronise=statistics.of_all_processes,
            sparse=sparse,
            **self._firing_and_pool(),
        )

    def _fused(self, y: Tensor, steps: int) -> Tensor:
        statistics = self._statistics(lambda: moments(y), y, steps, y.shape[2])
        affine = self._normalisation(statistics)
        of_batch, synchronise = statistics.of_batch, statistics.of_all_processes
        if (state := carried()) is not None:
            firing = self.neuron.firing
            spikes = state.through(
                self.neuron,
                lambda v: norm_fire(y, *affine, v, batch_statistics=of_batch, synchronise=synchronise, firing=firing),
            )
            return spikes if self.pool is None else self.pool(spikes)
        return norm_fire_pool(
            y,
            *affine,
            batch_statistics=of_batch,
            synchronise=synchronise,
            time_steps=steps,
            **self._firing_and_pool(),
        )

    def _statistics(
        self, batch: Callable[[], tuple[Tensor, Tensor]], x: Tensor, steps: int, channels: int
    ) -> Statistics:
        """What the convolution's output is normalised with, for an input or output x [T, N, *, H, W]; see BN's."""
        if self.norm is None:
            one = torch.ones(1, channels, device=x.device, dtype=real_type(x))
            return Statistics(torch.zeros_like(one), one, False, False)
        return self.norm.statistics_for(batch, x.shape[1] * x.shape[3] * x.shape[4], steps)

    def _normalisation(self, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        weight, bias = self._affine(statistics)
        return weight, bias, statistics.mean, statistics.invstd, self.neuron.k

    def _affine(self, statistics: Statistics) -> tuple[Tensor, Tensor]:
        if self.norm is not None:
            return self.norm.bn.weight, self.norm.bn.bias
        one = statistics.invstd[0]
        # Where the convolution is called as a module, it has added its bias itself.
        return one, self.conv.bias if self.has_usual_conv and self.conv.bias is not None else torch.zeros_like(one)

    def _firing_and_pool(self) -> dict[str, Any]:
        pool = self.pool_name
        seed = draw_seed(self.training) if pool == "max_random" else None
        return {"pool": pool, "seed": seed, "firing": self.neuron.firing}


class FCBlock(nn.Module):
    """Dropout - FC (no bias) - neuron over [T, N, F].

    A part may be replaced by another module that takes the same arguments.

    Args:
        dropout: of the input.
        fc: the layer.
        neuron: the spiking neurons.
        backend: the form that runs; the reference where it is not given.
    """

    def __init__(self, dropout: "TimeDropout", fc: nn.Linear, neuron: Neuron, backend: Backend | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.neuron = neuron
        self.backend = backend or Backend("reference")

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """Spikes of x [T, N, F]; `binary`: x is guaranteed to hold zeros and ones."""
        if not binary or not self.has_usual_fc:
            return self.neuron(self.fc(self.dropout(x)))
        x = self.dropout(x.to(dtype_of(x, self.fc.weight)))
        if not self.backend.skips_silence(x, self.fc.weight):
            return self.neuron(self.fc(x))
        return self.neuron(linear_of_spikes(x, self.fc.weight, self.dropout.scale, self.backend.sparse))

    @property
    def has_usual_fc(self) -> bool:
        """Whether dropout and FC layer are those of the paper's networks, without hooks."""
        usual = type(self.fc) is nn.Linear and self.fc.bias is None and type(self.dropout) is TimeDropout
        return usual and not has_hooks(self.fc) and not must_be_called(self.dropout)

    def gives_binary(self, device: torch.device) -> bool:
        """Whether the output is guaranteed to hold zeros and ones."""
        return is_usual_neuron(self.neuron) and not has_hooks(self.neuron) and not must_be_called(self)


class Blocks(nn.Sequential):
    """Blocks one after another, each told whether its input is guaranteed binary."""

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        for block in self:
            if isinstance(block, (ConvBlock, FCBlock)):
                gives_binary = block.gives_binary(x.device)
                # A hook may put something else in place of the input.
                x, binary = block(x, binary and not block._forward_pre_hooks), gives_binary
            else:
                x, binary = block(x), False
        return x

    def gives_binary(self, device: torch.device) -> bool:
        """Whether the output is guaranteed to hold zeros and ones."""
        last = self[-1] if len(self) else None
        return isinstance(last, (ConvBlock, FCBlock)) and last.gives_binary(device) and not has_hooks(self)


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

    @property
    def scale(self) -> float:
        """What is left of a one."""
        return 1 / (1 - self.p) if self.training else 1.0

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
        pool = self.pool
        if type(pool) is SpikeMaxPool2d:
            return "max_first" if pool.ties == "first" else "max_random"
        if type(pool) is not nn.AvgPool2d or pool.divisor_override is not None:
            return None
        sizes = [(size, size) if isinstance(size, int) else tuple(size) for size in (pool.kernel_size, pool.stride)]
        return "avg" if sizes == [(2, 2), (2, 2)] and pool.padding in (0, (0, 0)) and not pool.ceil_mode else None

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.flatten(0, 1)).unflatten(0, x.shape[:2])
