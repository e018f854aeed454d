"""Losses between votes [T, N, C] in [0, 1], or the logits [T, N, C] of a readout, and labels; by name."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from plif_lightning.errors import UserError, require_one_of

LossName = Literal["per_step", "rate", "per_step_cross_entropy", "cross_entropy", "tet"]
Loss = Callable[..., Tensor]
if TYPE_CHECKING:
    AnyLoss = LossName | nn.Module | Loss
else:
    AnyLoss = LossName | nn.Module  # on the command line, where a file may name a class of losses, but no function

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


def per_step_cross_entropy(
    votes: Tensor, label: Tensor, smoothing: float = 0.0, logits_per_vote: float = _LOGITS
) -> Tensor:
    """Cross-entropy at each step, averaged over steps and samples; arguments as in `per_step_mse`.

    `logits_per_vote` is 1 for the logits of a readout.
    """
    target = _target(votes, label, smoothing).expand_as(votes)
    return functional.cross_entropy(logits_per_vote * votes.flatten(0, 1), target.flatten(0, 1))


def rate_cross_entropy(
    votes: Tensor, label: Tensor, smoothing: float = 0.0, logits_per_vote: float = _LOGITS
) -> Tensor:
    """Cross-entropy of the mean over time; arguments as in `per_step_cross_entropy`."""
    return functional.cross_entropy(logits_per_vote * votes.mean(0), _target(votes, label, smoothing))


def tet(outputs: Tensor, label: Tensor, smoothing: float = 0.0, weight: float = 0.05, phi: float = 1.0) -> Tensor:
    """Temporal efficient training: (1 - weight) times the mean cross-entropy of the steps, plus weight times the mean
    squared distance of the outputs from phi.

    Args:
        outputs: of a readout without spikes, the input of the output layer [T, N, C].
        label: as in `per_step_mse`.
        smoothing: as in `per_step_mse`.
        weight: lambda.
        phi: where the second term pulls the outputs; V_th in the paper.

    Source: Deng et al. 2022, "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting".
    """
    of_steps = per_step_cross_entropy(outputs, label, smoothing, logits_per_vote=1.0)
    return (1 - weight) * of_steps + weight * (outputs - phi).square().mean()


LOSSES: dict[str, Loss] = {
    "per_step": per_step_mse,
    "rate": rate_mse,
    "per_step_cross_entropy": per_step_cross_entropy,
    "cross_entropy": rate_cross_entropy,
    "tet": tet,
}


def custom_loss(loss: Loss, votes: Tensor, label: Tensor, smoothing: float = 0.0, **context: Any) -> Tensor:
    """A user-defined loss of (votes [T, N, C], target) and what else its signature names, a scalar.

    Its target is int64 [N]; float [N, C], the share of each class, where samples are mixed or labels are smoothed.

    Args:
        loss: the loss.
        votes: [T, N, C].
        label: as in `per_step_mse`.
        smoothing: as in `per_step_mse`.
        context: those of `CONTEXT` that it takes.
    """
    target = _target(votes, label, smoothing) if smoothing or label.is_floating_point() else label
    return loss(votes, target, **context)


# Arguments that a user-defined loss may have beside votes and target: the batch, the network's input (time first), the
# network, the task, and the outputs of the layers that its attribute `layers` names.
CONTEXT = ("batch", "x", "net", "task", "features")


def context_of(loss: Any) -> set[str]:
    """Those of `CONTEXT` that a loss takes.

    Raises:
        UserError: it takes features, and does not name their layers.
    """
    if not callable(loss):
        return set()
    parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    wanted = {*list(parameters)[2:]} & {*CONTEXT}  # behind votes and target, whatever their names
    if "features" in wanted and not getattr(loss, "layers", None):
        raise UserError('a loss that takes features names their layers in its attribute `layers`, such as ("conv2",).')
    return wanted


def loss_named(name: Any, tet_lambda: float | None = None, votes: bool = True) -> Loss:
    """The loss of a name, for a network with votes in [0, 1] or with the logits of a readout; or a user-defined loss.

    Raises:
        UserError: an unknown name, tet of votes, or a lambda outside of 0..1 or beside another loss.
    """
    if callable(name):
        return partial(custom_loss, name)
    require_one_of("loss", name, LossName)
    if (name == "tet" and votes) or (tet_lambda is not None and (name != "tet" or not 0 <= tet_lambda <= 1)):
        raise UserError(
            f"loss={name!r}, tet_lambda={tet_lambda}: tet trains a readout without spikes (structure ...-FC10) with a "
            "lambda from 0 to 1; for votes there is per_step_cross_entropy."
        )
    if name == "tet" and tet_lambda is not None:
        return partial(tet, weight=tet_lambda)
    loss = LOSSES[name]
    cross_entropy = name in ("per_step_cross_entropy", "cross_entropy")
    return partial(loss, logits_per_vote=1.0) if cross_entropy and not votes else loss
