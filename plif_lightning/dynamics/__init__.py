"""Neuron dynamics in plain PyTorch: constants, surrogate gradients and the reference for every kernel."""

from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.reference import integrate_and_fire
from plif_lightning.dynamics.surrogate import Surrogate, SurrogateName

__all__ = ["Firing", "Surrogate", "SurrogateName", "integrate_and_fire"]
