"""The constants of firing and reset, as one value that every form of the dynamics takes."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Literal, get_args

from plif_lightning.dynamics.surrogate import Surrogate, SurrogateName
from plif_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    Threshold = float | Tensor
else:
    Threshold = float  # for people and the command line; a neuron that learns it puts a tensor in its place

Reset = Literal["hard", "soft"]


@dataclass(frozen=True)
class Firing:
    """How neurons fire and reset, and what gradient passes through that.

    Args:
        v_threshold: V_th, at which a neuron fires; for `integrate_and_fire` also a tensor, a scalar or
            one value per channel.
        v_reset: V_reset < V_th, the potential before the first step, which it leaks to, and after a hard reset.
        reset: what a spike does to the potential: hard sets it to V_reset (the paper), soft takes V_th from it.
        detach_reset: whether no gradient flows through the spike of the reset (S-Sec. 6).
        surrogate: derivative of the step in the backward pass, see `Surrogate`; atan is the paper's.
        surrogate_width: its width, see `Surrogate`.

    Raises:
        UserError: a constant lies outside its range.

    Source: Fang et al. 2021, Sec. 3.3.
    """

    v_threshold: Threshold = 1.0
    v_reset: float = 0.0
    reset: Reset = "hard"
    detach_reset: bool = True
    surrogate: SurrogateName = "atan"
    surrogate_width: float = 1.0

    def __post_init__(self) -> None:
        # A tensor is not looked at: its device would have to be waited for.
        constant = not hasattr(self.v_threshold, "requires_grad")
        if constant and not isinstance(self.v_threshold, Real):
            raise UserError(f"v_threshold must be a number, got {self.v_threshold!r}.")
        if not math.isfinite(self.v_reset) or (constant and not self.v_reset < self.v_threshold):
            raise UserError(
                f"v_reset must be below v_threshold, got v_reset={self.v_reset}, v_threshold={self.v_threshold}."
            )
        if self.reset not in get_args(Reset):
            raise UserError(f"reset must be one of {', '.join(get_args(Reset))}, got {self.reset!r}.")
        Surrogate(self.surrogate, self.surrogate_width)

    @property
    def gradient(self) -> Surrogate:
        """The surrogate by its name and width."""
        return Surrogate(self.surrogate, self.surrogate_width)
