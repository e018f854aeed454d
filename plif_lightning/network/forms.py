"""The one place that chooses how a block runs.

A convolutional block runs in the first of these forms whose condition holds:

1. part by part: on the reference backend, or where the block, its BN or its neurons have hooks or another class;
2. in one pass, which never stores the convolution's output: a block of spikes without gradients, below the break-even
   density; and the first block of events, which computes it again in the backward pass;
3. fused: the convolution, dense or from the inputs that are not silent, then BN, neurons and pool in one kernel. A
   convolution or pool with hooks or of another class is then called as the module that it is.

Only the neurons behind a residual block are chosen elsewhere: `blocks.Residual.fuses_with` gives them the sum.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from plif_lightning.dynamics.reference import autocast_in_force
from plif_lightning.kernels import (
    NEVER,
    Norm,
    PatchMoments,
    Skip,
    conv_fire_pool,
    conv_of_spikes,
    linear_of_spikes,
    moments,
    norm_fire_pool,
    real_type,
)
from plif_lightning.kernels.dense import computing_type, conv2d, linear
from plif_lightning.kernels.layout import KERNELS, STRIDES, channels_innermost
from plif_lightning.network.hooks import is_plain
from plif_lightning.network.pooling import TimeDropout
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import carried

# Up to this many input channels the backward pass recomputes the convolution instead of storing its output: events
# have 2.
_FEW_CHANNELS = 4
# Spikes of at least this many values are stored as bits (CPU) or bytes (GPU) for the backward pass; below it, packing
# and unpacking cost more than they save.
_MANY_SPIKES = 2**23
# Density up to which moments of patches are computed from the non-zero values only.
_FEW_EVENTS = 0.1


Block = Any  # blocks.ConvBlock or FCBlock, whose file imports this one


class Choice(NamedTuple):
    """How a call of a block ran.

    Attributes:
        form: see the module; an FC layer has one.
        skip: products that skip silent inputs, and the density of a sample of the input.
        reason: why a faster form did not run; empty where there is none.
    """

    form: Literal["part by part", "one pass", "fused", "FC"]
    skip: Skip = NEVER
    reason: str = ""

    def __str__(self) -> str:
        products = {(True, True): "event-driven", (True, False): "event-driven output, dense gradient"}
        products |= {(False, True): "dense output, event-driven gradient", (False, False): "dense"}
        how = products[self.skip.output, self.skip.gradient]
        density = "" if self.skip.density is None else f" at {100 * self.skip.density:.2g} % non-zero inputs"
        form = "" if self.form == "FC" else f"{self.form}, "
        reasons = "; ".join(reason for reason in (self.reason, self.skip.reason) if reason)
        return f"{form}{how}{density}{f' ({reasons})' if reasons else ''}"


def images_channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] with C innermost: the kernels require it, convolutions are faster with it and preserve it."""
    images = channels_innermost(images)
    n, c, h, w = images.shape
    # Strides of dimensions of size 1 are ambiguous, and a convolution infers the layout from strides alone.
    strides = (h * w * c, 1, w * c, c)
    return images if images.stride() == strides else images.as_strided((n, c, h, w), strides)


def dtype_of(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that a convolution or FC layer computes in."""
    return computing_type(x) if autocast_in_force(x.device) else torch.promote_types(x.dtype, weight.dtype)


def run_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, of a plain convolution or FC layer by the functions of `kernels.dense`."""
    if is_plain(layer) and isinstance(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias)
    if is_plain(layer) and isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        sizes = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        return conv2d(x, layer.weight, layer.bias, **sizes)
    return layer(x)


def refuses_fusion(block: Block, neuron: nn.Module | None) -> str:
    """Why the kernels cannot take BN and neurons of a block together; empty if they can."""
    norm = block.norm
    if neuron is None:
        return "no neurons follow"
    if not is_plain(neuron, norm, getattr(norm, "bn", None)):
        return "its BN or neurons have hooks, or are of another class"
    if norm is not None and not norm.is_standard:
        return "its BN is not affine with running averages"
    return ""


def refuses_conv(block: Block) -> str:
    """Why the kernels cannot compute the convolution of a block; empty if they can."""
    conv = block.conv
    if not is_plain(conv) or not isinstance(conv, nn.Conv2d) or (conv.bias is None) != (block.norm is not None):
        return "its convolution has hooks, or is of another class, or has a bias beside BN"
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    known = kernel in KERNELS and stride in STRIDES and conv.padding == (kernel // 2, kernel // 2)
    square = conv.kernel_size == (kernel, kernel) and conv.stride == (stride, stride)
    if not (known and square) or (conv.dilation, conv.groups, conv.padding_mode) != ((1, 1), 1, "zeros"):
        return "its convolution is not 1x1, 3x3 or 5x5 with half of it as padding, stride 1 or 2, and no groups"
    return ""


def choose(block: Block, x: Tensor) -> Choice:
    """How a block runs on x [T, N, C, H, W], or [1, N, C, H, W] held for its time-steps."""
    neuron = block.neuron
    neurons = (lambda: neuron.dynamics) if isinstance(neuron, Neuron) else None
    if not block.backend.fuses(x.device, computing_type(x), neurons):
        return Choice("part by part", reason="the reference backend, or a type that the kernels do not have")
    if not is_plain(block):
        return Choice("part by part", reason="it has hooks, or is of another class")
    if reason := refuses_fusion(block, block.neuron):
        return Choice("part by part", _skip(block, x), reason)
    if reason := refuses_conv(block):
        return Choice("fused", reason=reason)
    conv = block.conv
    if (
        (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
        and not (block.spikes_in or x.requires_grad)
        and x.shape[2] <= _FEW_CHANNELS
        and len(x) > 1
    ):
        averages = block.kernel_pool == "avg"
        return Choice("one pass", NEVER if averages else block.backend.skips("events", *_product(block, x)))
    skip = _skip(block, x)
    reason = "" if block.spikes_in else "its input is not spikes"
    if torch.is_grad_enabled() or block.normalises_by_batch:
        reason = reason or "training needs the convolution's output"
    elif skip.output:
        if block.kernel_pool != "avg" and carried() is None and block.steps(x) <= len(x):
            return Choice("one pass", skip)
        reason = "its pool averages, its input is held, or it runs single time-steps"
    return Choice("fused", skip, reason)


def _product(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images [T N, C, H, W] in the type of the convolution, C innermost, and its weight."""
    images = images_channels_last(x.flatten(0, 1))
    return images.to(dtype_of(images, block.conv.weight)), block.conv.weight


def _skip(block: Block, x: Tensor) -> Skip:
    if not block.spikes_in or refuses_conv(block):
        return NEVER
    return block.backend.skips("conv", *_product(block, x), stride=block.conv.stride[0])


def run_conv(block: Block, x: Tensor) -> Tensor:
    """Pooled spikes [T, N, C', H', W'] of a block in the form that `choose` takes."""
    choice = _noted(block, choose(block, x))
    if choice.form == "part by part":
        return _part_by_part(block, x, choice.skip)
    spikes = (_one_pass if choice.form == "one pass" else _fused)(block, x, choice.skip)
    if block.pool is None or (block.pool_name is not None and carried() is None):
        return spikes
    return block.pool(spikes)


def _noted(block: Block, choice: Choice) -> Choice:
    """Leave the choice where `SpikingNetwork.forms` finds it."""
    if not torch.compiler.is_compiling():
        block.choice = choice
    return choice


def _part_by_part(block: Block, x: Tensor, skip: Skip) -> Tensor:
    y = _convolved(block, x, skip, with_bias=True)
    y = y if block.norm is None else block.norm(y, block.steps(x))
    if block.neuron is None:
        return y
    spikes = block.neuron(y, block.steps(x))
    return spikes if block.pool is None else block.pool(spikes)


def _one_pass(block: Block, x: Tensor, skip: Skip) -> Tensor:
    images, weight = _product(block, x)
    weight = weight.to(images.dtype)
    given = images.unflatten(0, x.shape[:2])
    patches: PatchMoments | None = None
    if block.normalises_by_batch:
        patches = PatchMoments.of(given, events=skip.any and (skip.density or 0) <= _FEW_EVENTS)
    assert isinstance(block.neuron, Neuron)

    def batch() -> tuple[Tensor, Tensor]:
        return moments(given) if patches is None else patches.of_convolution(weight)

    return conv_fire_pool(
        given, weight, norm_of(block, batch, given), block.neuron.dynamics, patches=patches, pool=block.kernel_pool,
        seed=block.seed(), skip=skip, stride=block.conv.stride[0],
    )  # fmt: skip


def _fused(block: Block, x: Tensor, skip: Skip) -> Tensor:
    y = _convolved(block, x, skip, with_bias=False)
    assert isinstance(block.neuron, Neuron)
    return fire(block, block.neuron, y, block.steps(x), pool=block.kernel_pool, seed=block.seed())


def fire(block: Block, neuron: Neuron, y: Tensor, steps: int, **settings: Any) -> Tensor:
    """Spikes of neurons for the output y [T, N, C, H, W] of a block's convolution, with its BN, in one kernel.

    In a `step` they go on from the state of the previous one, without a pool.
    """
    norm = norm_of(block, lambda: moments(y), y, steps)
    if (state := carried()) is not None:
        added = settings.get("added")
        return state.through(
            neuron, lambda states: norm_fire_pool(y, norm, neuron.dynamics, states, added=added, last=True)
        )
    return norm_fire_pool(y, norm, neuron.dynamics, time_steps=steps, **settings)[0]


def fire_sum(block: Block, neuron: Neuron, x: Tensor, added: Tensor) -> Tensor:
    """Spikes of neurons that see the output of a block without neurons, plus `added`, in one kernel."""
    choice = _noted(block, Choice("fused", _skip(block, x)))
    y = _convolved(block, x, choice.skip, with_bias=False)
    kind = torch.promote_types(y.dtype, added.dtype)  # in which the reference adds
    return fire(block, neuron, y.to(kind), len(y), added=added.to(kind))


def norm_of(block: Block, batch: Any, x: Tensor, steps: int | None = None) -> Norm:
    """BN of a block's convolution, or its bias; x [T, N, *, H, W] is its input or output, `batch` its moments."""
    if block.norm is not None:
        return block.norm.norm_for(batch, x.shape[1] * x.shape[3] * x.shape[4], len(x) if steps is None else steps)
    weight = block.conv.weight
    one = torch.ones(1, len(weight), device=x.device, dtype=real_type(x))
    bias = block.conv.bias
    if bias is None or refuses_conv(block):  # a convolution called as a module adds its own bias
        bias = torch.zeros_like(one[0])
    return Norm(one[0], bias, torch.zeros_like(one), one)


def _convolved(block: Block, x: Tensor, skip: Skip, with_bias: bool) -> Tensor:
    """The convolution's output [T, N, C', H', W'].

    `with_bias=False` leaves the bias to the next kernel; a convolution that is called as a module adds its own.
    """
    conv, fuses = block.conv, block.backend.fuses(x.device, computing_type(x))
    if not fuses or refuses_conv(block):
        images = images_channels_last(x.flatten(0, 1)) if fuses else x.flatten(0, 1)
        return run_layer(conv, images).unflatten(0, x.shape[:2])
    images, weight = _product(block, x)
    many = torch.is_grad_enabled() and weight.requires_grad and images.numel() >= _MANY_SPIKES
    if skip.any or (block.spikes_in and many):
        y = conv_of_spikes(images, weight, skip, conv.stride[0])
    else:
        y = conv2d(images, weight, None, stride=conv.stride, padding=conv.padding)
    if with_bias and conv.bias is not None:
        y = y + conv.bias[:, None, None].to(y.dtype)
    return y.unflatten(0, x.shape[:2])


def run_fc(block: Block, x: Tensor) -> Tensor:
    """Sums [T, N, F'] of an FC block, from the inputs that are not silent where that is faster."""
    fc, dropout = block.fc, block.dropout
    if not (block.spikes_in and is_plain(fc) and isinstance(fc, nn.Linear)):
        return run_layer(fc, dropout(x))
    x = dropout(x.to(dtype_of(x, fc.weight)))
    value = dropout.scale if isinstance(dropout, TimeDropout) else 1.0
    choice = _noted(block, Choice("FC", block.backend.skips("linear", x, fc.weight, value)))
    return linear_from(fc, x, choice.skip, value)


def linear_from(fc: nn.Linear, x: Tensor, skip: Skip, value: float = 1.0) -> Tensor:
    """A plain FC layer of x in the form that `skip` says."""
    if not skip.any:
        return run_layer(fc, x)
    y = linear_of_spikes(x, fc.weight, skip, value)
    return y if fc.bias is None else y + fc.bias.to(y.dtype)
