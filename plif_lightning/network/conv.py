"""The block conv-BN-neuron-pool and its forms, fastest first."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.dynamics.reference import autocast_in_force
from plif_lightning.kernels import (
    Backend,
    PatchMoments,
    Pool,
    conv_fire_pool,
    conv_of_spikes,
    moments,
    norm_fire,
    norm_fire_pool,
    real_type,
)
from plif_lightning.kernels.dense import computing_type, conv2d, linear
from plif_lightning.kernels.layout import KERNELS, STRIDES, channels_innermost
from plif_lightning.kernels.small_maps import are_small, conv_of_small_maps
from plif_lightning.network.hooks import has_global_hooks, has_hooks, must_be_called
from plif_lightning.network.layers import Pool2d
from plif_lightning.network.norm import Statistics, TimeBatchNorm2d, is_batch_norm
from plif_lightning.network.pooling import SpikeMaxPool2d, TiedMaxPool2d, draw_seed
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carried

_log = logging.getLogger(__name__)
# Up to this many input channels the backward pass recomputes the convolution instead of storing its output: events
# have 2, images 3.
_FEW_CHANNELS = 4
# A binary input of at least this many values is stored as bits (CPU) or bytes (GPU) for the backward pass; below it,
# packing and unpacking cost more than they save.
_MANY_SPIKES = 2**23


def images_channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] with C innermost: the kernels require it, convolutions are faster with it and preserve it."""
    images = channels_innermost(images)
    n, c, h, w = images.shape
    # Strides of dimensions of size 1 are ambiguous, and a convolution infers the layout from strides alone.
    strides = (h * w * c, 1, w * c, c)
    return images if images.stride() == strides else images.as_strided((n, c, h, w), strides)


def dtype_of(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that a convolution or FC layer computes in."""
    if autocast_in_force(x.device):
        return computing_type(x)
    return torch.promote_types(x.dtype, weight.dtype)


def run_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, of a plain convolution or FC layer without hooks by the functions of `kernels.dense`."""
    if must_be_called(layer):
        return layer(x)
    if type(layer) is nn.Linear:
        return linear(x, layer.weight, layer.bias)
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
        return layer(x)
    sizes = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return conv2d(x, layer.weight, layer.bias, **sizes)


def refuses_class(part: Any, base: type, *methods: str) -> str | None:
    """Why the kernels cannot replace a module: another class, or it overrides one of `methods`; None if they can."""
    if not isinstance(part, base):
        return f"the kernels do not support {type(part).__name__}"
    for name in methods:
        if name in vars(part) or getattr(type(part), name) is not getattr(base, name):
            return f"{type(part).__name__} overrides {name}"
    return None


def refuses_neuron(neuron: nn.Module) -> str | None:
    """Why the kernels cannot compute these neurons, whose output may then hold other values; None if they can."""
    return refuses_class(neuron, Neuron, "run", "forward")


def fires(neuron: nn.Module | None) -> TypeGuard[Neuron]:
    """True if there are neurons, and their output is known to be spikes."""
    return neuron is not None and refuses_neuron(neuron) is None


def pools_spikes(pool: nn.Module | None) -> bool:
    """True if a pool turns spikes into spikes."""
    if pool is None:
        return True
    return refuses_class(pool, Pool2d, "forward") is None and type(pool.pool) in (SpikeMaxPool2d, TiedMaxPool2d)


class Call:
    """One call of a block, with the properties that several forms check.

    Attributes:
        block: the block.
        x: [T, N, C, H, W], or [1, N, C, H, W] held for `steps`.
        binary: x is guaranteed to be spikes (zeros and ones).
        steps: T.
        fuses: the fused kernels support its device and type.
        why_not_fused: why the kernels cannot take BN, neurons and pool together; None if they can.
        why_not_conv: why the kernels cannot compute the convolution; None if they can.
        why_not_whole: why the kernels cannot take the whole block together; None if they can.
    """

    def __init__(self, block: "ConvBlock", x: Tensor, binary: bool) -> None:
        self.block, self.x, self.binary = block, x, binary
        self.steps = block.time_steps if len(x) == 1 and carried() is None else len(x)
        self.fuses = block.backend.fuses(x.device, computing_type(x))
        self.why_not_fused: str | None = (
            block.refuses_fusion if self.fuses else "the reference, or this type, has no fused kernels"
        )
        self.why_not_conv: str | None = block.refuses_conv if self.fuses else self.why_not_fused
        self.why_not_whole = self.why_not_fused or self.why_not_conv
        self._skips: bool | None = None

    @property
    def images(self) -> Tensor:
        """[T N, C, H, W], C innermost."""
        return images_channels_last(self.x.flatten(0, 1))

    @property
    def spikes(self) -> Tensor:
        """`images` of a binary input, in the type that the convolution computes in."""
        images = self.images
        return images.to(dtype_of(images, self.block.conv.weight))

    def skips(self, images: Tensor) -> bool:
        """True if the event-driven form is likely faster for these spikes."""
        if self._skips is None:
            conv = self.block.conv
            self._skips = self.block.backend.skips_silence(images, conv.weight, stride=conv.stride[0])
        return self._skips


class Form(NamedTuple):
    """A way to run a block.

    Attributes:
        name: as `ConvBlock.refusals` lists it.
        refuses: the reason why a call cannot run in this form; None if it can.
        run: pooled spikes [T, N, C', H', W'] of a call that is not refused.
    """

    name: str
    refuses: Callable[[Call], str | None]
    run: Callable[[Call], Tensor]


def _refuses_recomputing(call: Call) -> str | None:
    if call.why_not_whole:
        return call.why_not_whole
    if (call.block.conv.kernel_size, call.block.conv.stride) != ((3, 3), (1, 1)):
        return "its convolution is not 3x3 with stride 1"
    if call.x.shape[2] > _FEW_CHANNELS:
        return f"its input has more than {_FEW_CHANNELS} channels"
    if len(call.x) == 1:
        return "its input has one step"
    return "its input needs a gradient" if call.x.requires_grad else None


def _recompute(call: Call) -> Tensor:
    block, x = call.block, call.x
    dtype = dtype_of(x, block.conv.weight)
    weight = block.conv.weight.to(dtype)
    x = images_channels_last(x.flatten(0, 1).to(dtype)).unflatten(0, x.shape[:2])
    skips = block.pool_name != "avg" and block.backend.skips_silence(x.flatten(0, 1), weight, binary=False)
    sparse = block.backend.sparse if skips else "never"
    patches = PatchMoments.of(x, sparse) if block.normalises_by_batch else None
    batch = (lambda: moments(x)) if patches is None else (lambda: patches.of_convolution(weight))
    statistics = block.statistics(batch, x, len(x), len(weight))
    return conv_fire_pool(
        x,
        weight,
        *block.normalisation(statistics),
        patches=patches,
        synchronise=statistics.of_all_processes,
        sparse=sparse,
        pool=block.kernel_pool,
        seed=block.seed(),
    )


def _refuses_one_pass(call: Call) -> str | None:
    if call.why_not_whole:
        return call.why_not_whole
    if not call.binary:
        return "its input is not guaranteed to be binary"
    block = call.block
    if torch.is_grad_enabled() or block.normalises_by_batch:
        return "gradients are enabled, or BN uses batch statistics"
    if block.pool_name == "avg":
        return "its pool averages"
    if carried() is not None or call.steps > len(call.x):
        return "it runs single time-steps, or its input is held"
    return None if call.skips(call.spikes) else "the dense convolution is faster at this density"


def _one_pass(call: Call) -> Tensor:
    block = call.block
    x = call.spikes.unflatten(0, call.x.shape[:2])
    # In evaluation BN needs no batch moments, and ties do not affect the forward pass.
    statistics = block.statistics(lambda: moments(x), x, len(x), len(block.conv.weight))
    return conv_fire_pool(
        x,
        block.conv.weight.to(x.dtype),
        *block.normalisation(statistics),
        binary=True,
        sparse=block.backend.sparse,
        pool=block.kernel_pool,
        stride=block.conv.stride[0],
    )


def _fuse(call: Call) -> Tensor:
    block = call.block
    y = convolve(call, with_bias=False).unflatten(0, call.x.shape[:2])
    statistics = block.statistics(lambda: moments(y), y, call.steps, y.shape[2])
    affine = block.normalisation(statistics)
    if (state := carried()) is not None:
        assert block.neuron is not None
        spikes = state.through(
            block.neuron,
            lambda states: norm_fire(
                y, *affine, states,
                batch_statistics=statistics.of_batch, synchronise=statistics.of_all_processes,
            ),
        )  # fmt: skip
        return spikes if block.pool is None else block.pool(spikes)
    return norm_fire_pool(
        y,
        *affine,
        batch_statistics=statistics.of_batch,
        synchronise=statistics.of_all_processes,
        time_steps=call.steps,
        pool=block.kernel_pool,
        seed=block.seed(),
    )


def fire_with(block: "ConvBlock", neuron: Neuron, x: Tensor, binary: bool, added: Tensor) -> Tensor:
    """Spikes of neurons that see the output of a block without neurons, plus `added`, in one kernel."""
    call = Call(block, x, binary)
    y = convolve(call, with_bias=False).unflatten(0, x.shape[:2])
    statistics = block.statistics(lambda: moments(y), y, call.steps, y.shape[2])
    affine = block.normalisation(statistics, neuron)
    settings: dict[str, Any] = {"batch_statistics": statistics.of_batch, "synchronise": statistics.of_all_processes}
    steps = max(len(y), len(added))  # one of them may be held, with the other's neurons having seen time
    kind = torch.promote_types(y.dtype, added.dtype)  # in which the reference adds
    y, added = y.to(kind).expand(steps, *y.shape[1:]), added.to(kind).expand(steps, *added.shape[1:])
    if (state := carried()) is not None:
        return state.through(neuron, lambda states: norm_fire(y, *affine, states, added=added, **settings))
    return norm_fire_pool(y, *affine, time_steps=block.time_steps if steps == 1 else steps, added=added, **settings)


def _by_parts(call: Call) -> Tensor:
    block, y = call.block, convolve(call, with_bias=True).unflatten(0, call.x.shape[:2])
    y = y if block.norm is None else block.norm(y, call.steps)
    if block.neuron is None:
        return y
    spikes = block.neuron(y, call.steps)
    return spikes if block.pool is None else block.pool(spikes)


def convolve(call: Call, with_bias: bool) -> Tensor:
    """The convolution's output [T N, C', H', W'].

    `with_bias=False` leaves the bias to the next kernel; a convolution that is called as a module adds its own.
    """
    conv = call.block.conv
    if call.why_not_conv is not None:
        return run_layer(conv, call.images if call.fuses else call.x.flatten(0, 1))
    bias, stride = conv.bias if with_bias else None, conv.stride[0]
    images = call.spikes if call.binary else call.images
    if are_small(images, conv.weight) and not (call.binary and call.skips(images)):
        images = images.to(dtype_of(images, conv.weight))
        y = conv_of_small_maps(images, conv.weight, stride)
        return y if bias is None else y + bias[:, None, None]
    if call.binary and (_saves_memory(images, conv.weight) or call.skips(images)):
        y = conv_of_spikes(images, conv.weight, call.block.backend.sparse, stride)
        return y if bias is None else y + bias[:, None, None]
    return conv2d(images, conv.weight, bias, stride=stride, padding=conv.padding)


def _saves_memory(spikes: Tensor, weight: Tensor) -> bool:
    """True if the backward pass needs the spikes, and they are many enough to be stored as bits or bytes."""
    return torch.is_grad_enabled() and weight.requires_grad and spikes.numel() >= _MANY_SPIKES


# Fastest first; the last one never refuses.
FORMS = (
    Form("convolution output not stored", _refuses_recomputing, _recompute),
    Form("event-driven from spikes to spikes", _refuses_one_pass, _one_pass),
    Form("BN, neurons and pool in one kernel", lambda call: call.why_not_fused, _fuse),
    Form("part by part", lambda call: None, _by_parts),
)


class ConvBlock(nn.Module):
    """Conv2d 3x3 (no bias) - BN - neuron - pool over [T, N, C, H, W]; with a bias instead of BN if BN is folded.

    A part may be replaced by another module that takes the same arguments; `refuses_fusion` and `refuses_conv` give
    the reason if the kernels cannot compute a replaced part. A call runs in the first of `FORMS` that does not refuse
    it, see `refusals`.

    An input [1, N, C, H, W] is held for `time_steps`: convolution and BN run once instead of T times. In a `step` it
    is a single time-step.

    Args:
        conv: convolution over single images [N, C, H, W].
        norm: BN of its output; None if it is folded into the convolution, which then has a bias.
        neuron: the spiking neurons; None for a block whose output is not spikes.
        pool: pool of the spikes [T, N, C, H, W]; None for a block without one.
        time_steps: T, for held inputs.
        backend: the form that runs; None for the reference.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: TimeBatchNorm2d | None,
        neuron: Neuron | None,
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
        self.listened = False  # True within `part_by_part`: this project's own hooks are on its neurons
        self._reported_hooks = False

    def forward(self, x: Tensor, binary: bool = False) -> Tensor:
        """Pooled spikes of x [T, N, C, H, W]; `binary`: x is guaranteed to be spikes (zeros and ones)."""
        call = Call(self, x, binary)
        form = next(form for form in FORMS if form.refuses(call) is None)
        spikes = form.run(call)
        if self.pools_apart is None or form is FORMS[-1] or carried() is not None:
            return spikes
        assert self.pool is not None
        return self.pool(spikes)

    def refusals(self, x: Tensor, binary: bool = False) -> dict[str, str | None]:
        """For each form, fastest first, why `forward` would not run in it; the first one with None runs."""
        call = Call(self, x, binary)
        return {form.name: form.refuses(call) for form in FORMS}

    @property
    def pool_name(self) -> Pool | None:
        """The kernels' name of the pooling; None if they do not support it."""
        if self.pool is None:
            return "none"
        return self.pool.name if isinstance(self.pool, Pool2d) and type(self.pool).forward is Pool2d.forward else None

    @property
    def kernel_pool(self) -> Pool:
        """The pooling that the kernels do; another one follows them."""
        return self.pool_name or "none"

    @property
    def pools_apart(self) -> str | None:
        """Why the kernels do not take the pool; None if they do."""
        if self.pool_name:
            return None
        return refuses_class(self.pool, Pool2d, "forward") or "the kernels pool windows of 2x2 with stride 2"

    @property
    def normalises_by_batch(self) -> bool:
        """True if BN normalises with statistics of the batch."""
        return self.norm is not None and self.norm.bn.training

    @property
    def refuses_fusion(self) -> str | None:
        """Why the kernels cannot take BN, neurons and pool together; None if they can."""
        if self.neuron is None:
            return "no neurons follow"
        reason = "its neurons are being listened to" if self.listened else refuses_neuron(self.neuron)
        return reason or self.refuses_norm or self._refuses_hooks()

    @property
    def refuses_norm(self) -> str | None:
        """Why the kernels cannot compute BN; None if they can."""
        if self.norm is None:
            return None
        reason = refuses_class(self.norm, TimeBatchNorm2d, "forward", "statistics_for")
        if reason is None and not is_batch_norm(self.norm.bn):
            return f"its BN is a {type(self.norm.bn).__name__}"
        if reason is None and not self.norm.is_affine_with_averages:
            return "its BN is not affine with running averages"
        return reason

    @property
    def refuses_conv(self) -> str | None:
        """Why the kernels cannot compute the convolution; None if they can."""
        conv = self.conv
        if type(conv) is not nn.Conv2d:
            return f"its convolution is a {type(conv).__name__}"
        if (conv.bias is None) != (self.norm is not None):
            return "its convolution has a bias and BN" if self.norm is not None else "it has neither BN nor a bias"
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        known = kernel in KERNELS and stride in STRIDES and conv.padding == (kernel // 2, kernel // 2)
        square = conv.kernel_size == (kernel, kernel) and conv.stride == (stride, stride)
        if not (known and square) or (conv.dilation, conv.groups, conv.padding_mode) != ((1, 1), 1, "zeros"):
            return "its convolution is not 1x1, 3x3 or 5x5 with half of it as padding, stride 1 or 2, and no groups"
        return "its convolution has hooks" if must_be_called(conv) else None

    def _refuses_hooks(self) -> str | None:
        if has_global_hooks():
            return "global module hooks are registered"
        hooked = list(dict.fromkeys(name for name, part in self._parts() if has_hooks(part)))
        if not hooked:
            return None
        if not (self._reported_hooks or torch.compiler.is_compiling()):
            self._reported_hooks = True
            _log.warning(
                "A block runs part by part, which is slower, because of hooks on its %s.", " and ".join(hooked)
            )
        return f"its {' and '.join(hooked)} {'has' if len(hooked) == 1 else 'have'} hooks"

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        if self.norm is not None:
            yield from (("BN", self.norm), ("BN", self.norm.bn))
        if self.neuron is not None:
            yield "neuron", self.neuron
        if isinstance(self.pool, Pool2d):
            yield from (("pool", self.pool), ("pool", self.pool.pool))

    def gives_binary(self, device: torch.device, binary: bool = False) -> bool:
        """True if the output is guaranteed to hold zeros and ones."""
        fused = self.backend.fuses(device) and self.refuses_fusion is None and not self._adds_to_forward
        return fused and pools_spikes(self.pool)

    @property
    def _adds_to_forward(self) -> bool:
        """True if a call may give something else than this class does."""
        return must_be_called(self) or type(self).forward is not ConvBlock.forward

    def statistics(
        self, batch: Callable[[], tuple[Tensor, Tensor]], x: Tensor, steps: int, channels: int
    ) -> Statistics:
        """BN statistics of the convolution's output, see `statistics_for`; x [T, N, *, H, W] is its input or output."""
        if self.norm is None:
            one = torch.ones(1, channels, device=x.device, dtype=real_type(x))
            return Statistics(torch.zeros_like(one), one, False, False)
        return self.norm.statistics_for(batch, x.shape[1] * x.shape[3] * x.shape[4], steps)

    def normalisation(
        self, statistics: Statistics, neuron: Neuron | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Dynamics]:
        """BN's weight and bias, mean, 1 / standard deviation, and the neurons, as the kernels take them.

        `neuron`: those behind a residual block, for a block without neurons.
        """
        neuron = neuron or self.neuron
        assert neuron is not None
        if self.norm is not None:
            return self.norm.bn.weight, self.norm.bn.bias, statistics.mean, statistics.invstd, neuron.dynamics
        weight = statistics.invstd[0]
        bias = self.conv.bias
        if bias is None or self.refuses_conv is not None:  # a convolution called as a module adds its own bias
            bias = torch.zeros_like(weight)
        return weight, bias, statistics.mean, statistics.invstd, neuron.dynamics

    def seed(self) -> Tensor | None:
        """Seed of the tie-breaking in max-pooling; None if the pool draws nothing."""
        return draw_seed(self.training) if self.pool_name == "max_random" else None
