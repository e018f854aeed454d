"""Blocks of a convolution or an FC layer, and how they run.

`choose` takes a form, `Backend.skips` tells from a sample whether silent inputs are skipped. A part of a block may be
replaced by another module that takes the same arguments, which is then called.
(Deployed networks are fixed once, in `deploy.frozen.deployed`.)

A convolutional block runs in the first of these forms that applies:

1. part by part: on the reference backend, or where the block, its BN or its neurons have hooks or another class;
2. in a single pass, which never stores the convolution's output: a block of spikes without gradients, below the
   break-even density; and the first block of events, which computes it again in the backward pass;
3. fused: the convolution, dense or from the inputs that are not silent, then BN, neurons and pool in a kernel. A
   convolution or pool with hooks or of another class is then called as the module that it is.

A residual block's sum and the neurons behind it run in the fused form of its last convolution (`Sum`), where they can.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from plif_lightning.kernels import (
    NEVER,
    Backend,
    Norm,
    PatchMoments,
    Pool,
    Skip,
    conv_fire_pool,
    conv_of_spikes,
    density,
    linear_of_delayed,
    linear_of_spikes,
    moments,
    norm_fire_pool,
    normalise,
    real_type,
)
from plif_lightning.kernels.dense import computing_type, conv2d, linear
from plif_lightning.kernels.density import OpName
from plif_lightning.kernels.layout import KERNELS, STRIDES, channels_innermost, channels_last
from plif_lightning.layers.delay import Delay
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.plain import is_plain
from plif_lightning.layers.pooling import Pool2d, TimeDropout, draw_seed
from plif_lightning.layers.recurrent import RecurrentLinear, recurrent_spikes
from plif_lightning.neurons import Neuron
from plif_lightning.signals.signal import Layer, LayerModule, Signal, keeps_spikes, output_of, run_layer
from plif_lightning.signals.states import advance

Form = Literal["part by part", "one pass", "fused", "FC", "recurrent, fused", "recurrent, a loop over steps"]


class Choice(NamedTuple):
    """How a call of a block ran.

    Attributes:
        form: see the module; an FC layer's.
        skip: products that skip silent inputs, and the density of a sample of the input.
        convolves: the kernels compute the convolution, without its bias; otherwise it is called as a module.
        innermost: the convolution gets its input with C innermost in memory, as kernels want its output.
        pool: the pool that a kernel of the form computes, too.
        reason: why a faster form did not run; empty where there is none.
    """

    form: Form
    skip: Skip = NEVER
    convolves: bool = False
    innermost: bool = False
    pool: Pool = "none"
    reason: str = ""

    def __str__(self) -> str:
        products = {(True, True): "event-driven", (True, False): "event-driven output, dense gradient"}
        products |= {(False, True): "dense output, event-driven gradient", (False, False): "dense"}
        product = products[self.skip.output, self.skip.gradient]
        density = "" if self.skip.density is None else f" at {100 * self.skip.density:.2g} % non-zero inputs"
        form = "" if self.form == "FC" else f"{self.form}, "
        reasons = "; ".join(reason for reason in (self.reason, self.skip.reason) if reason)
        return f"{form}{product}{density}{f' ({reasons})' if reasons else ''}"


class ConvBlock(LayerModule):
    """Conv2d (no bias) - BN - neuron - pool over [T, N, C, H, W]; with a bias instead of BN if BN is folded.

    Convolution and BN of a held input run once, not T times.

    Args:
        conv: convolution over single images [N, C, H, W].
        norm: BN of its output; None if it is folded into the convolution, which then has a bias.
        neuron: the spiking neurons; None for a block without spiking output.
        pool: pool of the spikes [T, N, C, H, W]; None for a block without a pool.

    Attributes:
        choice: how the last call ran; None before the first.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: TimeBatchNorm | None,
        neuron: Neuron | None,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.neuron = neuron
        self.pool = pool
        self.backend = Backend("reference")  # until `use_backend`
        self.choice: Choice | None = None

    def run(self, x: Signal) -> Tensor:
        """Pooled spikes [T, N, C', H', W']."""
        return run_conv(self, x)

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.pool, keeps_spikes(self.neuron, spikes=False))

    @property
    def pool_name(self) -> Pool | None:
        """The kernels' name of the pooling; None if they do not have it."""
        if self.pool is None:
            return "none"
        return self.pool.name if isinstance(self.pool, Pool2d) and is_plain(self.pool, self.pool.pool) else None

    @property
    def normalises_by_batch(self) -> bool:
        """True if BN normalises with statistics of the batch."""
        return self.norm is not None and self.norm.bn.training

    def seed(self, pool: Pool) -> Tensor | None:
        """Seed of the tie-breaking in max-pooling; None if the pool draws nothing."""
        return draw_seed(self.training) if pool == "max_random" else None


class FCBlock(LayerModule):
    """Dropout - FC - BN - neuron over [T, N, F].

    Args:
        dropout: dropout of the input.
        fc: the FC layer.
        neuron: the spiking neurons; None for a readout.
        recurrent: weight from their spikes of the previous step to their input; None without.
        norm: BN of the FC layer's output, without the recurrent part; None without, or if it is folded.

    Attributes:
        choice: how the last call ran; None before the first.
    """

    def __init__(
        self,
        dropout: TimeDropout,
        fc: nn.Linear,
        neuron: Neuron | None,
        recurrent: RecurrentLinear | None = None,
        norm: TimeBatchNorm | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc = fc
        self.norm = norm
        self.recurrent = recurrent
        self.neuron = neuron
        self.backend = Backend("reference")  # until `use_backend`
        self.choice: Choice | None = None

    def run(self, x: Signal) -> Tensor:
        """Spikes [T, N, F']."""
        return run_fc(self, x)

    def run_behind(self, before: Layer, x: Signal) -> Tensor | None:
        return run_delayed_fc(self, before, x) if isinstance(before, Delay) else None

    def keeps_spikes(self, spikes: bool) -> bool:
        return keeps_spikes(self.neuron, spikes=False)


def images_channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] with C innermost: the kernels require it, convolutions are faster with it and preserve it."""
    images = channels_innermost(images)
    n, c, h, w = images.shape
    # Strides of dimensions of size 1 are ambiguous, and a convolution infers the layout from strides alone.
    strides = (h * w * c, 1, w * c, c)
    return images if images.stride() == strides else images.as_strided((n, c, h, w), strides)


class Sum(NamedTuple):
    """The sum behind the last convolution of a residual block.

    Attributes:
        neuron: the neurons that see the sum.
        values: addend to the convolution's BN, [T, N, C', H', W'].
    """

    neuron: Neuron | None
    values: Tensor


def call_layer(layer: Any, x: Tensor) -> Tensor:
    """The output of a layer without time; of a plain convolution or FC layer by the functions of `kernels.dense`."""
    output: Tensor
    if is_plain(layer) and isinstance(layer, nn.Linear):
        output = linear(x, layer.weight, layer.bias)
    elif is_plain(layer) and isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        sizes = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        output = conv2d(x, layer.weight, layer.bias, **sizes)
    else:
        output = layer(x)
    return output


def refuses_fusion(norm: TimeBatchNorm | None, neuron: nn.Module | None) -> str:
    """Why the kernels cannot take BN and neurons of a block together; empty if they can."""
    if neuron is None:
        return "no neurons follow"
    if not is_plain(neuron, norm, getattr(norm, "bn", None)):
        return "its BN or neurons have hooks, fire integers, or are of another class"
    if norm is not None and not norm.is_standard:
        return "its BN is not affine with running averages"
    return ""


def refuses_conv(block: ConvBlock) -> str:
    """Why the kernels cannot compute the convolution of a block; empty if they can."""
    conv = block.conv
    if not is_plain(conv) or not isinstance(conv, nn.Conv2d) or (conv.bias is None) != (block.norm is not None):
        return "its convolution has hooks, or is of another class, or has a bias beside BN"
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    has_kernel = kernel in KERNELS and stride in STRIDES and conv.padding == (kernel // 2, kernel // 2)
    square = conv.kernel_size == (kernel, kernel) and conv.stride == (stride, stride)
    if not (has_kernel and square) or (conv.dilation, conv.groups, conv.padding_mode) != ((1, 1), 1, "zeros"):
        return "its convolution is not 1x1, 3x3 or 5x5 with half of it as padding, stride 1 or 2, and no groups"
    return ""


def takes_sum(block: ConvBlock, neuron: nn.Module | None, x: Signal) -> bool:
    """True if a kernel takes the BN of a residual block's last convolution, the sum and `neuron` together: on a CPU."""
    device = x.values.device
    on_cpu = block.backend.chosen(device) == "cpu" and block.backend.fuses(device, computing_type(x.values))
    return on_cpu and block.neuron is None and is_plain(*block.modules()) and not refuses_fusion(block.norm, neuron)


def choose(block: ConvBlock, x: Signal, of_sum: bool = False) -> Choice:
    """How a block runs: here where a part of it is called as a module, otherwise in `_by_kernels`.

    Args:
        block: the block.
        x: its input, [T, N, C, H, W] or held.
        of_sum: its output is an addend of the neurons' input, see `takes_sum`, and it is fused.
    """
    values, neuron = x.values, block.neuron
    neurons = (lambda: neuron.dynamics) if isinstance(neuron, Neuron) else None
    if not block.backend.fuses(values.device, computing_type(values), neurons):
        return Choice("part by part", reason="the reference backend, or a type that the kernels do not have")
    if not is_plain(block):
        return Choice("part by part", innermost=True, reason="it has hooks, or is of another class")
    unfused = "" if of_sum else refuses_fusion(block.norm, neuron)
    pool: Pool = "none" if of_sum or x.is_step else block.pool_name or "none"
    form: Form = "part by part" if unfused else "fused"
    if reason := refuses_conv(block):
        return Choice(form, innermost=True, pool=pool, reason=unfused or reason)
    return _by_kernels(block, x, Choice(form, convolves=True, pool=pool, reason=unfused), of_sum)


def _by_kernels(block: ConvBlock, x: Signal, choice: Choice, of_sum: bool) -> Choice:
    """How a block runs whose convolution the kernels know: in one pass, or in the form of `choice`."""
    values, unfused = x.values, choice.reason
    recomputes = not unfused and not of_sum and _has_few_channels(block, x)
    skip = NEVER
    if x.is_spikes or (recomputes and choice.pool != "avg"):
        operator: OpName = "events" if recomputes else "conv"
        skip = block.backend.skips(operator, *_product(block, values), stride=block.conv.stride[0])
    one_pass = choice._replace(form="one pass", skip=skip, reason="")
    if recomputes:
        return one_pass
    reason = unfused or ("" if x.is_spikes else "its input is not spikes")
    if not unfused and (torch.is_grad_enabled() or block.normalises_by_batch):
        reason = reason or "gradients, or statistics of the batch, need the convolution's output"
    elif not unfused and skip.output:
        if not (of_sum or x.is_held or x.is_step) and choice.pool != "avg":
            return one_pass
        reason = "its pool averages, its input is held, or it runs single time-steps"
    return choice._replace(skip=skip, reason=reason)


def _has_few_channels(block: ConvBlock, x: Signal) -> bool:
    """True where few inputs, as of events, are cheaper to convolve twice than the output to store: 3x3 with stride 1.

    They are no spikes, take no gradient, and have more than a single step.
    """
    conv, values = block.conv, x.values
    return (
        ((conv.kernel_size, conv.stride) == ((3, 3), (1, 1)))
        and not (x.is_spikes or values.requires_grad)
        and values.shape[2] <= density.FEW_CHANNELS
        and len(values) > 1
    )


def _product(block: ConvBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images [T N, C, H, W] in the type of the convolution, C innermost, and its weight."""
    images = images_channels_last(x.flatten(0, 1))
    return images.to(computing_type(images, block.conv.weight)), block.conv.weight


def run_conv(block: ConvBlock, x: Signal, added: Sum | None = None) -> Tensor:
    """Pooled spikes [T, N, C', H', W'] of a block in the form that `choose` takes.

    Args:
        block: the block.
        x: its input.
        added: addend to the output of a block without neurons, and the neurons behind it.
    """
    choice = choose(block, x, added is not None)
    _note(block, choice)
    if choice.form == "part by part":
        assert added is None
        return _run_by_modules(block, x, choice)
    if choice.form == "one pass":
        spikes = _run_single_pass(block, x.values, choice)
    else:
        spikes = _run_fused(block, x, choice, added)
    if block.pool is None or choice.pool != "none":
        return spikes
    return output_of(block.pool, Signal(spikes, x.steps))


def _note(block: ConvBlock | FCBlock, choice: Choice) -> None:
    """Leave the choice where `SpikingNetwork.forms` finds it."""
    if not torch.compiler.is_compiling():
        block.choice = choice


def _run_by_modules(block: ConvBlock, x: Signal, choice: Choice) -> Tensor:
    y = _run_convolution(block, x, choice)
    if choice.convolves and block.conv.bias is not None:
        y = y + block.conv.bias[:, None, None].to(y.dtype)
    y = run_norm(block.norm, block.neuron, Signal(y, x.steps), block.backend)
    return y if block.neuron is None or block.pool is None else output_of(block.pool, Signal(y, x.steps))


def _run_single_pass(block: ConvBlock, x: Tensor, choice: Choice) -> Tensor:
    skip, pool = choice.skip, choice.pool
    images, weight = _product(block, x)
    weight = weight.to(images.dtype)
    frames = images.unflatten(0, x.shape[:2])
    patches: PatchMoments | None = None
    if block.normalises_by_batch:
        patches = PatchMoments.of(frames, events=skip.any and (skip.density or 0) <= density.FEW_EVENTS)
    assert isinstance(block.neuron, Neuron)
    batch = None if patches is None else partial(patches.of_convolution, weight)
    return conv_fire_pool(
        frames, weight, _norm_of(block, batch, frames, len(frames), True), block.neuron.dynamics, patches=patches,
        pool=pool, seed=block.seed(pool), skip=skip, stride=block.conv.stride[0],
    )  # fmt: skip


def _run_fused(block: ConvBlock, x: Signal, choice: Choice, added: Sum | None) -> Tensor:
    """Spikes of the neurons behind a convolution and its BN, or behind a sum, in a kernel.

    In a single time-step they continue from the previous states, without a pool.
    """
    y, other = _run_convolution(block, x, choice), None
    neuron: nn.Module | None = block.neuron
    if added is not None:
        neuron, dtype = added.neuron, torch.promote_types(y.dtype, added.values.dtype)  # in which the reference adds
        y, other = y.to(dtype), added.values.to(dtype)
    assert isinstance(neuron, Neuron)
    norm, dynamics = _norm_of(block, lambda: moments(y), y, x.steps, choice.convolves), neuron.dynamics
    fire = partial(norm_fire_pool, y, norm, dynamics, time_steps=x.steps, added=other, pool=choice.pool)
    return advance(neuron, partial(fire, seed=block.seed(choice.pool), last=x.is_step))


def _norm_of(block: ConvBlock, batch: Any, x: Tensor, steps: int, convolves: bool) -> Norm:
    """BN of a block's convolution, or its bias.

    Args:
        block: the block.
        batch: moments of the convolution's output, where BN normalises by the batch.
        x: its input or output [T, N, *, H, W].
        steps: T.
        convolves: the convolution was computed without its bias, see `Choice`.
    """
    if block.norm is not None:
        return block.norm.norm_for(batch, x.shape[1] * x.shape[3] * x.shape[4], steps)
    weight = block.conv.weight
    scale = torch.ones(1, len(weight), device=x.device, dtype=real_type(x))
    bias = block.conv.bias if convolves else None
    return Norm(scale[0], torch.zeros_like(scale[0]) if bias is None else bias, torch.zeros_like(scale), scale)


def _run_convolution(block: ConvBlock, x: Signal, choice: Choice) -> Tensor:
    """The convolution's output [T, N, C', H', W'], without the bias where `choice.convolves`."""
    conv, values = block.conv, x.values
    if not choice.convolves:
        images = values.flatten(0, 1)
        return call_layer(conv, images_channels_last(images) if choice.innermost else images).unflatten(
            0, values.shape[:2]
        )
    images, weight = _product(block, values)
    many = torch.is_grad_enabled() and weight.requires_grad and images.numel() >= density.MANY_SPIKES
    if choice.skip.any or (x.is_spikes and many):
        y = conv_of_spikes(images, weight, choice.skip, conv.stride[0])
    else:
        y = conv2d(images, weight, None, stride=conv.stride, padding=conv.padding)
    return y.unflatten(0, values.shape[:2])


def run_fc(block: FCBlock, x: Signal) -> Tensor:
    """Spikes [T, N, F'] of an FC block, from the inputs that are not silent where that is faster."""
    fc, dropout = block.fc, block.dropout
    if x.is_spikes and is_plain(fc) and isinstance(fc, nn.Linear):
        x = run_layer(dropout, x._replace(values=x.values.to(computing_type(x.values, fc.weight))))
        value = dropout.scale if isinstance(dropout, TimeDropout) else 1.0
        skip = block.backend.skips("linear", x.values, fc.weight, value)
        choice = Choice("FC", skip)
        y = run_linear(fc, x.values, skip, value)
    else:
        choice = Choice("FC", reason="it is of another class" if x.is_spikes else "its input is not spikes")
        y = call_layer(fc, output_of(dropout, x))
    return _run_behind_fc(block, y, x.steps, choice)


def run_delayed_fc(block: FCBlock, delay: Delay, x: Signal) -> Tensor | None:
    """Spikes [T, N, F'] of an FC block behind a delay, from the spikes x before it; None where this is no faster."""
    dropout = block.dropout
    if not (block.is_plain_call and isinstance(dropout, TimeDropout) and is_plain(dropout)):
        return None
    found = linear_behind_delay(block.fc, delay, x, block.backend, dropout)
    return None if found is None else _run_behind_fc(block, found[0], x.steps, Choice("FC", found[1]))


def linear_behind_delay(
    fc: nn.Module, delay: Delay, x: Signal, backend: Backend, dropout: TimeDropout | None = None
) -> tuple[Tensor, Skip] | None:
    """The output of an FC layer behind a delay, from the spikes x before it; None where this is no faster.

    Dropout behind the delay has the same mask at all steps, so that it may come before it.
    """
    if not (x.is_spikes and isinstance(fc, nn.Linear) and is_plain(fc) and delay.divides(x)):
        return None
    skip = backend.skips("delayed", x.values, fc.weight)
    if not skip.output or fc.weight.dtype != torch.float32 or computing_type(x.values, fc.weight) != torch.float32:
        return None
    spikes, value = x.values, 1.0
    if dropout is not None:
        spikes, value = output_of(dropout, x), dropout.scale
    whole, late = delay.between()
    y = linear_of_delayed(spikes, fc.weight, whole.long(), late, value)
    if y is None:
        return None
    return y if fc.bias is None else y + fc.bias, skip


def _run_behind_fc(block: FCBlock, y: Tensor, steps: int, choice: Choice) -> Tensor:
    """The output of a block for that of its FC layer, [T, N, F']."""
    recurrent = block.recurrent
    if recurrent is not None:
        assert block.neuron is not None
        y = y if block.norm is None else output_of(block.norm, Signal(y, steps))
        spikes, is_fused = recurrent_spikes(recurrent, block.neuron, Signal(y, steps))
        form: Form = "recurrent, fused" if is_fused else "recurrent, a loop over steps"
        _note(block, choice._replace(form=form))
        return spikes
    _note(block, choice)
    return run_norm(block.norm, block.neuron, Signal(y, steps), block.backend)


def run_norm(norm: TimeBatchNorm | None, neuron: nn.Module | None, x: Signal, backend: Backend) -> Tensor:
    """The output of BN and neurons, as far as there are any, for x [T, N, C, *]: in one pass where a kernel can."""
    if norm is None:
        return x.values if neuron is None else output_of(neuron, x)
    values, device = x.values, x.values.device
    fuses = backend.fuses(device, computing_type(values))
    fires = fuses and not x.is_step and not refuses_fusion(norm, neuron)
    if not fires and not (fuses and backend.chosen(device) == "cpu" and _trains_by_kernels(norm)):
        y = output_of(norm, x)
        return y if neuron is None else output_of(neuron, x._replace(values=y))
    y = channels_last(values.reshape(*values.shape[:5], *[1] * (5 - values.dim())))
    of_batch = norm.norm_for(partial(moments, y), y.shape[1] * y.shape[3] * y.shape[4], x.steps)
    if fires:
        assert isinstance(neuron, Neuron)
        spikes, _ = norm_fire_pool(y, of_batch, neuron.dynamics, time_steps=x.steps)
        return spikes.reshape(x.steps, *values.shape[1:])  # of a held input one step is given
    y = normalise(y, of_batch).reshape(values.shape)
    return y if neuron is None else output_of(neuron, x._replace(values=y))


def _trains_by_kernels(norm: TimeBatchNorm) -> bool:
    """True if a kernel may stand for BN without neurons: in training alone, so that evaluations round alike."""
    return is_plain(norm, getattr(norm, "bn", None)) and norm.is_standard and norm.bn.training


def run_linear(fc: nn.Linear, x: Tensor, skip: Skip, value: float = 1.0) -> Tensor:
    """The output [T, N, F'] of a plain FC layer for x [T, N, F], of spikes of this value."""
    if not skip.any:
        return call_layer(fc, x)
    y = linear_of_spikes(x, fc.weight, skip, value)
    return y if fc.bias is None else y + fc.bias.to(y.dtype)
