import pytest
import torch

from plif_lightning.neurons import Surrogate

NAMES = ["atan", "sigmoid", "triangle", "rectangle"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1.0, 0.3, 4.0])
def test_derivative_is_the_antiderivatives_by_finite_differences(name, width):
    surrogate = Surrogate(name, width)
    u = torch.linspace(-3, 3, 997, dtype=torch.float64)
    # kinks and jumps of triangle and rectangle have no derivative
    u = u[((u / width).abs() - 1).abs() > 1e-3]
    u = u[((u / width).abs() - 0.5).abs() > 1e-3]
    u = u[(u / width).abs() > 1e-3]
    step = 1e-6
    difference = (surrogate.antiderivative(u + step) - surrogate.antiderivative(u - step)) / (2 * step)
    torch.testing.assert_close(surrogate.derivative(u), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_antiderivative_rises_from_0_to_1(name):
    ends = Surrogate(name).antiderivative(torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0, 0.5, 1], dtype=torch.float64), atol=1e-6, rtol=0)


def test_atan_of_width_1_is_the_papers():
    u = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(Surrogate().derivative(u), 1 / (1 + (torch.pi * u) ** 2))
