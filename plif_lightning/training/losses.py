"""Losses between votes [T, N, C] in [0, 1] and labels, by name."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional

from plif_lightning.errors import UserError

LossName = Literal["per_step", "rate", "tet", "cross_entropy"]

# Logits per vote: with M = 10 neurons per class, as in the paper, a logit is the number of neurons that fire.
_LOGITS = 10.0


def _target(votes: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Return the target probability of each class, [N, C]."""
    try:
        shares = label if label.is_floating_point() else functional.one_hot(label, votes.shape[-1])
    except RuntimeError as error:  # raised on a CPU; a GPU reports a device-side assertion instead
        wrong = f"{label.min()}..{label.max()}"
        raise UserError(f"labels must lie in 0..{votes.shape[-1] - 1}, got {wrong}: check num_classes.") from error
    shares = shares.to(votes.dtype)
    return shares * (1 - smoothing) + smoothing / votes.shape[-1] if smoothing else shares


def per_step_mse(votes: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean squared error of the votes at each step, averaged over steps, samples and classes (a scalar).

    Equals `rate_mse` plus the mean variance of the votes over time.

    Args:
        votes: [T, N, C] in [0, 1].
        label: int64 [N], or float [N, C], the fraction of each class in a mixed sample.
        smoothing: fraction of the label that is spread evenly over all classes.

    Source: Fang et al. 2021, Sec. 3.7.
    """
    return functional.mse_loss(votes, _target(votes, label, smoothing).expand_as(votes))


def rate_mse(votes: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean squared error of the firing rates (mean votes over time); arguments as in `per_step_mse`.

    Source: the authors' code, which produced the paper's numbers.
    """
    return functional.mse_loss(votes.mean(0), _target(votes, label, smoothing))


def per_step_cross_entropy(votes: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the votes at each step, averaged over steps and samples; arguments as in `per_step_mse`.

    The logits are 10 times the votes. This is TET without its second term, which keeps membrane potentials bounded:
    votes are bounded already.

    Source: Deng et al. 2022 (TET), Sec. 4.2.
    """
    target = _target(votes, label, smoothing).expand_as(votes)
    return functional.cross_entropy(_LOGITS * votes.flatten(0, 1), target.flatten(0, 1))


def rate_cross_entropy(votes: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the firing rates; the logits are 10 times the rates. Arguments as in `per_step_mse`."""
    return functional.cross_entropy(_LOGITS * votes.mean(0), _target(votes, label, smoothing))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "per_step": per_step_mse,
    "rate": rate_mse,
    "tet": per_step_cross_entropy,
    "cross_entropy": rate_cross_entropy,
}
