from typing import get_args

import pytest
import torch

from plif_lightning.dynamics import Surrogate, SurrogateName

NAMES = get_args(SurrogateName)
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


def test_atan_of_width_1_is_the_papers():
    u = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(Surrogate().derivative(u), 1 / (1 + (torch.pi * u) ** 2))


@pytest.mark.parametrize(("name", "peer"), [("fast_sigmoid", "SoftSign"), ("sigmoid", "Sigmoid")])
def test_derivatives_are_spikingjellys(name, peer):
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate", reason="test extra `bench`")
    u = torch.linspace(-3, 3, 101, requires_grad=True)
    getattr(surrogate, peer)(alpha=2.5)(u).sum().backward()
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
