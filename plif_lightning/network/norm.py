"""Batch normalisation of [T, N, C, H, W], with statistics per step or over all steps."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from plif_lightning.errors import UserError
from plif_lightning.kernels import moments_over_processes

NormStatistics = Literal["per_step", "all_steps"]
NormHeld = Literal["every_step", "once"]


class Statistics(NamedTuple):
    """Mean and scale that BN normalises with.

    Attributes:
        mean: [T or 1, C].
        invstd: 1 / sqrt(variance + eps), [T or 1, C].
        of_batch: they are statistics of the batch itself, not running ones.
        of_all_processes: they are taken over the batches of all processes (SyncBatchNorm).
    """

    mean: Tensor
    invstd: Tensor
    of_batch: bool
    of_all_processes: bool


def _with_own_strides(images: Tensor) -> Tensor:
    return images.contiguous() if len(images) == 1 and images.stride(0) != images.numel() else images


class _OwnStrides(torch.autograd.Function):
    """Images [N, C, H, W] whose strides say how they lie, or a copy; the same for their gradient.

    A single image's own stride may be anything, and PyTorch's gradient of BN is wrong where that of BN's input, or of
    the gradient of its output, is not the image's size (torch 2.13, channels last).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        own = _with_own_strides(images)
        return own.view_as(own)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _with_own_strides(grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


def _normalised(bn: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if len(images) != 1 or not torch.is_grad_enabled():
        return bn(images)
    y: Tensor = _OwnStrides.apply(bn(_OwnStrides.apply(images)))
    return y


def is_batch_norm(bn: nn.Module) -> bool:
    """True if a module computes what `BatchNorm2d` computes; a subclass may have a forward of its own."""
    known = isinstance(bn, (nn.BatchNorm2d, nn.SyncBatchNorm)) and "forward" not in vars(bn)
    return known and type(bn).forward in (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


class TimeBatchNorm2d(nn.Module):
    """BN over [T, N, C, H, W]; `bn` is an ordinary `BatchNorm2d`, so SyncBatchNorm conversion finds it.

    Args:
        channels: C.
        statistics: `per_step` normalises each step with that step's own batch statistics and updates
            the running statistics T times per batch (Algorithm S1, the authors' code); `all_steps`
            merges T into the batch, as multi-step libraries do.
        held: updates of the running statistics by a held input, i.e. one step that stands for `time_steps` equal ones
            and is normalised once. `every_step`: as if every step had been seen, i.e. T updates with the same mean and
            unbiased variance (`per_step`), or one with the bias correction for T N H W values (`all_steps`). `once`:
            one update by the single step (the authors' code).

    Raises:
        UserError: unknown `statistics` or `held`.
    """

    def __init__(self, channels: int, statistics: NormStatistics = "per_step", held: NormHeld = "every_step") -> None:
        super().__init__()
        for name, value, known in (("held", held, NormHeld), ("statistics", statistics, NormStatistics)):
            if value not in get_args(known):
                raise UserError(f"norm_{name} must be one of {', '.join(get_args(known))}, got {value!r}.")
        self.held, self.statistics = held, statistics
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """Normalised x, of the same shape; `time_steps` is T of a held input x [1, N, C, H, W]."""
        if self.bn.training or self.bn.running_mean is None:  # without averages an evaluation has none to take
            if self.held == "every_step" and len(x) == 1 and time_steps is not None and time_steps > 1:
                return self._held(x, time_steps)
            if self.statistics == "per_step" and len(x) > 1:
                return torch.stack([_normalised(self.bn, step) for step in x])
        return _normalised(self.bn, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    @property
    def is_affine_with_averages(self) -> bool:
        """True if `statistics_for` supports `bn`: affine, with exponential running averages."""
        bn = self.bn
        if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
            return False
        return bn.affine and bn.track_running_stats and bn.running_mean is not None and bn.momentum is not None

    def statistics_for(self, batch: Callable[[], tuple[Tensor, Tensor]], count: int, time_steps: int) -> "Statistics":
        """Statistics to normalise an input with; in training, this updates the running statistics.

        Args:
            batch: returns the input's mean and biased variance per step and channel, [T, C] each, or [1, C] for a
                held input; called in training only.
            count: number of values per step and channel.
            time_steps: T.

        Raises:
            UserError: a batch statistic over no values, or over a single one.
        """
        bn = self.bn
        if not bn.training:
            assert bn.running_mean is not None
            assert bn.running_var is not None
            var = bn.running_var.to(torch.promote_types(bn.running_var.dtype, torch.float32))
            return Statistics(bn.running_mean[None], torch.rsqrt(var + bn.eps)[None], False, False)
        if count == 0:
            raise UserError("x must hold at least one sample in training, for BN's batch statistics, got N = 0.")
        with torch.no_grad():
            mean, var = batch()
            repeats = time_steps if len(mean) == 1 and self.held == "every_step" else 1
            mean, var, n, synchronised = self._of_batch(mean, var, count)
            self._update_running(mean, var, n, repeats)
            return Statistics(mean, torch.rsqrt(var + bn.eps), True, synchronised)

    def _of_batch(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, int | Tensor, bool]:
        """Moments and number of values per `statistics` and over all processes, from those of each step.

        The last value is True if other processes took part.
        """
        if self.statistics == "all_steps" and len(mean) > 1:
            steps, whole = len(mean), mean.mean(0, keepdim=True)
            var = (var + (mean - whole).square()).mean(0, keepdim=True)
            mean, count = whole, count * steps
        if isinstance(self.bn, nn.SyncBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1:
            return *moments_over_processes(mean, var, count), True
        if count == 1:
            raise UserError(
                "Expected more than 1 value per channel when training, got 1: a batch of one sample on maps of one "
                "pixel. If it is the last of an epoch, pass --data.drop_last true, or another data.batch_size."
            )
        return mean, var, count, False

    def _update_running(self, mean: Tensor, var: Tensor, n: int | Tensor, repeats: int) -> None:
        """Update the running statistics by each step's mean and biased variance of n values, `repeats` times."""
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        assert bn.momentum is not None
        updates = len(mean) * repeats
        if self.statistics == "all_steps":
            updates, n = 1, n * repeats
        unbiased = var * (n / (n - 1))
        # T successive updates r += m (s_t - r) in closed form: s_t has the weight m (1 - m)^(T - 1 - t).
        ages = torch.arange(updates - 1, -1, -1, device=mean.device, dtype=mean.dtype)
        weights = (bn.momentum * (1 - bn.momentum) ** ages)[:, None]
        for running, seen in ((bn.running_mean, mean), (bn.running_var, unbiased)):
            running.mul_((1 - bn.momentum) ** updates).add_((weights * seen).sum(0))
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked += updates

    def _held(self, x: Tensor, time_steps: int) -> Tensor:
        bn = self.bn
        if not self.is_affine_with_averages:
            return _normalised(bn, x[0])[None]
        count = x.numel() // x.shape[2]
        real = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        self.statistics_for(lambda: (real.mean((1, 3, 4)), real.var((1, 3, 4), correction=0)), count, time_steps)
        # The running statistics are already updated: let BN update copies.
        copies = {name: buffer.clone() for name, buffer in bn.named_buffers()}
        return _normalised(lambda images: functional_call(bn, copies, (images,)), x[0])[None]

    def extra_repr(self) -> str:
        return f"statistics={self.statistics!r}, held={self.held!r}"
