"""Batch normalisation of [T, N, C, *], with statistics per step or over all steps."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plif_lightning.errors import UserError, require_one_of
from plif_lightning.kernels import Norm, moments_over_processes
from plif_lightning.kernels.fused import affine
from plif_lightning.layers.plain import is_plain
from plif_lightning.signals.signal import LayerModule, Signal

NormStatistics = Literal["per_step", "all_steps"]
NormHeld = Literal["every_step", "once"]


class TimeBatchNorm(LayerModule):
    """BN over [T, N, C, *]; `bn` is one of PyTorch's, so SyncBatchNorm conversion finds it.

    Args:
        channels: C.
        statistics: `per_step` normalises each step with that step's batch statistics and updates
            the running statistics T times per batch (Algorithm S1, the authors' code); `all_steps`
            merges T into the batch, as multi-step libraries do.
        held: updates of the running statistics by a held input, i.e. a step that stands for `time_steps` equal steps
            and is normalised once. `every_step`: as if every step had been seen, i.e. T updates with the same mean and
            unbiased variance (`per_step`), or the bias correction for T N H W values (`all_steps`). `once`:
            a single update (the authors' code).
        of_maps: `bn` is a `BatchNorm2d`, of maps [C, H, W]; otherwise a `BatchNorm1d`, of features [C].
    """

    def __init__(
        self,
        channels: int,
        statistics: NormStatistics = "per_step",
        held: NormHeld = "every_step",
        of_maps: bool = True,
    ) -> None:
        super().__init__()
        for name, value, literal in (("held", held, NormHeld), ("statistics", statistics, NormStatistics)):
            require_one_of(f"norm_{name}", value, literal)
        self.held, self.statistics = held, statistics
        self.bn: nn.BatchNorm2d | nn.BatchNorm1d = (nn.BatchNorm2d if of_maps else nn.BatchNorm1d)(channels)

    def run(self, x: Signal) -> Tensor:
        """Normalised values, of the same shape.

        Written out, since PyTorch's gradient of BN is wrong for a single image with C innermost (torch 2.13), and with
        the operations of the kernels, so that evaluations round alike.
        """
        values = x.values
        if not (self.is_standard and is_plain(self.bn)) or self._synchronises:
            return self._by_module(values)
        real = values.to(torch.promote_types(values.dtype, torch.float32))
        of_map = range(3, values.dim())

        def moments() -> tuple[Tensor, Tensor]:
            return real.mean((1, *of_map)), real.var((1, *of_map), correction=0)

        norm = self.norm_for(moments, values[0, :, 0].numel(), x.steps)
        scale, shift = (row[:, None, :, *[None for _ in of_map]] for row in affine(norm))
        return (real * scale + shift).to(values.dtype)

    def _by_module(self, x: Tensor) -> Tensor:
        """Apply `bn` to each step, or to all steps at once."""
        of_batch = self.bn.training or self.bn.running_mean is None
        if self.statistics == "per_step" and of_batch and len(x) > 1:
            return torch.stack([self.bn(step) for step in x])
        frames = x.flatten(0, 1)
        frames = frames.flatten(2) if isinstance(self.bn, nn.BatchNorm1d) and x.dim() > 4 else frames
        return self.bn(frames).reshape(x.shape)

    @property
    def is_standard(self) -> bool:
        """True if `bn` is PyTorch's, affine, with exponential running averages."""
        bn = self.bn
        if type(bn) not in (nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm):
            return False
        return bn.affine and bn.track_running_stats and bn.momentum is not None

    @property
    def _synchronises(self) -> bool:
        return isinstance(self.bn, nn.SyncBatchNorm) and dist.is_initialized() and dist.get_world_size() > 1

    def norm_for(self, batch: Callable[[], tuple[Tensor, Tensor]], count: int, time_steps: int) -> Norm:
        """BN of an input, with running statistics updated in training; only if `is_standard`.

        Args:
            batch: returns the input's mean and biased variance per step and channel, [T, C] each, or [1, C] for a
                held input; called in training only.
            count: number of values per step and channel.
            time_steps: T.

        Raises:
            UserError: a batch statistic over fewer than two values.
        """
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        if not bn.training:
            var = bn.running_var.to(torch.promote_types(bn.running_var.dtype, torch.float32))
            return Norm(bn.weight, bn.bias, bn.running_mean[None], torch.rsqrt(var + bn.eps)[None])
        mean, var = batch()
        repeats = time_steps if len(mean) == 1 and self.held == "every_step" else 1
        if self.statistics == "all_steps" and len(mean) > 1:
            steps, mean_over_steps = len(mean), mean.mean(0, keepdim=True)
            var = (var + (mean - mean_over_steps).square()).mean(0, keepdim=True)
            mean, count = mean_over_steps, count * steps
        n: int | Tensor = count
        if self._synchronises:
            mean, var, n = moments_over_processes(mean, var, count)
        elif count == 1:
            raise UserError(
                "Expected more than 1 value per channel when training, got 1: a batch of one sample, of features or "
                "of maps of one pixel. If it is the last of an epoch, pass --data.drop_last true, or another "
                "data.batch_size."
            )
        self._update_running(mean.detach(), var.detach(), n, repeats)
        return Norm(bn.weight, bn.bias, mean, torch.rsqrt(var + bn.eps), True, self._synchronises)

    @torch.no_grad()
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

    def extra_repr(self) -> str:
        return f"statistics={self.statistics!r}, held={self.held!r}"
