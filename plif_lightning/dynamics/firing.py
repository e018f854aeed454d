"""Constants of firing and reset, shared by all implementations of the dynamics."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from plif_lightning.dynamics.surrogate import AnySurrogate, Surrogate
from plif_lightning.errors import UserError, require_one_of

if TYPE_CHECKING:
    from torch import Tensor

    Threshold = float | Tensor
else:
    Threshold = float  # on the command line; neurons with a learnable threshold pass a tensor

Reset = Literal["hard", "soft"]
__all__ = ["Firing", "FiringKeywords", "Keywords", "Reset", "Threshold"]


@dataclass(frozen=True)
class Firing:
    """Firing threshold, reset and surrogate gradient.

    Args:
        v_threshold: V_th, at which a neuron fires; for `integrate_and_fire` also a tensor, a scalar or
            a value per channel.
        v_reset: V_reset < V_th: initial potential, resting potential of the leak and potential after a hard reset.
        reset: effect of a spike on the potential: hard sets it to V_reset (the paper), soft subtracts V_th.
        detach_reset: block the gradient through the spike in the reset (S-Sec. 6).
        through_time: False drops the gradient from a step to the previous step (SLTT, Meng et al. 2023): each step is
            trained on its spikes and votes alone.
        surrogate: derivative of the step function in the backward pass, see `Surrogate`; the paper uses atan. Or the
            import path of a function that is declared a `surrogate`.
        surrogate_width: its width, see `Surrogate`.

    Raises:
        UserError: a constant is out of range.

    Source: Fang et al. 2021, Sec. 3.3.
    """

    v_threshold: Threshold = 1.0
    v_reset: float = 0.0
    reset: Reset = "hard"
    detach_reset: bool = True
    surrogate: AnySurrogate = "atan"
    surrogate_width: float = 1.0
    through_time: bool = True

    def __post_init__(self) -> None:
        if self.v_reset is None:  # as in SpikingJelly
            raise UserError("v_reset must be a number: pass reset='soft' for a reset that subtracts the threshold.")
        # A tensor is not checked, because reading it would synchronise with its device.
        constant = not hasattr(self.v_threshold, "requires_grad")
        if not math.isfinite(self.v_reset) or (constant and not self.v_reset < self.v_threshold):
            raise UserError(
                f"v_reset must be below v_threshold, got v_reset={self.v_reset}, v_threshold={self.v_threshold}."
            )
        for name in ("detach_reset", "through_time"):  # any text, `no` in a structure too, would count as true
            require_one_of(name, getattr(self, name), Literal[True, False])
        require_one_of("reset", self.reset, Reset)
        object.__setattr__(self, "surrogate", self.gradient.name)  # of a function, its name

    @property
    def gradient(self) -> Surrogate:
        """Surrogate of this name and width."""
        return Surrogate(self.surrogate, self.surrogate_width)


if TYPE_CHECKING:
    from typing import Unpack as Keywords
else:

    class Keywords:
        """`typing.Unpack` for type checkers, `Any` at run time.

        jsonargparse then follows keywords that a constructor passes on to the signature that takes them, where they
        have defaults; a TypedDict has none.
        """

        def __class_getitem__(cls, item: object) -> object:
            return Any


class FiringKeywords(TypedDict, total=False):
    """Arguments of `Firing` for type checkers, where a constructor passes them on."""

    v_threshold: float
    v_reset: float
    reset: Reset
    detach_reset: bool
    surrogate: AnySurrogate
    surrogate_width: float
    through_time: bool
