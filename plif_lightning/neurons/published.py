"""Published neurons as their equations, each with its source; k = 1/tau throughout."""

from typing import Any

import torch

from plif_lightning.dynamics import Equations
from plif_lightning.errors import UserError
from plif_lightning.neurons.modules import IF as IF
from plif_lightning.neurons.modules import LIF, PLIF, Neuron
from plif_lightning.neurons.parameters import fixed, learned

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N805  # equations have no self

# Largest count of integer neurons.
MOST_COUNTS = 8


class CLIF(Neuron):
    """Complementary LIF: a second potential m decays less the more the first is charged, and deepens its reset.

    Args:
        k: 1 / tau, share of the potential that leaks in a time-step.

    Source: Huang et al. 2024, "CLIF: Complementary Leaky Integrate-and-Fire Neuron for Spiking Neural Networks".
    """

    state = ("v", "m")
    k = fixed(0.5, "unit")

    def charge(v, x, k):
        return (1 - k) * v + x

    def after(h, m, s, k, v_threshold):
        m = m * torch.sigmoid(k * h) + s
        return h - s * (v_threshold + torch.sigmoid(m)), m


class ALIF(Neuron):
    """Adaptive LIF: each spike raises the threshold by beta, which decays by rho each step.

    Args:
        k: 1 / tau of the potential.
        rho: share of the raised threshold that remains after a time-step.
        beta: rise of the threshold by a spike.

    Source: Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of spiking neurons".
    """

    state = ("v", "adaptation")
    k = fixed(0.5, "unit")
    rho = fixed(0.9, "unit")
    beta = fixed(0.2, "positive")

    def charge(v, x, k, v_reset):
        return v + k * (x - (v - v_reset))

    def threshold(adaptation, beta, v_threshold):
        return v_threshold + beta * adaptation

    def after(reset, adaptation, s, rho):
        return reset, rho * adaptation + s


class AdLIF(Neuron):
    """LIF with an adaptation w of the input below the threshold: the potential and the spikes of a step raise it.

    The source has constants of each neuron (`tau_per: neuron`), drawn evenly from their ranges, such as
    `alpha: {uniform: [0.82, 0.96]}`. A spike takes 1 from the potential, and the source has its gradient there:
    `detach_reset: false`.

    Args:
        alpha: share of the potential that remains after a time-step, learned, within `ALPHA`. Beyond an end it is the
            end, without gradient, as in the source; so are the others.
        beta: share of the adaptation that remains, learned, within `BETA`.
        a: adaptation by the potential, learned, within `A`.
        b: adaptation by a spike, learned, within `B`.

    Source: Bittar and Garner 2022, "A surrogate gradient spiking baseline for speech command recognition" (sparch);
    Ma et al. 2025 (neuroseqbench) begin with a = b = 0, as here.
    """

    ALPHA, BETA = (0.8187307530779818, 0.9607894391523232), (0.9672161004820059, 0.9917012926388876)
    A, B = (-1.0, 1.0), (0.0, 2.0)
    state = ("v", "w")
    alpha = learned(0.9, ends=ALPHA)
    beta = learned(0.98, ends=BETA)
    a = learned(0.0, ends=A)
    b = learned(0.0, ends=B)

    def charge(v, w, x, alpha):
        return alpha * v + (1 - alpha) * (x - w)

    def after(h, w, s, beta, a, b):
        return h - s, beta * w + a * h + b * s


class SE_AdLIF(Neuron):  # noqa: N801  # se_adlif
    """AdLIF in the symplectic Euler form: the adaptation follows the new potential, which makes it stable.

    The source draws the constants of each neuron (`tau_per: neuron`) from their ranges; a in the middle of its range
    silences inputs of about 1, so that it begins smaller here. A spike resets the potential to 0, without gradient; its
    gradient through the adaptation, which the source has, is there with `detach_reset: false`.

    Args:
        alpha: share of the potential that remains after a time-step, learned, within `ALPHA`.
        beta: share of the adaptation that remains, learned, within `BETA`.
        a: adaptation by the potential behind its reset, learned, within `A`.
        b: adaptation by a spike, learned, within `B`.
        q: factor of both.

    Source: Baronig et al. 2025, "Advancing spatio-temporal processing through adaptation in spiking neural networks",
    whose program is SE-adlif; ranges of its configuration of SHD.
    """

    ALPHA, BETA = (0.8187307530779818, 0.9607894391523232), (0.9834714538216174, 0.9966722160545233)
    A, B = (0.0, 1.0), (0.0, 2.0)
    state = ("v", "w")
    alpha = learned(0.9, ends=ALPHA)
    beta = learned(0.99, ends=BETA)
    a = learned(0.05, ends=A)
    b = learned(1.0, ends=B)
    q = fixed(120.0, "positive")

    def charge(v, w, x, alpha):
        return alpha * v + (1 - alpha) * (x - w)

    def after(h, w, s, beta, a, b, q):
        v = h - h * s.detach()
        return v, beta * w + (1 - beta) * q * (a * v + b * s)


class QIF(Neuron):
    """Quadratic integrate-and-fire: above v_c the potential grows by itself.

    Args:
        k: 1 / tau.
        a_0: steepness of the parabola.
        v_rest: potential at rest.
        v_c: critical potential, above which it grows.

    Source: Gerstner et al. 2014, "Neuronal Dynamics", Sec. 5.3.
    """

    k = fixed(0.5, "unit")
    a_0 = fixed(1.0, "positive")
    v_rest = fixed(0.0)
    v_c = fixed(0.8)

    def charge(v, x, k, a_0, v_rest, v_c):
        return v + k * (x + a_0 * (v - v_rest) * (v - v_c))


class EIF(Neuron):
    """Exponential integrate-and-fire: above theta_rh the potential grows by itself, the sharper the smaller delta_t.

    Args:
        k: 1 / tau.
        delta_t: width of the exponential, in units of the potential.
        v_rest: potential at rest.
        theta_rh: potential at which the exponential takes over (rheobase threshold).

    Source: Gerstner et al. 2014, "Neuronal Dynamics", Sec. 5.2.
    """

    k = fixed(0.5, "unit")
    delta_t = fixed(1.0, "positive")
    v_rest = fixed(0.0)
    theta_rh = fixed(0.8)

    def charge(v, x, k, delta_t, v_rest, theta_rh):
        return v + k * (x - (v - v_rest) + delta_t * torch.exp((v - theta_rh) / delta_t))


class KLIF(Neuron):
    """LIF with a learned slope: the charged potential is scaled, and negative ones are set to zero.

    Args:
        k: 1 / tau.
        slope: factor of the charged potential, learned.

    Source: Jiang and Zhang 2023, "KLIF: An Optimized Spiking Neuron Unit for Tuning Surrogate Gradient Slope and
    Membrane Potential".
    """

    k = fixed(0.5, "unit")
    slope = learned(1.0)

    def charge(v, x, k, slope, v_reset):
        return torch.relu(slope * (v + (x - (v - v_reset)) * k))


def _without_input_decay(v, x, k, v_reset):
    return v - (v - v_reset) * k + x


class UndecayedLIF(LIF):
    """LIF without dividing the input by tau: SpikingJelly's with `decay_input=False`."""

    equations = Equations(("v",), charge=_without_input_decay)


class UndecayedPLIF(PLIF):
    """PLIF without dividing the input by tau: SpikingJelly's with `decay_input=False`."""

    equations = UndecayedLIF.equations


class UndecayedKLIF(KLIF):
    """KLIF without dividing the input by tau: SpikingJelly's with `decay_input=False`."""

    def charge(v, x, k, slope, v_reset):
        return torch.relu(slope * (v - (v - v_reset) * k + x))


class Synaptic(Neuron):
    """LIF with a synaptic current: each step multiplies the current by alpha and the potential by beta.

    snnTorch's defaults fire other spikes: they subtract the threshold a step after a spike, from the decayed
    potential. With `reset_mechanism="zero", reset_delay=False` they are equal, unless a potential equals the threshold.

    Args:
        alpha: share of the current that remains after a time-step.
        beta: share of the potential that remains after a time-step.

    Source: snnTorch's `Synaptic` (Eshraghian et al. 2023), SpikingJelly's `CUBALIFNode`.
    """

    state = ("v", "current")
    alpha = fixed(0.5, "unit")
    beta = fixed(0.75, "unit")

    def charge(v, current, x, alpha, beta):
        return beta * v + (alpha * current + x)

    def after(reset, current, x, alpha):
        return reset, alpha * current + x


class GLIF(Neuron):
    """Gated LIF: learned gates mix two kinds of decay (alpha) and of reset (gamma), and scale the input (beta).

    In the paper the conductance of the input, `conduct`, is learned for each time-step; here it is shared, so that
    the neuron does not depend on T. A spike resets in the step after it.

    Args:
        alpha: gate between the multiplied (1) and the subtracted (0) leak.
        beta: gate of `conduct`.
        gamma: gate between the reset by the potential (1) and by `subtract` (0).
        keep: share of the potential that the multiplied leak keeps.
        decay: potential that the subtracted leak takes in a time-step.
        subtract: potential that a reset takes.
        conduct: factor of the input if beta is 1.

    Source: Yao et al. 2022, "GLIF: A Unified Gated Leaky Integrate-and-Fire Neuron for Spiking Neural Networks".
    """

    state = ("v", "fired")
    alpha = learned(0.5, "unit")
    beta = learned(0.5, "unit")
    gamma = learned(0.5, "unit")
    keep = learned(0.25, "unit")
    decay = learned(0.05, "unit")
    subtract = learned(0.5, "unit")
    conduct = learned(0.5, "unit")

    def charge(v, fired, x, alpha, beta, gamma, keep, decay, subtract, conduct):
        leaked = (1 - alpha * (1 - keep)) * v
        charged = leaked - (1 - alpha) * decay + x * (1 - beta * (1 - conduct))
        return charged - leaked * gamma * fired - (1 - gamma) * subtract * fired

    def after(h, s):
        return h, s


class ILIF(Neuron):
    """Integer LIF: the output is the potential in thresholds, rounded, 0 to `max_count`; they are subtracted.

    Halves are rounded to even counts, as PyTorch's. The gradient is passed straight through while the potential lies
    between 0 and `max_count` thresholds, so that there is no surrogate. Layers after it get numbers, not spikes; as the
    last layer its votes exceed 1.

    Args:
        max_count: D, the largest output, at most 8.
        k: 1 / tau, SpikeYOLO's is 0.75; the input is not divided by tau.

    Source: Luo et al. 2024, "Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for
    High-performance and Energy-efficient Object Detection" (SpikeYOLO); SpikingJelly's `ILIFNode`.
    """

    k = fixed(0.5, "unit")
    max_count = fixed(4.0, "positive")

    def __init__(self, max_count: int = 4, k: Any = 0.5, **settings: Any) -> None:
        if max_count not in range(1, MOST_COUNTS + 1):
            raise UserError(f"max_count must be an integer from 1 to {MOST_COUNTS}, got {max_count!r}.")
        if (own := settings.get("surrogate", "atan")) != "atan":
            raise UserError(f"ILIF passes gradients straight through: surrogate {own} would have no effect.")
        super().__init__(max_count=float(max_count), k=k, **settings)

    def charge(v, x, k):
        return (1 - k) * v + x

    def fire(h, v_threshold, max_count):
        u = h / v_threshold
        u = torch.where(u < 0, 0.0, torch.where(u > max_count, max_count, u))
        reached = [u > i + 0.5 if i % 2 == 0 else u >= i + 0.5 for i in range(MOST_COUNTS)]
        # The sum is the count to the bit: the difference is exact, since both are within a factor of two.
        return u + (sum(each.to(u.dtype) for each in reached) - u).detach()

    def after(h, s, v_threshold):
        return h - s * v_threshold
