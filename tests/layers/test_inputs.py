"""Input encoders of S-Sec. 10 against their definitions."""

import math
from fractions import Fraction

import pytest
import torch

from plif_lightning.network import SpikingNetwork
from plif_lightning.neurons import IF


@pytest.mark.parametrize("w", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("time_steps", [8, 21])
def test_simplified_encoder_matches_the_papers_firing(w, time_steps):
    """One channel, a 1x1 kernel of constant weight w, IF neurons, V_reset = 0."""
    p = torch.tensor([k / 64 for k in range(1, 65)], dtype=torch.float64)
    # Sums of multiples of 1/64 are exact, so rounding cannot move a neuron across the threshold.
    w = round(w * 64) / 64
    spikes = IF()(w * p.expand(time_steps, 1, -1))[:, 0]
    steps_to_fire = torch.ceil(1 / (w * p))
    assert torch.equal(spikes.sum(0), torch.floor(time_steps / steps_to_fire))
    fired = spikes.sum(0) > 0
    first = spikes.argmax(0)[fired] + 1  # 1-based
    assert torch.equal(first.double(), steps_to_fire[fired])


def test_poisson_encoder_fires_with_probability_p():
    torch.manual_seed(0)
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).view(1, 1, 1, 1, 5).expand(1, 200, 2, 9, 5)
    network = SpikingNetwork((2, 9, 5), 3, 50, n_down=1, channels=2, fc_features=4, input_encoder="poisson")
    spikes = network.inputs(p, 50)
    assert spikes.shape == (50, 200, 2, 9, 5)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean((0, 1, 2, 3)), p[0, 0, 0, 0], atol=0.01, rtol=0)


@pytest.mark.parametrize("time_steps", range(2, 65))
def test_latency_encoder_fires_once_at_the_exact_step_of_every_intensity(time_steps):
    pixels = torch.arange(256)
    encoder = SpikingNetwork((1, 16, 16), 2, time_steps, channels=1, fc_features=1, input_encoder="latency").inputs
    spikes = encoder((pixels / 255).view(1, 1, 1, 16, 16), time_steps)
    assert torch.equal(spikes.sum(0), torch.ones(1, 1, 16, 16))
    exact = [math.floor((time_steps - 1) * (1 - Fraction(p, 255))) for p in range(256)]
    assert spikes.argmax(0).flatten().tolist() == exact
