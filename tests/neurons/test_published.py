"""Published neurons against programs that this project did not write, in float64: every spike and gradient."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from plif_lightning import neurons
from plif_lightning.errors import UserError
from plif_lightning.network import use_backend
from plif_lightning.neurons import NeuronName, making, published
from plif_lightning.structure import NEURONS
from tests.neurons.making import make_neuron

STEPS = 12


@pytest.fixture(autouse=True)
def in_float64():
    """Make parameters in float64: one that was rounded to float32 stays so."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


BACKENDS = ("reference", "cpu")


def sample(shift=0.4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 3, 7, 5, generator=generator, dtype=torch.float64) * 1.5 + shift
    return x, torch.randn(x.shape, generator=generator, dtype=torch.float64)


def run(function, x, grad, *parameters):
    """Spikes, and gradients of x and of parameters."""
    x = x.clone().requires_grad_()
    spikes = function(x)
    found = torch.autograd.grad((spikes * grad).sum(), [x, *parameters])
    return [spikes.detach(), *(gradient.reshape(-1) for gradient in found)]


def equal(neuron, theirs, names=(), shift=0.4, of_theirs=()):
    """Compare a layer with another program's function on every backend.

    Args:
        neuron: the layer.
        theirs: spikes [T, *] of x [T, *].
        names: raw tensors of the layer whose gradients are compared.
        shift: mean input, so that some but not all neurons fire.
        of_theirs: their parameters, with the factor that turns their gradients into ours.
    """
    x, grad = sample(shift)
    expected = run(theirs, x, grad, *(parameter for parameter, _ in of_theirs))
    assert 0.02 < expected[0].mean() < 0.7
    for i, (_, factor) in enumerate(of_theirs):
        expected[2 + i] = expected[2 + i] * factor
    for backend in BACKENDS:
        ours = use_backend(neuron.double(), backend)
        found = run(ours, x, grad, *(getattr(ours, name) for name in names))
        assert torch.equal(found[0], expected[0])
        for a, b in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def jelly():
    pytest.importorskip("spikingjelly", reason="test extra `bench`")
    from spikingjelly.activation_based import functional, neuron, surrogate

    def function(node):
        """A node as a function of [T, *], from its initial state."""

        def over_time(x):
            functional.reset_net(node)
            return torch.stack([node(step) for step in x])

        return over_time

    function.nodes, function.atan, function.steps = neuron, surrogate.ATan(), functional
    return function


@pytest.mark.parametrize("tau", [2.0, 1.25])
def test_clif_is_spikingjellys(jelly, tau):
    theirs = jelly.nodes.ComplementaryLIFNode(tau=tau, surrogate_function=jelly.atan)
    equal(neurons.CLIF(k=1 / tau, detach_reset=False), jelly(theirs))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("v_reset", [-0.1, None])
def test_qif_and_eif_are_spikingjellys(jelly, detach, v_reset):
    settings = {"detach_reset": detach, "surrogate_function": jelly.atan, "v_reset": v_reset}
    reset = {"reset": "soft"} if v_reset is None else {"v_reset": v_reset}
    theirs = jelly.nodes.QIFNode(tau=2.0, v_c=0.7, a0=0.9, **settings)
    # Without a state of its own, SpikingJelly's soft reset starts at 0 too.
    equal(neurons.QIF(v_c=0.7, a_0=0.9, detach_reset=detach, **reset), jelly(theirs))
    theirs = jelly.nodes.EIFNode(tau=2.0, delta_T=0.8, theta_rh=0.7, **settings)
    equal(neurons.EIF(delta_t=0.8, theta_rh=0.7, detach_reset=detach, **reset), jelly(theirs), shift=-0.3)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
def test_klif_is_spikingjellys_with_the_gradient_of_its_slope(jelly, detach, v_reset):
    node = jelly.nodes.KLIFNode(tau=2.0, v_reset=v_reset, detach_reset=detach, surrogate_function=jelly.atan).double()
    with torch.no_grad():
        node.k.fill_(1.3)
    reset = {"reset": "soft"} if v_reset is None else {"v_reset": v_reset}
    ours = neurons.KLIF(slope=1.3, detach_reset=detach, **reset)
    equal(ours, jelly(node), ["slope_raw"], of_theirs=[(node.k, 1.0)])


@pytest.mark.parametrize("detach", [True, False])
def test_synaptic_is_spikingjellys_neuron_with_a_current(jelly, detach):
    node = jelly.nodes.CUBALIFNode(c_decay=0.6, v_decay=0.7, v_threshold=0.9, surrogate_function=jelly.atan)
    node.detach_reset = detach
    ours = neurons.Synaptic(alpha=0.6, beta=0.7, v_threshold=0.9, detach_reset=detach)
    equal(ours, jelly(node), shift=0.1)


def test_synaptic_is_snntorchs_spike_for_spike():
    """With `reset_delay=False`: by default snnTorch resets one step later.

    A potential that is above the threshold even after its reset is lowered once more there, before the next step fires;
    so the input is small here.
    """
    snntorch = pytest.importorskip("snntorch", reason="test extra `bench`")
    theirs = snntorch.Synaptic(0.6, 0.7, threshold=1.0, reset_delay=False).double()
    x = 0.15 * sample(0.9)[0]
    for backend in BACKENDS:
        ours = use_backend(neurons.Synaptic(alpha=0.6, beta=0.7, reset="soft"), backend)
        state, current, v, fired = None, torch.zeros_like(x[0]), torch.zeros_like(x[0]), 0
        for step in x:
            spikes, state = ours.simulate(step[None], state)
            expected, current, v = theirs(step, current, v)
            assert torch.equal(spikes[0], expected)
            fired += expected.sum()
        assert 0.02 < fired / x.numel() < 0.7


def test_alif_is_norses():
    """Norse's neuron has a synaptic current too, which lasts one step here, and so comes one step late."""
    lsnn = pytest.importorskip("norse.torch.functional.lsnn", reason="test extra `bench`")
    k, rho, beta = 0.4, 0.9, 0.3
    # dt = 1, and a tau of the current of one step; its adaptation decays before it is compared.
    settings = (1.0, k, 1 - rho, 0.0, 1.0, 0.0, beta / rho)
    p = lsnn.LSNNParameters(*(torch.tensor(value, dtype=torch.float64) for value in settings))

    def theirs(x):
        zero = torch.zeros_like(x[0])
        state, spikes = lsnn.LSNNFeedForwardState(v=zero, i=zero, b=zero + 1), []
        for step in (*x, zero):
            s, state = lsnn.lsnn_feed_forward_step(step, state, p, dt=1.0)
            spikes.append(s)
        return torch.stack(spikes[1:])

    x, _ = sample(0.8)
    expected = theirs(x)
    assert 0.02 < expected.mean() < 0.7
    for backend in BACKENDS:
        ours = use_backend(neurons.ALIF(k=k, rho=rho, beta=beta).double(), backend)
        assert torch.equal(ours(x), expected)


def test_glif_equals_spikingjellys_with_a_shared_conductance(jelly):
    gates = {"alpha": 0.3, "beta": 0.6, "gamma": 0.7, "keep": 0.25, "decay": 0.05, "subtract": 0.4, "conduct": 0.8}

    def theirs(x):
        v = spike = torch.zeros_like(x[0])
        spikes = []
        values = {name: torch.tensor(value, dtype=x.dtype) for name, value in gates.items()}
        for step in x:
            spike, v = jelly.steps.gated_lif_step(
                step, v, spike, values["alpha"], values["beta"], values["gamma"], values["keep"], 0.5,
                values["decay"], values["subtract"], values["conduct"], jelly.atan,
            )  # fmt: skip
            spikes.append(spike)
        return torch.stack(spikes)

    equal(neurons.GLIF(**gates, v_threshold=0.5, detach_reset=False), theirs, shift=0.2)


def constants(**values):
    """Parameters of another program, that ours are compared with."""
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def moved(kind, given):
    """Neurons with constants that training may have moved, also beyond their ranges."""
    layer = kind(v_threshold=0.1, detach_reset=False)
    with torch.no_grad():
        for name, value in given.items():
            getattr(layer, f"{name}_raw").fill_(value)
    return layer


# Within their ranges, and outside of them, where they have no gradient.
@pytest.mark.parametrize(("alpha", "a"), [(0.9, 0.4), (0.95, -0.3), (0.5, 1.5)])
def test_adlif_equals_its_source(jelly, alpha, a):
    given = {"alpha": alpha, "beta": 0.97, "a": a, "b": 0.6}
    p = constants(**given)

    def theirs(x):
        """`adLIFLayer._adlif_cell` of sparch, whose states here begin at zero."""
        lows, highs = (np.exp(-1 / 5), np.exp(-1 / 30), -1.0, 0.0), (np.exp(-1 / 25), np.exp(-1 / 120), 1.0, 2.0)
        alpha, beta, a, b = (v.clamp(low, high) for v, low, high in zip(p.values(), lows, highs, strict=True))
        u = w = s = torch.zeros_like(x[0])
        spikes = []
        for step in x:
            w = beta * w + a * u + b * s
            u = alpha * (u - s) + (1 - alpha) * (step - w)
            s = jelly.atan(u - 0.1)
            spikes.append(s)
        return torch.stack(spikes)

    ours = moved(neurons.AdLIF, given)
    equal(ours, theirs, [f"{name}_raw" for name in p], of_theirs=[(value, 1.0) for value in p.values()])


@pytest.mark.parametrize(("alpha", "a"), [(0.9, 0.1), (0.95, 0.02), (0.99, -0.5)])
def test_se_adlif_equals_its_source(jelly, alpha, a):
    given = {"alpha": alpha, "beta": 0.99, "a": a, "b": 0.6}
    p = constants(**given)

    def theirs(x):
        """`SEAdLIF.forward` of SE-adlif, with the ranges of its configuration of SHD."""
        lows, highs = (np.exp(-1 / 5), np.exp(-1 / 60), 0.0, 0.0), (np.exp(-1 / 25), np.exp(-1 / 300), 1.0, 2.0)
        alpha, beta, a, b = (v.clamp(low, high) for v, low, high in zip(p.values(), lows, highs, strict=True))
        u = w = torch.zeros_like(x[0])
        spikes = []
        for step in x:
            u = alpha * u + (1 - alpha) * (step - w)
            z = jelly.atan(u - 0.1)
            u = u * (1 - z.detach())
            w = beta * w + (1 - beta) * (a * u + b * z) * 120
            spikes.append(z)
        return torch.stack(spikes)

    ours = moved(neurons.SE_AdLIF, given)
    equal(ours, theirs, [f"{name}_raw" for name in p], of_theirs=[(value, 1.0) for value in p.values()])


def test_no_gradient_through_time_is_spikingjellys(jelly):
    node = jelly.nodes.SLTTLIFNode(tau=2.0, surrogate_function=jelly.atan)
    equal(neurons.LIF(2.0, through_time=False), jelly(node))


@pytest.mark.parametrize("kind", [neurons.AdLIF, neurons.SE_AdLIF])
def test_adaptation_logs_the_constants_in_use(kind):
    values = moved(kind, {"alpha": 2.0, "beta": 0.5, "a": -3.0, "b": 1.0}).learned()
    assert [values[name].item() for name in ("alpha", "beta", "a", "b")] == pytest.approx(
        [kind.ALPHA[1], kind.BETA[0], kind.A[0], 1.0]
    )


@pytest.mark.parametrize("kind", [neurons.AdLIF, neurons.SE_AdLIF])
def test_constants_beyond_their_ends_are_refused_and_drawn_again(kind):
    assert kind(alpha=kind.ALPHA[0], b=kind.B[1]).b.item() == 2.0  # the ends belong to the range
    with pytest.raises(UserError, match=r"alpha must be from 0\.8187 to 0\.9608, got 0\.5"):
        kind(alpha=0.5)
    drawn = kind(alpha={"uniform": [0.7, 1.0]}, tau_per="neuron", channels=200).alpha
    assert kind.ALPHA[0] < drawn.min() < 0.83 < 0.95 < drawn.max() < kind.ALPHA[1]


def test_reset_without_effect_is_reported(caplog):
    """Found by a review: CLIF with a soft reset is CLIF, to the bit."""
    making._warn_reset_ignored.cache_clear()
    x = 3 * torch.rand(6, 2, 50, generator=torch.Generator().manual_seed(0))
    for name in get_args(NeuronName):
        caplog.clear()
        hard, soft = (make_neuron(name, 50, reset=reset) for reset in ("hard", "soft"))
        has_own = name in ("clif", "glif", "ilif", "adlif", "se_adlif")
        assert ("reset=soft has no effect" in caplog.text) == torch.equal(hard(x), soft(x)) == has_own


def test_each_neuron_is_compared_with_another_program_or_its_source():
    compared_elsewhere = {"ilif"}  # in test_integer.py
    ours = {name.lower() for name in NEURONS if getattr(neurons, name).__module__ == published.__name__}
    tests = [name for name in globals() if name.startswith("test_")]
    compared = [name for name in tests if {"spikingjellys", "snntorchs", "norses", "source"} & {*name.split("_")}]
    assert {name for name in ours if not any(f"_{name}_" in test for test in compared)} == compared_elsewhere
    assert len(ours) == len(NEURONS) - 3  # PLIF, LIF and IF, in test_modules.py


def test_the_contributors_page_names_each_file_that_names_a_neuron():
    root = Path(published.__file__).parents[1]
    page = (root.parent / "CONTRIBUTING.md").read_text().split("**a neuron**")[1].split("\n- **")[0]
    files = {
        path for kind in ("*.py", "*.pyi") for path in root.rglob(kind) if re.search("KLIF|klif", path.read_text())
    }
    assert len(files) >= 5
    named = {path.name if path.parent == root else str(path.relative_to(root)) for path in files}
    assert {name for name in named if name not in page} == set()


@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron_fires_with_its_defaults(name):
    x = 3 * torch.rand(20, 4, 50, generator=torch.Generator().manual_seed(0))
    rate = getattr(neurons, name)()(x).ne(0).double().mean().item()
    assert 0 < rate < 1, f"{name} fires in {100 * rate:g} % of its steps for inputs of 0 to 3: change its defaults"
