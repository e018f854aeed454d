"""Neurons as equations, their gradients, and the reference for every kernel in plain PyTorch."""

from plif_lightning.dynamics.equations import Equations
from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.reference import integrate_and_fire
from plif_lightning.dynamics.surrogate import Surrogate, SurrogateName, surrogate

__all__ = ["Equations", "Firing", "Surrogate", "SurrogateName", "integrate_and_fire", "surrogate"]
