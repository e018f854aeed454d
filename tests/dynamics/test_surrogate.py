from typing import get_args

import pytest
import torch

import plif_lightning as pl
from plif_lightning.dynamics import Surrogate, SurrogateName, surrogate
from plif_lightning.dynamics.surrogate import surrogate_name
from plif_lightning.errors import UserError

NAMES = [name for name in get_args(SurrogateName) if name != "boxcar"]  # whose area is not 1
# Antiderivatives for width 1, as in the table of `Surrogate`.
SIGMA = {
    "atan": lambda z: torch.arctan(torch.pi * z) / torch.pi + 0.5,
    "sigmoid": torch.sigmoid,
    "triangle": lambda z: torch.where(z < 0, (1 + z).clamp(min=0) ** 2 / 2, 1 - (1 - z).clamp(min=0) ** 2 / 2),
    "rectangle": lambda z: (z + 0.5).clamp(0, 1),
    "fast_sigmoid": lambda z: 0.5 + 0.5 * z / (1 + z.abs()),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1.0, 0.3, 4.0])
def test_derivative_is_the_antiderivatives_by_finite_differences(name, width):
    sigma = SIGMA[name]
    u = torch.linspace(-3, 3, 997, dtype=torch.float64)
    # kinks and jumps of triangle and rectangle have no derivative
    u = u[((u / width).abs() - 1).abs() > 1e-3]
    u = u[((u / width).abs() - 0.5).abs() > 1e-3]
    u = u[(u / width).abs() > 1e-3]
    step = 1e-6
    difference = (sigma((u + step) / width) - sigma((u - step) / width)) / (2 * step)
    torch.testing.assert_close(Surrogate(name, width).derivative(u), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_antiderivative_rises_from_0_to_1(name):
    ends = SIGMA[name](torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0, 0.5, 1], dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_boxcar_is_a_rectangle_of_height_1():
    u = torch.linspace(-1, 1, 51)
    torch.testing.assert_close(Surrogate("boxcar", 0.4).derivative(u), 0.4 * Surrogate("rectangle", 0.4).derivative(u))


@surrogate
def superspike(u, width):
    """Of Zenke and Ganguli 2018, whose height is 1 at any width."""
    return 1 / (1 + u.abs() / width).square()


def not_declared(u, width):
    return u


def test_a_function_of_ones_own_is_compiled_and_stored_by_its_name(tmp_path):
    x = 2 * torch.rand(6, 4, 32)
    gradients = []
    for backend in ("auto", "reference"):
        neuron = pl.use_backend(pl.PLIF(surrogate=superspike, surrogate_width=0.5), backend)
        given = x.clone().requires_grad_()
        spikes = neuron(given)
        spikes.sum().backward()
        gradients.append([given.grad, neuron.a.grad])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(Surrogate(superspike, 0.5).derivative(x), 1 / (1 + x / 0.5).square())

    net = pl.SpikingNetwork((1, 4, 4), 3, 2, structure="FC6-PLIF-FC3", surrogate=superspike)
    pl.save_pretrained(net, tmp_path)
    assert pl.from_pretrained(tmp_path).classifier[0].neuron.constants.surrogate == f"{__name__}.superspike"
    task = pl.SpikingClassifier((1, 4, 4), 3, 2, structure="FC6-PLIF-FC3", surrogate=superspike)
    assert task.hparams["surrogate"] == f"{__name__}.superspike"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("boxar", "surrogate must be one of atan"),
        ("nowhere.superspike", "surrogate nowhere.superspike cannot be imported"),
        ("os.system", "surrogate os.system is not declared one: write @plif_lightning.surrogate"),
        (f"{__name__}.not_declared", "is not declared one"),
        (not_declared, "is not declared one"),
        (surrogate(lambda u, width: u), "cannot be imported"),
    ],
)
def test_other_surrogates_are_refused(wrong, expected):
    with pytest.raises(UserError, match=expected):
        surrogate_name(wrong)


def test_atan_of_width_1_is_the_papers():
    u = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(Surrogate().derivative(u), 1 / (1 + (torch.pi * u) ** 2))


@pytest.mark.parametrize(("name", "peer"), [("fast_sigmoid", "SoftSign"), ("sigmoid", "Sigmoid")])
def test_derivatives_are_spikingjellys(name, peer):
    surrogates = pytest.importorskip("spikingjelly.activation_based.surrogate", reason="test extra `bench`")
    u = torch.linspace(-3, 3, 101, requires_grad=True)
    getattr(surrogates, peer)(alpha=2.5)(u).sum().backward()
    torch.testing.assert_close(Surrogate(name, 1 / 2.5).derivative(u.detach()), u.grad)


def test_triangle_of_half_width_is_braincogs_qgategrad():
    u, alpha = torch.linspace(-1, 1, 41), 2.0
    expected = (alpha - alpha**2 * u.abs()).clamp(min=0)
    torch.testing.assert_close(Surrogate("triangle", 1 / alpha).derivative(u), expected)


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_the_digits_of_saturated_neurons(name):
    u = torch.linspace(-30, 30, 241)
    exact = Surrogate(name).derivative(u.double()).float()
    torch.testing.assert_close(Surrogate(name).derivative(u), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(Surrogate(name).derivative(-u), Surrogate(name).derivative(u), rtol=0, atol=0)
