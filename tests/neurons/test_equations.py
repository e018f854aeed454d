"""Neurons from equations: kernels and gradients against PyTorch's autograd, refusals, and one source for all."""

import ast
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import plif_lightning as pl
from plif_lightning import neurons
from plif_lightning.dynamics import Equations
from plif_lightning.dynamics.equations import program
from plif_lightning.dynamics.expression import OPERATIONS, in_order
from plif_lightning.errors import UserError
from plif_lightning.network import use_backend
from plif_lightning.neurons import describe_neuron
from tests.neurons.making import make_neuron

# ruff: noqa: N805  # equations have no self


class Everything(pl.Neuron):
    """Every operation that equations have, in three states."""

    state = ("v", "w", "u")
    k = pl.learned(0.4, "unit")
    gain = pl.learned(1.2, "positive")
    shift = pl.learned(-0.1)
    rest = pl.fixed(0.2)

    def charge(v, w, u, x, k, gain, rest, v_reset):
        drive = torch.where((x > -1) & ~(w >= 2), gain * x, 0.5 * x) - torch.tanh(u).abs()
        return v + k * (drive - (v - rest) - (v - v_reset)) + torch.maximum(w, u) * 0.1

    def threshold(w, v_threshold, shift):
        return v_threshold + 0.1 * torch.sigmoid(w) + 0.01 * shift**2

    def after(reset, h, s, v, w, u, x, gain, shift):
        w_next = torch.clamp(0.8 * w + s - 0.1 * torch.relu(h), -1.5, max=1.5)
        root = torch.sqrt(1 + u**2) + torch.log(2 + torch.square(u)) - (3 + u.abs()) ** -1
        u_next = torch.minimum(0.5 * u + torch.exp(-(h**2)) / root, 0.3 * x) + shift * (x < 0).to(x.dtype)
        return torch.where((h <= 3) | (h < -3), reset, 0.9 * reset), w_next, -u_next / gain


OWN = {
    **{kind.__name__: kind for kind in (neurons.CLIF, neurons.ALIF, neurons.QIF, neurons.EIF)},
    **{kind.__name__: kind for kind in (neurons.KLIF, neurons.Synaptic, neurons.GLIF, Everything)},
}


def results(neuron, x, backend, steps=None):
    """Spikes, last states, and gradients of x, of first states and of parameters."""
    use_backend(neuron, backend).zero_grad()
    generator = torch.Generator().manual_seed(1)
    x = x.clone().requires_grad_()
    states = tuple(
        (0.3 * torch.randn(x.shape[1:], generator=generator, dtype=torch.float64)).to(x.dtype).requires_grad_()
        for _ in neuron.equations.state
    )
    spikes, after = neuron.simulate(x, states if len(states) > 1 else states[0], steps)
    outputs = spikes, *(after if isinstance(after, tuple) else (after,))
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    sum((out * w).sum() for out, w in zip(outputs, weights, strict=True)).backward()
    # A value that nothing depends on has a gradient of None or of zeros.
    leaves = [x, *states, *neuron.parameters()]
    return [out.detach() for out in outputs], [torch.zeros_like(p) if p.grad is None else p.grad for p in leaves]


def inputs(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


SETTINGS = (
    {},
    {"reset": "soft", "detach_reset": False, "v_threshold": 0.8},
    {"v_reset": -0.3, "learn_threshold": True, "surrogate": "sigmoid"},
    {"through_time": False, "surrogate": "triangle", "surrogate_width": 1.5},
)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("held", [False, True])
def test_kernels_are_autograd_in_float64(name, per, held):
    for options in SETTINGS:
        neuron = OWN[name](tau_per=per, channels=5, **options).double()
        x = inputs((1 if held else 6, 3, 5, 7))
        x = 0.4 * x - 0.5 if name == "EIF" else x  # above it grows exponentially, without end if the reset is soft
        ours, theirs = (results(neuron, x, backend, 6) for backend in ("cpu", "reference"))
        assert 0 < theirs[0][0].mean() < 1
        assert torch.equal(ours[0][0], theirs[0][0])
        for a, b in zip(ours[0][1:] + ours[1], theirs[0][1:] + theirs[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_every_operation_is_among_them():
    key = Everything(detach_reset=True).dynamics.key
    used = {value.op for value in in_order([program(key).spike, *program(key).after])}
    assert set(OPERATIONS) - used == {"eq"}  # only of gradients: where two values are equal


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 40), st.integers(1, 5)),
    per=st.sampled_from(["layer", "channel"]),
)
def test_rows_of_any_length_are_autograd(shape, per):
    neuron = Everything(tau_per=per, channels=shape[2]).double()
    ours, theirs = (results(neuron, inputs(shape), backend) for backend in ("cpu", "reference"))
    for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ALIF", "QIF", "KLIF", "Synaptic", "GLIF"])
def test_without_an_exponential_float32_is_equal_to_the_bit(name):
    neuron = OWN[name]()
    ours, theirs = (results(neuron, inputs((8, 2, 6, 7), torch.float32), backend) for backend in ("cpu", "reference"))
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CLIF", "EIF"])
def test_the_exponential_of_float32_has_seven_digits(name):
    neuron = OWN[name]()
    x = inputs((6, 2, 6, 7), torch.float32)
    ours = results(neuron, x, "cpu")
    exact = results(copy.deepcopy(neuron).double(), x.double(), "reference")
    assert torch.equal(ours[0][0].double(), exact[0][0])
    for a, b in zip(ours[0][1:], exact[0][1:], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", OWN)
def test_equation_neurons_agree_on_all_backends(name):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 8, 8), 3, 4, channels=20, fc_features=24, n_down=2, neuron=OWN[name], dropout=0.0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.bias, 1.5)
        if isinstance(part, nn.Linear):
            nn.init.uniform_(part.weight, -0.1, 0.6)
    frames = (torch.rand(4, 3, 2, 8, 8) < 0.4).float()
    votes = use_backend(net.eval(), "cpu")(frames)
    assert votes.any()
    assert torch.equal(use_backend(net, "cpu", "always")(frames), votes)
    with torch.no_grad():
        assert torch.equal(net(frames), votes)  # from spikes to spikes
    deployed = pl.deploy.deployed(net)
    state, of_deployed = None, None
    folded = pl.deploy.fold(net)(frames)
    assert torch.equal(deployed(frames), folded)
    for frame, vote, of_folded in zip(frames, votes, folded, strict=True):
        one, state = pl.step(net, frame, state)
        assert torch.equal(one, vote)
        one, of_deployed = deployed.step(frame, of_deployed)
        assert torch.equal(one, of_folded)
    found = pl.traces(net, frames)[1]["encoder.conv1.neuron"]
    assert list(found.states) == list(net.encoder.conv1.neuron.equations.state)


# --- refusals


def branch(v, x):
    if x > 0:
        return v
    return v + x


def unknown(v, x):
    return v + torch.erf(x)


def a_number(v, x):
    return v + float(x)


def changed(v, x):
    x *= 0.5
    return v + x


def without_gradient(v, x):
    with torch.no_grad():
        return v + x


def choice_without_gradient(v, x):
    above = x > 0
    with torch.no_grad():
        w = torch.where(above, x, v)
    return v + w


def root_without_gradient(v, x):
    with torch.no_grad():
        w = x**0.5
    return v + w * x


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def reverse(x):
    return Reversed.apply(x)


def tensors(v, x):
    return v + torch.ones(3)


@pytest.mark.parametrize(
    ("charge", "message"),
    [
        (branch, r"`if x > 0:`\): a branch on a value: write torch.where"),
        (unknown, r"`return v \+ torch.erf\(x\)`\): erf is not among the functions that equations may use: torch.abs"),
        (a_number, "a value used as a Python number"),
        (changed, "a change in place: write a = a"),
        (without_gradient, "torch.no_grad in an equation: write value.detach"),
        (choice_without_gradient, "torch.no_grad in an equation: write value.detach"),
        (root_without_gradient, "torch.no_grad in an equation: write value.detach"),
        (lambda v, x: v + Reversed.apply(x), "calls apply: a user-defined backward is not known"),
        (lambda v, x: v + reverse(x), "reverse calls apply: a user-defined backward is not known"),
        (lambda v, x: v + x.clamp(high=1.0), "clamp with these arguments"),
        (lambda v, x: v + (x > 0), "a condition used as a number: write condition.to"),
        (lambda v, x: x > 0, "a condition used as a number"),
        (lambda v, x: v + x.to(torch.float32), "a conversion to another type than x.dtype"),
        (lambda v, x: v if x.dtype == torch.float64 else x, "a branch on a type"),
        (lambda v, x: v if x == 0 else x, "a branch on a value"),
        (lambda v, x, v_reset: v + x / v_reset * (1 / v_reset), "float division by zero"),
        (tensors, "a Tensor in an equation"),
        (lambda v, x: v + y, "name 'y' is not defined"),  # noqa: F821
        (lambda v, x: v + x**1.5, "a power other than -2, -1"),
        (lambda v, x, h: v + x, "cannot use h: it is not known yet"),
        (lambda v, x: "h", "a str in an equation"),
        (lambda self, v, x: v + x, "They have no self, but x, h, s, reset"),
        (lambda v, x, q: v + q * x, r"use q: declare it in the class, as `q = learned\(0\.5\)`"),
    ],
)
def test_uncompilable_equations_are_refused_at_construction(charge, message):
    with pytest.raises(UserError, match=message):
        type("Own", (pl.Neuron,), {"charge": charge})()


def test_parameters_are_constructor_arguments():
    """Found by a review: one that was assigned took part, and was neither shown nor saved."""
    kind = type("Own", (pl.Neuron,), {"charge": lambda v, x, k: v + k * x, "k": pl.fixed(0.5, "unit")})
    neuron = kind()
    for value in (1.0, torch.tensor(1.0)):
        with pytest.raises(UserError, match=r"k is a parameter of Own: give it .*, Own\(k=\.\.\.\)"):
            neuron.k = value


def test_a_subclass_has_the_equations_that_it_gives():
    """Found by a review: they were replaced by the inherited functions."""
    whole = Equations(("v",), charge=lambda v, x: v + x)
    kind = type("Whole", (pl.Neuron,), {"equations": whole})
    assert type("Same", (kind,), {})()(torch.ones(2, 1, 1)).flatten().tolist() == [1.0, 1.0]
    halved = type("Halved", (kind,), {"charge": lambda v, x: v + 0.5 * x})
    assert halved()(torch.ones(2, 1, 1)).flatten().tolist() == [0.0, 1.0]
    with pytest.raises(UserError, match="`equations` beside other equations: write one of them"):
        type("Both", (halved,), {"equations": whole})


def test_parameter_may_be_named_like_an_operation():
    """Found by a review: two neurons had one program, and the second computed the first one's spikes."""

    def of_product(v, x, _0):
        a = x * _0
        return a + torch.where(a > 1.0, 1.0, 0.0) + v

    def of_parameter(v, x, _0):
        a = x * _0
        return a + torch.where(_0 > 1.0, 1.0, 0.0) + v

    first, second = (
        type("Own", (pl.Neuron,), {"charge": charge, "_0": pl.fixed(2.0)})() for charge in (of_product, of_parameter)
    )
    assert first.dynamics.key != second.dynamics.key
    assert second(torch.full((1, 1, 1), 0.1)).item() == 1.0


def test_exp_is_pytorchs_down_to_the_smallest_number():
    """Found by a review: below -87 it was 0."""
    neuron = type("Own", (pl.Neuron,), {"charge": lambda v, x: v + torch.exp(x)})(v_threshold=3e38)
    x = torch.tensor([-math.inf, -110.0, -104.0, *torch.linspace(-103.5, 88.0, 4000).tolist()]).view(1, 1, -1)
    ours, theirs = (use_backend(neuron, backend).simulate(x)[1] for backend in ("cpu", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=2e-45)
    assert (ours[0, x[0, 0] > -103] > 0).all()


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ({"state": ("v", "w")}, {}, "states v, w: write `after`, which gives all of them"),
        ({"state": ("v", "w"), "after": lambda reset: reset}, {}, r"must give 2 states \(v, w\), got 1"),
        ({"state": ("v", "x"), "after": lambda reset, x: (reset, x)}, {}, "each once and none of x, h, s"),
        ({"k": pl.fixed(0.5, "unit")}, {"k": 1.0}, "k must be between 0 and 1, got 1.0"),
        ({"k": pl.fixed(0.5, "positive")}, {"k": -1.0}, "k must be a positive number"),
        ({"k": pl.fixed(0.5)}, {"k": math.nan}, "k must be a finite number"),
        ({"state": ("v", "v"), "after": lambda reset: (reset, reset)}, {}, "must name one state or more, each once"),
        ({"k": pl.fixed(0.5)}, {"q": 1.0}, r"Own has no argument q\. It has k, learn, tau_per, channels"),
        ({"k": pl.fixed(0.5)}, {"learn": ["q"]}, r"learn: Own has no argument q\. It has k"),
    ],
)
def test_a_wrong_neuron_is_named(body, arguments, message):
    with pytest.raises(UserError, match=message):
        type("Own", (pl.Neuron,), {"charge": lambda v, x: v + x, **body})(**arguments)


class Comparing(pl.Neuron):
    """States and a parameter with the names of the library's own gradients."""

    state = ("v", "g_s")
    g_v = pl.learned(0.5)

    def charge(v, g_s, x, g_v):
        return torch.where(v == 0, x, 0.5 * v) + g_v * g_s + (x != 0).to(x.dtype)

    def after(h, s, g_s, g_v, x):
        return torch.where(s == 1, 0.1 * h, h), g_v * g_s * g_s * 0.1 + x


def test_any_name_and_comparison_is_autograd():
    neuron = Comparing().double()
    ours, theirs = (results(neuron, inputs((5, 2, 19)), backend) for backend in ("cpu", "reference"))
    for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_subclasses_inherit_equations():
    class Base(pl.Neuron):
        k = pl.learned(0.5, "unit")

        def __init__(self, **settings):
            super().__init__(**{"v_threshold": 0.3, **settings})

        def charge(v, x, k):
            return v + k * x

    class Child(Base):
        k = pl.fixed(0.25, "unit")

    class Soft:
        def after(h, s):
            return h - s

    class Mixed(Soft, Child):
        pass

    class Gained(pl.PLIF):
        gain = pl.learned(2.0)

        def charge(v, x, k, gain):
            return v + k * (gain * x - v)

    assert Child().constants.v_threshold == 0.3
    assert Child().k == 0.25
    assert Mixed().equations.after is not None
    neuron = Gained(init_tau=4.0, gain=3.0)
    assert (neuron.k.item(), neuron.gain.item()) == (0.25, 3.0)
    assert {name for name, _ in neuron.named_parameters()} == {"a", "gain_raw"}
    with pytest.raises(UserError, match="has no charge, or `equations`"):
        type("Own", (pl.PLIF,), {"after": lambda reset: reset})
    with pytest.raises(UserError, match="use k: declare it in the class"):
        type("Own", (Base,), {"k": 0.3})()


def test_raw_weight_stores_the_parameter():
    class Positive(pl.Neuron):
        k = pl.learned(0.5, "positive")

        def charge(v, x, k):
            return v + k * x

    one, other = Positive(k=0.2), Positive(k=0.4)
    other.load_state_dict(one.state_dict())
    assert other.k.item() == pytest.approx(0.2)


def test_functions_keep_their_digits_at_the_ends():
    class Functions(pl.Neuron):
        state = ("v", "t", "e")

        def charge(v, x):
            return v + torch.relu(x)

        def after(reset, x):
            return reset, torch.tanh(x), torch.exp(x)

    x = torch.tensor([1e-8, 1e-5, 0.05, 0.099, 0.101, 3.0, 88.5, 100.0, -100.0, -80.0, float("nan")])[None, None]
    for real, digits in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        neuron = Functions().to(real)
        found = [use_backend(neuron, backend).simulate(x.to(real))[1] for backend in ("cpu", "reference")]
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=digits, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("value", [0.5, nn.Parameter(torch.ones(()))])
def test_a_parameter_that_is_not_declared_is_refused(value):
    with pytest.raises(UserError, match="use q: declare it in the class"):
        type("Own", (pl.Neuron,), {"charge": lambda v, x, q: v + q * x, "q": value})()


class Constant(pl.Neuron):
    """States and a potential that no input reaches."""

    state = ("v", "w", "u")
    k = pl.learned(0.4, "unit")

    def charge(k):
        return 3 * k

    def after(k, s):
        return 0.5, k, s


def test_a_number_from_around_is_that_of_the_moment():
    factor = 0.5

    class Scaled(pl.Neuron):
        def charge(v, x):
            return v + factor * x

    x = torch.full([1, 1, 1], 3.0)
    assert Scaled()(x) == 1
    factor = 0.1
    assert Scaled()(x) == 0


# --- parameters


def test_parameters_stay_in_range_and_learn_as_declared():
    neuron = Everything(k=0.9, gain=2.0)
    assert {name for name, _ in neuron.named_parameters()} == {"k_raw", "gain_raw", "shift_raw"}
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter.fill_(-30.0)
    values = neuron.learned()
    assert 0 <= values["k"] < 1e-6
    assert 0 <= values["gain"] < 1e-6
    assert values["shift"] == -30
    assert values["rest"] == pytest.approx(0.2)
    assert {name for name, _ in Everything(learn=["rest"]).named_parameters()} == {"rest_raw"}
    assert "k=0.4" in repr(Everything())
    assert "k=[3 channels]" in repr(Everything(tau_per="channel", channels=3))


def test_a_layer_is_the_model_of_others():
    like = neurons.CLIF(k=0.7, v_threshold=0.9)
    made = make_neuron(like, 5, tau_per="channel", surrogate="sigmoid")
    assert made.k.shape == (5,)
    assert made.k[0].item() == pytest.approx(0.7)
    assert (made.constants.v_threshold, made.constants.surrogate) == (0.9, "sigmoid")
    plain = describe_neuron(like)
    assert plain == {"class_path": "plif_lightning.neurons.published.CLIF", "init_args": {"k": 0.7, "v_threshold": 0.9}}
    assert torch.equal(make_neuron(plain, 5).k, like.k)
    assert make_neuron("clif", 5, init_tau=4.0).k.item() == 0.25
    assert type(describe_neuron(neurons.CLIF(k=np.float64(0.25)))["init_args"]["k"]) is float

    class Slow(pl.LIF):
        def __init__(self, init_tau=5.0, **settings):
            super().__init__(init_tau, **settings)

    assert make_neuron(Slow, 4).tau == 5
    assert make_neuron(Slow(), 4).tau == 5
    assert make_neuron(pl.PLIF(init_tau=3.0), 4, init_tau=8.0).tau == pytest.approx(3)  # its own arguments win
    assert make_neuron(pl.PLIF(), 4, init_tau=8.0).tau == pytest.approx(8)
    assert make_neuron(like, 5, v_threshold=0.5).constants.v_threshold == 0.9
    with pytest.raises(UserError, match=r"init_tau=4\.0 has no meaning for GLIF"):
        make_neuron("glif", 5, init_tau=4.0)
    with pytest.raises(UserError, match="defined in a function"):
        describe_neuron(type("Own", (neurons.CLIF,), {"__qualname__": "f.<locals>.Own"})())
    assert pickle_again(like).k.item() == pytest.approx(0.7)
    assert copy.deepcopy(like).settings == like.settings


def pickle_again(neuron):
    import pickle

    return pickle.loads(pickle.dumps(neuron))


# --- what PyTorch does with modules


def test_functional_gradients_match_autograd():
    neuron = use_backend(pl.PLIF(3.0), "reference")
    layer = nn.Linear(4, 6)
    x = torch.randn(5, 2, 4)
    parameters = {**dict(layer.named_parameters()), "a": neuron.a}

    def loss(parameters, x):
        weights = {name: parameters[name] for name in ("weight", "bias")}
        current = torch.func.functional_call(layer, weights, (x,))
        return torch.func.functional_call(neuron, {"a": parameters["a"]}, (current,)).mul(torch.arange(6.0)).sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    detached = {name: value.detach() for name, value in parameters.items()}
    found = torch.func.grad(loss)(detached, x)
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    many = torch.randn(3, 5, 2, 4)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(detached, many)
    for i, one in enumerate(many):
        for name, value in torch.func.grad(loss)(detached, one).items():
            torch.testing.assert_close(each[name][i], value)
    with pytest.raises(UserError, match="cannot be differentiated again"):
        torch.func.grad(lambda p: torch.func.grad(loss)(p, x)["a"].sum())(detached)


# --- one source

PACKAGE = Path(pl.__file__).parent
# Where an equation with a threshold or a reset stands: the neurons themselves, and what their reset is.
SOURCES = {"dynamics/leaky.py", "dynamics/equations.py", "neurons/published.py"}
SPIKE = {"dynamics/surrogate.py", "dynamics/expression.py"}  # its gradient, of a potential minus a threshold
# Not equations: the range of the learned threshold, and the thresholds that a trial of a conversion sets.
OTHERS = {"neurons/modules.py", "convert/excitation.py"}


def test_no_other_file_writes_a_charge_a_reset_or_a_surrogate():
    found, densities = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.BinOp):
                continue
            names = {part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in ast.walk(node)}
            if names & {"v_reset", "v_threshold", "threshold"}:
                found.add(str(path.relative_to(PACKAGE)))
            if "pi" in names and "math" in names:
                densities.add(str(path.relative_to(PACKAGE)))
    assert found == SOURCES | SPIKE | OTHERS
    assert {"dynamics/surrogate.py", "convert/surrogates.py"} <= densities
    densities.remove("convert/surrogates.py")  # functions that are declared surrogates
    assert not {path for path in densities if path.startswith(("kernels", "network", "convert", "deploy", "neurons"))}


@pytest.mark.parametrize(
    ("name", "function", "hint"),
    [
        ("burst", lambda h, v_threshold: h > v_threshold, "Equations are charge, after, threshold, fire"),
        ("treshold", lambda v: 1 + v, "Did you mean threshold?"),
        ("chrage", staticmethod(lambda v, x: v + x), "Did you mean charge?"),
        ("Charge", lambda self, v, x: v + x, "Did you mean charge?"),
    ],
)
def test_a_function_that_is_no_equation_is_refused(name, function, hint):
    with pytest.raises(UserError, match=f"Own.{name} is no equation of neurons and would never be called. {hint}"):
        type("Own", (pl.PLIF,), {name: function})


def test_methods_and_helpers_of_a_neuron_are_no_equations():
    class Own(pl.PLIF):
        @staticmethod
        def scaled(x):
            return 2 * x

        def describe(self):
            return f"tau {self.tau:.1f}"

    assert Own().describe() == "tau 2.0"


def test_neurons_with_different_start_values_are_distinguished():
    """With a soft reset, the equations of IF contain no V_reset but before the first step."""
    x = torch.full([1, 1, 1], 1.2)
    usual, lower = (neurons.IF(reset="soft", v_reset=v_reset) for v_reset in (0.0, -0.5))
    assert usual.dynamics.key != lower.dynamics.key
    for backend in ("cpu", "reference"):
        assert [use_backend(neuron, backend)(x).item() for neuron in (usual, lower)] == [1, 0]
