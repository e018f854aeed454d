"""The configurations of binary adding beside the benchmark's equations (Ma et al. 2025), as a loop over steps."""

import math

import pytest
import torch
import torch.nn.functional as F

from plif_lightning.network import SpikingNetwork
from plif_lightning.network.network import ARGUMENTS
from plif_lightning.neurons.published import GLIF
from tests.examples import glif_by_steps
from tests.examples.adaptive_neuron import AdaptiveLIF
from tests.examples.glif_by_steps import Spike
from tests.test_configs import parsed

LIF = "plif_lightning.neurons.published.UndecayedLIF"


def run(x, decay, threshold, recurrent):
    v = y = torch.zeros_like(x[0])
    spikes = []
    for step in x:
        v = decay * v * (1 - y) + step + F.linear(y, recurrent)
        y = Spike.apply(v, threshold)
        spikes.append(y)
    return torch.stack(spikes)


@pytest.mark.parametrize(
    ("variant", "neuron", "decay", "threshold"),
    [
        ((), "LIF", 1 - 1 / 50, 0.5),
        ((), "PLIF", 1 / (1 + math.exp(-10)), 0.5),
        (("--config", "binary_adding_recurrent"), "LIF", 0.5, 0.4),
        (("--config", "binary_adding_recurrent"), "PLIF", 0.5, 0.4),
    ],
)
def test_networks_of_binary_adding_are_the_benchmarks(variant, neuron, decay, threshold):
    of_lif = ("--model.neuron", LIF, *(() if variant else ("--model.init_tau", "50"))) if neuron == "LIF" else ()
    model = parsed("--config", "binary_adding", *variant, *of_lif)["model"]
    torch.manual_seed(3)
    net = SpikingNetwork((2,), 10, 100, **{name: model[name] for name in ARGUMENTS if name in model}).double()
    x = torch.randint(0, 2, (100, 20, 2)).double()
    ours = net(x).squeeze(0)
    ours.logsumexp(-1).sum().backward()

    given = {name.removeprefix("classifier."): p for name, p in net.named_parameters()}
    own = {name: p.detach().clone().requires_grad_() for name, p in given.items()}
    spikes = x
    for layer in ("fc1", "fc2"):
        raw = own.get(f"{layer}.neuron.a")
        of_layer = decay if raw is None else 1 - torch.sigmoid(raw)
        assert raw is None or (1 - raw.detach().sigmoid()).item() == pytest.approx(decay, rel=1e-6)
        recurrent = own.get(f"{layer}.recurrent.weight", torch.zeros(128, 128).double())
        inputs = F.linear(spikes, own[f"{layer}.fc.weight"], own[f"{layer}.fc.bias"])
        spikes = run(inputs, of_layer, threshold, recurrent)
    theirs = F.linear(spikes[-1], own["fc3.fc.weight"], own["fc3.fc.bias"])
    theirs.logsumexp(-1).sum().backward()
    assert 0.05 < spikes.mean() < 0.5
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for name, p in given.items():  # a fixed tau is stored in float32
        torch.testing.assert_close(p.grad, own[name].grad, rtol=1e-6, atol=1e-7)


SETTINGS = {"detach_reset": False, "surrogate": "boxcar", "surrogate_width": 0.4}


def an_input():
    return torch.randn(50, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients(spikes, of):
    weight = torch.linspace(0, 1, len(spikes), dtype=torch.float64)[:, None, None]
    return torch.autograd.grad((spikes * weight).sum(), list(of))


def test_adaptive_neuron_is_the_benchmarks():
    neuron = AdaptiveLIF(v_threshold=0.3, tau_per="channel", channels=16, **SETTINGS).double()
    spikes, x = neuron(an_input()), an_input()
    tau_m, tau_adp = torch.ones(16).double().requires_grad_(), torch.full((16,), 2.0).double().requires_grad_()
    v = s = adaptation = torch.zeros_like(x[0])
    theirs = []
    for step in x:
        rho = torch.exp(-1 / tau_adp)
        adaptation = rho * adaptation + (1 - rho) * s
        threshold = 0.3 + neuron.beta * adaptation
        v = v * torch.exp(-1 / tau_m) + step - threshold * s
        s = Spike.apply(v, threshold)
        theirs.append(s)
    theirs = torch.stack(theirs)
    assert 0.05 < theirs.mean() < 0.5
    assert torch.equal(spikes, theirs)
    of_ours = gradients(spikes, neuron.parameters())
    for ours, benchmarks in zip(of_ours, gradients(theirs, (tau_m, tau_adp)), strict=True):
        torch.testing.assert_close(ours, benchmarks, rtol=1e-12, atol=1e-12)


def test_glif_is_that_of_steps_with_the_same_conductance_at_each():
    starts = {"alpha": 0.65, "beta": 0.35, "gamma": 0.65, "decay": 0.0625, "subtract": 0.5}
    shared = GLIF(**starts, v_threshold=0.5, learn_threshold=True, **SETTINGS).double()
    by_steps = glif_by_steps.GLIF(16, 50).double()
    x, y = an_input().requires_grad_(), an_input().requires_grad_()
    spikes, of_steps = shared(x), by_steps(y)
    assert 0.05 < spikes.mean() < 0.5
    assert torch.equal(spikes, of_steps)
    ((of_x,), (of_y,)) = gradients(spikes, [x]), gradients(of_steps, [y])
    torch.testing.assert_close(of_x, of_y, rtol=1e-6, atol=1e-6)  # starting values are float32
