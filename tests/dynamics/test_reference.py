"""The neuron's forward pass and every gradient, against references that this project did not write."""

import math
from typing import get_args

import pytest
import torch

from plif_lightning.dynamics import Firing, SurrogateName, integrate_and_fire
from plif_lightning.dynamics.leaky import leaky
from plif_lightning.dynamics.reference import trace
from plif_lightning.errors import UserError
from plif_lightning.network import use_backend
from plif_lightning.neurons import IF, LIF, PLIF
from tests.dynamics import oracle

SHAPES = [(1, 3), (1, 1, 2, 3, 5), (3, 2, 3, 5, 7), (8, 3, 4), (8, 1, 3, 1, 1)]
CONSTANTS = [  # of a hard reset
    {"v_threshold": 1.0, "v_reset": 0.0},
    {"v_threshold": 0.7, "v_reset": -0.3},
    {"v_threshold": 1.5, "v_reset": 0.4},
]


def outputs_and_gradients(function, x, a, v, grads, **kwargs):
    x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
    a = None if a is None else a.clone().requires_grad_()
    spikes, last = function(x, None if a is None else torch.sigmoid(a), v, **kwargs)
    ((spikes * grads[0]).sum() + (last * grads[1]).sum()).backward()
    return [spikes.detach(), last.detach(), x.grad, v.grad] + ([] if a is None else [a.grad])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "constants",
    [*CONSTANTS, {"reset": "soft"}, {"reset": "soft", "v_threshold": 0.7, "v_reset": -0.3}],
    ids=["paper", "negative-reset", "positive-reset", "soft", "soft-to-rest"],
)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("leak", ["layer", "channel", "none"])
def test_spikes_and_every_gradient_equal_autograd_in_float64(shape, constants, detach_reset, leak):
    if leak == "channel" and len(shape) < 3:
        pytest.skip("no channels")
    x, v, grads = oracle.sample(shape)
    a = {"layer": torch.tensor(0.3), "channel": torch.linspace(-1, 2, shape[2] if len(shape) > 2 else 1), "none": None}[
        leak
    ]
    a = None if a is None else a.double()
    expected = outputs_and_gradients(oracle.run, x, a, v, grads, detach_reset=detach_reset, **constants)
    actual = outputs_and_gradients(
        integrate_and_fire, x, a, v, grads, firing=Firing(detach_reset=detach_reset, **constants)
    )
    assert 0 < expected[0].mean() < 1 or x.numel() < 10
    for e, o in zip(expected, actual, strict=True):
        torch.testing.assert_close(o, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", get_args(SurrogateName))
@pytest.mark.parametrize("width", [1.0, 0.4, 2.5])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_every_surrogate_gives_autograds_gradients(name, width, detach_reset):
    x, v, grads = oracle.sample((4, 3, 5))
    a = torch.tensor(-0.2, dtype=torch.float64)
    expected = outputs_and_gradients(oracle.run, x, a, v, grads, detach_reset=detach_reset, surrogate=name, width=width)
    firing = Firing(detach_reset=detach_reset, surrogate=name, surrogate_width=width)
    actual = outputs_and_gradients(integrate_and_fire, x, a, v, grads, firing=firing)
    for e, o in zip(expected, actual, strict=True):
        torch.testing.assert_close(o, e, rtol=1e-10, atol=1e-12)


def threshold_gradients(function, x, v, grads, b, **settings):
    """Outputs, and gradients of the input, of k and of the parameter b that the threshold is made of."""
    x, b = x.clone().requires_grad_(), b.clone().requires_grad_()
    k = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    spikes, last = function(x, k, v, 0.8 * torch.exp(b), **settings)
    ((spikes * grads[0]).sum() + (last * grads[1]).sum()).backward()
    return [spikes.detach(), last.detach(), x.grad, k.grad, b.grad]


@pytest.mark.parametrize("shape", [(1, 1, 2, 3, 5), (3, 2, 3, 5, 7), (8, 3, 4)], ids=str)
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_the_gradient_of_a_learned_threshold_equals_autograds_in_float64(shape, reset, detach_reset, per):
    x, v, grads = oracle.sample(shape)
    b = torch.linspace(-0.3, 0.4, shape[2], dtype=torch.float64) if per == "channel" else torch.tensor(0.1).double()
    settings = {"reset": reset, "detach_reset": detach_reset, "v_reset": -0.2}
    expected = threshold_gradients(
        lambda x, k, v, th, **s: oracle.run(x, k, v, v_threshold=th, **s), x, v, grads, b, **settings
    )
    actual = threshold_gradients(
        lambda x, k, v, th, **s: integrate_and_fire(x, k, v, firing=Firing(v_threshold=th, **s)),
        *(x, v, grads, b),
        **settings,
    )
    assert expected[-1].abs().sum() > 0
    for e, o in zip(expected, actual, strict=True):
        torch.testing.assert_close(o, e, rtol=1e-10, atol=1e-12)


def closed_form(x, a, v_threshold, v_reset, detach_reset):
    """Eqs. 8-17 for one neuron with the loss sum_t c_t S_t, c_t = t + 1: spikes, dL/dx_t, dL/da."""
    k = 1 / (1 + math.exp(-a))
    v_before, h, v, s = [], [], v_reset, []
    for x_t in x:
        v_before.append(v)
        h.append(v + k * (-(v - v_reset) + x_t))  # Eq. 3 with the bracket of PAPER Eqs. 2-4
        s.append(1.0 if h[-1] >= v_threshold else 0.0)
        v = h[-1] * (1 - s[-1]) + v_reset * s[-1]
    theta = [1 / (1 + (math.pi * (h_t - v_threshold)) ** 2) for h_t in h]  # Eq. 13
    # Eq. 12; the detached form is S-Sec. 6
    dv_dh = [1 - s_t + (0 if detach_reset else (v_reset - h_t) * th) for s_t, h_t, th in zip(s, h, theta, strict=True)]
    dl_dh, later = [0.0] * len(x), 0.0
    for t in reversed(range(len(x))):  # Eqs. 8-11
        dl_dh[t] = (t + 1) * theta[t] + later * (1 - k) * dv_dh[t]
        later = dl_dh[t]
    # Eq. 15 unrolled: what H_t depends on directly; the recursion is already in dL/dH.
    dk = k * (1 - k)
    dl_da = sum(d * (-(vb - v_reset) + x_t) * dk for d, vb, x_t in zip(dl_dh, v_before, x, strict=True))  # Eq. 16
    return s, [d * k for d in dl_dh], dl_da  # Eq. 14


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("time_steps", [1, 3, 8])
def test_gradients_equal_the_papers_closed_forms(time_steps, constants, detach_reset):
    x, _, _ = oracle.sample((time_steps, 6), seed=1)
    for j in range(6):
        xs = x[:, j : j + 1].clone().requires_grad_()
        a = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        spikes, _ = integrate_and_fire(xs, torch.sigmoid(a), firing=Firing(detach_reset=detach_reset, **constants))
        (spikes[:, 0] * torch.arange(1, time_steps + 1)).sum().backward()
        s, dx, da = closed_form(x[:, j].tolist(), 0.8, constants["v_threshold"], constants["v_reset"], detach_reset)
        assert spikes[:, 0].tolist() == s
        torch.testing.assert_close(xs.grad[:, 0], torch.tensor(dx, dtype=torch.float64), rtol=1e-10, atol=1e-12)
        assert a.grad.item() == pytest.approx(da, rel=1e-9, abs=1e-12)


def test_hand_computed_membrane_of_four_steps():
    # tau = 2: H = 0.75; then 0.375 + 0.75 = 1.125 fires and resets; then 0.75 again.
    spikes, v = integrate_and_fire(torch.full([3, 1], 1.5), torch.tensor(0.5))
    assert spikes.flatten().tolist() == [0, 1, 0]
    assert v.item() == 0.75


def test_soft_reset_keeps_the_excess_over_the_threshold():
    # H = 1.25 fires and keeps 0.25; then 0.25 + 0.5 (2.5 - 0.25) = 1.375 fires and keeps 0.375.
    firing = Firing(reset="soft")
    spikes, v = integrate_and_fire(torch.full([2, 1], 2.5), torch.tensor(0.5), firing=firing)
    assert spikes.flatten().tolist() == [1, 1]
    assert v.item() == 0.375


def test_neuron_at_the_threshold_fires():
    spikes, v = integrate_and_fire(torch.tensor([[2.0]]), torch.tensor(0.5))
    assert spikes.item() == 1
    assert v.item() == 0


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_sequence_cut_in_time_gives_the_same(cut):
    x, v, grads = oracle.sample((8, 3, 5))
    k, firing = torch.tensor(0.3, dtype=torch.float64), Firing(detach_reset=False)

    def in_two(x, k, v):
        first, v = integrate_and_fire(x[:cut], k, v, firing=firing)
        second, v = integrate_and_fire(x[cut:], k, v, firing=firing)
        return torch.cat([first, second]), v

    whole = outputs_and_gradients(lambda *s: integrate_and_fire(*s, firing=firing), x, k, v, grads)
    for e, o in zip(whole, outputs_and_gradients(in_two, x, k, v, grads), strict=True):
        torch.testing.assert_close(o, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("leak", [None, 0.4])
def test_held_input_equals_its_repetition(leak):
    x, v, grads = oracle.sample((6, 3, 4, 5, 5))
    k = None if leak is None else torch.tensor(leak, dtype=torch.float64)
    a = None if k is None else torch.logit(k)
    repeated = outputs_and_gradients(integrate_and_fire, x[:1].expand(6, -1, -1, -1, -1), a, v, grads)
    held = outputs_and_gradients(integrate_and_fire, x[:1], a, v, grads, time_steps=6)
    repeated[2] = repeated[2].sum(0, keepdim=True)
    for e, o in zip(repeated, held, strict=True):
        torch.testing.assert_close(o, e, rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck_through_the_last_potential_where_nothing_fires():
    # Where no neuron fires or comes close, the function is smooth and finite differences apply.
    x = (torch.rand(4, 3, dtype=torch.float64) * 0.5).requires_grad_()
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    v = (torch.rand(3, dtype=torch.float64) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a, v: integrate_and_fire(x, torch.sigmoid(a), v)[1], (x, a, v))


def test_if_neuron_is_the_limit_of_large_tau():
    # x / tau is what the limit leaves of the input (Sec. 4.3).
    x, _, _ = oracle.sample((8, 3, 4))
    tau = 1e9
    leaky, _ = integrate_and_fire(x * tau, torch.tensor(1 / tau, dtype=torch.float64))
    assert torch.equal(leaky, IF()(x))


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: PLIF(init_tau=1.0), "init_tau must be > 1"),
        (lambda: LIF(init_tau=float("nan")), "init_tau must be > 1"),
        (lambda: PLIF(tau_per="channel"), "channels"),
        (lambda: PLIF(tau_per="neuron"), "tau_per must be layer, or channel or neuron beside channels=C"),
        (lambda: PLIF(v_reset=1.0), "v_reset must be below v_threshold"),
        (lambda: PLIF(surrogate="arctan"), "surrogate must be one of"),
        (lambda: PLIF(v_threshold=-0.5, v_reset=-1.0, learn_threshold=True), "v_threshold must be above zero"),
        (
            lambda: integrate_and_fire(torch.zeros(2, 1, 3), None, firing=Firing(torch.ones(4))),
            "v_threshold must be a scalar or one value per channel",
        ),
        (lambda: PLIF(reset="none"), "reset must be one of hard, soft"),
        (lambda: PLIF(surrogate_width=0.0), "surrogate_width must be a positive"),
        (lambda: PLIF()(torch.zeros(0, 2, 1)), "T >= 1"),
        (lambda: PLIF()(torch.zeros(3)), "x must be"),
        (lambda: PLIF()(torch.zeros(3, 4)), "has no time"),
        (lambda: PLIF()(torch.zeros(2, 3, 1), time_steps=4), "time_steps = 4"),
        (
            lambda: PLIF().simulate(torch.zeros(2, 3, 1), torch.zeros(4)),
            r"states must be v, .* \(3, 1\) on cpu, got \(4,\) on cpu",
        ),
        (
            lambda: PLIF().simulate(torch.zeros(2, 3, 1), 2 * (torch.zeros(3, 1),)),
            r"states must be v, .* got \(3, 1\) on cpu, \(3, 1\)",
        ),
        (lambda: PLIF(tau_per="channel", channels=3)(torch.zeros(2, 1, 4)), "one value per channel"),
    ],
)
def test_a_wrong_argument_is_named(make_it, message):
    with pytest.raises(UserError, match=message):
        make_it()


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("held", [False, True])
def test_trace_records_the_neurons_steps(per, held):
    shape = [3] if per == "channel" else []
    k = torch.linspace(0.3, 0.6, 3)[: None if shape else 1].reshape(shape)
    threshold = torch.linspace(0.8, 1.2, 3)[: None if shape else 1].reshape(shape)
    firing = Firing(v_threshold=threshold, v_reset=-0.2)
    x, v = torch.randn(1 if held else 6, 2, 3, 4) + 0.8, torch.rand(2, 3, 4)
    found = trace(x, leaky(k, firing), (v,), 6)
    spikes, last = integrate_and_fire(x, k, v, firing=firing, time_steps=6)
    assert torch.equal(found[0], spikes)
    assert torch.equal(found[2][-1], last)
    limit = threshold[:, None] if shape else threshold
    assert torch.equal(found[1] >= limit, spikes.bool())  # H_t, before the reset
    assert torch.equal(found[2], torch.where(spikes.bool(), torch.tensor(-0.2), found[1]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("head", [torch.sum, lambda spikes: spikes.square().sum()])
def test_a_penalty_on_gradients_is_refused(backend, head):
    layer, neuron = torch.nn.Linear(4, 3), use_backend(PLIF(), backend)
    loss = head(neuron(3 * layer(torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)))))
    found = torch.autograd.grad(loss, [layer.weight, neuron.a], create_graph=True)
    assert all(gradient.requires_grad for gradient in found)
    with pytest.raises(UserError, match="cannot be differentiated again"):
        sum(g.square().sum() for g in found).backward()


def test_a_gradient_of_constants_is_a_constant():
    x = torch.randn(5, 2, 4)
    weight = torch.ones(4, requires_grad=True)
    spikes, _ = integrate_and_fire(x, torch.tensor(0.5))
    (found,) = torch.autograd.grad((spikes * weight).sum(), weight, create_graph=True)
    assert not found.requires_grad
