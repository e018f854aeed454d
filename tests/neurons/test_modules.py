"""Neuron modules."""

import itertools
import math

import numpy as np
import pytest
import torch

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.neurons import IF, LIF, PLIF
from tests.dynamics import oracle
from tests.neurons.making import make_neuron


@pytest.mark.parametrize("v_reset", [0.0, -0.5, 0.4])
def test_a_learned_threshold_stays_positive_and_above_the_reset(v_reset):
    neuron = PLIF(v_threshold=0.9, v_reset=v_reset, learn_threshold=True, tau_per="channel", channels=3)
    torch.testing.assert_close(neuron.learned()["v_threshold"], torch.full([3], 0.9))
    neuron.v_threshold_raw.data = torch.tensor([-50.0, 0.0, 3.0])
    assert (neuron.firing.v_threshold >= max(v_reset, 0.0)).all()
    assert [name for name, _ in neuron.named_parameters()] == ["v_threshold_raw", "a"]
    assert IF(learn_threshold=True).learned()["v_threshold"] == 1.0
    assert LIF().learned().keys() == {"tau"}


@pytest.mark.parametrize("time_steps", [1, 3, 8])
@pytest.mark.parametrize(("v_reset", "detach_reset"), list(itertools.product([0.0, -0.25, None], [True, False])))
def test_plif_equals_spikingjelly(time_steps, v_reset, detach_reset):
    """SpikingJelly's soft reset is v_reset=None."""
    pytest.importorskip("spikingjelly", reason="test extra `bench`")
    from spikingjelly.activation_based import functional, neuron, surrogate

    theirs = neuron.ParametricLIFNode(
        init_tau=3.0, v_reset=v_reset, detach_reset=detach_reset, surrogate_function=surrogate.ATan(), step_mode="m"
    )
    reset = {"reset": "soft"} if v_reset is None else {"v_reset": v_reset}
    ours = PLIF(init_tau=3.0, detach_reset=detach_reset, **reset)
    x, _, (grad, _) = oracle.sample((time_steps, 3, 5, 7), torch.float32)
    results = []
    for module, parameter in ((theirs, theirs.w), (ours, ours.a)):
        inputs = x.clone().requires_grad_()
        spikes = module(inputs)
        (spikes * grad).sum().backward()
        results.append((spikes.detach(), inputs.grad, parameter.grad.reshape(())))
    functional.reset_net(theirs)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_membrane_potential_is_float32_under_autocast():
    neuron = PLIF()
    x = torch.randn(8, 4, 6, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spikes, v = neuron.simulate(x)
    assert spikes.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    expected, v_expected = neuron.simulate(x.float())
    assert torch.equal(spikes.float(), expected)
    assert torch.equal(v, v_expected)
    spikes.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert neuron.a.grad.dtype == torch.float32


def test_tau_is_the_inverse_of_sigmoid_a():
    assert PLIF(init_tau=2.0).a.item() == 0
    for init_tau in (1.1, 2.0, 16.0):
        assert PLIF(init_tau=init_tau).tau.item() == pytest.approx(init_tau, rel=1e-6)
        assert LIF(init_tau=init_tau).tau.item() == pytest.approx(init_tau, rel=1e-6)
    assert IF().tau.item() == math.inf
    assert [n for n, _ in LIF().named_parameters()] == []
    assert PLIF(tau_per="channel", channels=5).a.shape == (5,)


@pytest.mark.parametrize("init_tau", [1.0, 0.5, -2.0, math.inf, math.nan])
def test_time_constant_is_finite_and_above_one(init_tau):
    for neuron in (PLIF, LIF):
        with pytest.raises(UserError, match="init_tau must be > 1"):
            neuron(init_tau=init_tau)


def test_neuron_is_created_by_name():
    for name, kind, learned in (("plif", PLIF, ["a"]), ("lif", LIF, []), ("if", IF, [])):
        neuron = make_neuron(name, 3)
        assert type(neuron) is kind
        assert [parameter for parameter, _ in neuron.named_parameters()] == learned
    with pytest.raises(UserError, match=r"neuron must be one of plif, lif, if, clif, .* got 'IF'"):
        make_neuron("IF", 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(tau=2.0), r"LIF has no argument tau\. Did you mean init_tau\?"),
        (lambda: IF(init_tau=2.0), r"IF has no argument init_tau\. It has tau_per, channels"),
        (lambda: PLIF(v_treshold=2.0), r"Did you mean v_threshold\?"),
        (lambda: SpikingNetwork((1, 8, 8), 3, 4, chanels=3), r"has no argument chanels\. Did you mean channels\?"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("v_threshold", [-1.0, np.float32(-1), math.nan])
def test_a_threshold_is_a_number_above_the_reset(v_threshold):
    with pytest.raises(UserError, match="v_threshold"):
        PLIF(v_threshold=v_threshold)


def test_constants_of_firing_are_attributes():
    neuron = PLIF(v_threshold=0.7, v_reset=-0.2)
    assert (neuron.v_threshold, neuron.v_reset) == (0.7, -0.2)
    learned = PLIF(v_threshold=0.7, learn_threshold=True, tau_per="channel", channels=3)
    with torch.no_grad():
        learned.v_threshold_raw += torch.tensor([0.0, 1.0, -1.0])
    torch.testing.assert_close(learned.v_threshold, 0.7 * torch.tensor([0.0, 1.0, -1.0]).exp())
    assert not learned.v_threshold.requires_grad
