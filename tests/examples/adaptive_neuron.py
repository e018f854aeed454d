"""The adaptive LIF of Yin et al. 2021, as Ma et al. 2025 compare it: a neuron of one's own.

With this file in the working directory:

python main.py fit --config binary_adding --model.neuron adaptive_neuron.AdaptiveLIF --model.init_tau 2.0
    --model.tau_per neuron --model.v_threshold 0.3 --model.optimizer.lr 0.005
"""

# ruff: noqa: N805  # equations have no self
# mypy: disable-error-code="no-untyped-def"
import torch

import plif_lightning as pl


class AdaptiveLIF(pl.Neuron):
    """Adaptive LIF: a spike raises the threshold and, in the step after it, takes the raised threshold off.

    Args:
        tau_m: time constant of the potential [steps].
        tau_adp: time constant of the adaptation [steps].
        beta: rise of the threshold if every step fires.
    """

    state = ("v", "fired", "adaptation")
    tau_m = pl.learned(1.0)
    tau_adp = pl.learned(2.0)
    beta = pl.fixed(0.2, "positive")

    def charge(v, fired, adaptation, x, tau_m, beta, v_threshold):
        return torch.exp(-1 / tau_m) * v + x - (v_threshold + beta * adaptation) * fired

    def threshold(adaptation, beta, v_threshold):
        return v_threshold + beta * adaptation

    def after(h, s, adaptation, tau_adp):
        rho = torch.exp(-1 / tau_adp)
        return h, s, rho * adaptation + (1 - rho) * s
