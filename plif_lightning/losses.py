"""The two mean squared errors between votes and one-hot targets."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional

LossName = Literal["per_step", "rate"]


def per_step_mse(votes: Tensor, label: Tensor) -> Tensor:
    """Squared error of the votes at every step, averaged over steps, samples and classes (a scalar).

    It equals `rate_mse` plus the variance of each class's votes over time.

    Args:
        votes: [T, N, C] in [0, 1].
        label: int64 [N].

    Source: Fang et al. 2021, Sec. 3.7.
    """
    target = functional.one_hot(label, votes.shape[-1]).to(votes.dtype)
    return functional.mse_loss(votes, target.expand_as(votes))


def rate_mse(votes: Tensor, label: Tensor) -> Tensor:
    """Squared error of the firing rates, the votes' mean over time; arguments as `per_step_mse`.

    Source: the authors' code, which produced the paper's numbers.
    """
    return functional.mse_loss(votes.mean(0), functional.one_hot(label, votes.shape[-1]).to(votes.dtype))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"per_step": per_step_mse, "rate": rate_mse}
