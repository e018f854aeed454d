"""Equations of the paper's neurons."""

from torch import Tensor

from plif_lightning.dynamics.equations import Dynamics, Equations
from plif_lightning.dynamics.firing import Firing


def _leaky(x, v, k, v_reset):  # type: ignore[no-untyped-def]
    """H_t, Eq. 3 with the brackets that Eqs. 5 and 6 lack; k = 1/tau."""
    return (x - (v - v_reset)) * k + v


def _perfect(x, v):  # type: ignore[no-untyped-def]
    """H_t without leak."""
    return v + x


LEAKY = Equations(("v",), charge=_leaky)
PERFECT = Equations(("v",), charge=_perfect)


def leaky(k: Tensor | None, firing: Firing) -> Dynamics:
    """The paper's neurons with the leak k = 1/tau, a scalar or a value per channel; without leak for None."""
    return Dynamics.of(PERFECT, {}, firing) if k is None else Dynamics.of(LEAKY, {"k": k}, firing)
