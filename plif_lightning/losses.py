"""The two mean squared errors between votes and one-hot targets."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional

LossName = Literal["per_step", "rate"]


def _target(votes: Tensor, label: Tensor) -> Tensor:
    one_hot = label if label.is_floating_point() else functional.one_hot(label, votes.shape[-1])
    return one_hot.to(votes.dtype)


def per_step_mse(votes: Tensor, label: Tensor) -> Tensor:
    """Squared error of the votes at every step, averaged over steps, samples and classes (a scalar).

    It equals `rate_mse` plus the variance of each class's votes over time.

    Args:
        votes: [T, N, C] in [0, 1].
        label: int64 [N], or float [N, C], the share of each class in a mixed sample.

    Source: Fang et al. 2021, Sec. 3.7.
    """
    return functional.mse_loss(votes, _target(votes, label).expand_as(votes))


def rate_mse(votes: Tensor, label: Tensor) -> Tensor:
    """Squared error of the firing rates, the votes' mean over time; arguments as `per_step_mse`.

    Source: the authors' code, which produced the paper's numbers.
    """
    return functional.mse_loss(votes.mean(0), _target(votes, label))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"per_step": per_step_mse, "rate": rate_mse}
