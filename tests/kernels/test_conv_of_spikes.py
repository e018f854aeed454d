"""Convolutions that save their input as bits, against PyTorch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plif_lightning.kernels import NEVER, SparseMaps, conv_events, conv_of_spikes, density, layout, table_of
from plif_lightning.kernels.density import ALWAYS
from plif_lightning.network import SpikingNetwork


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(density, "MANY_SPIKES", 1)
    monkeypatch.setitem(layout.BAND, "cpu", 100)  # one or two images


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (1, 2, 1, 1), (7, 4, 5, 3)])
@pytest.mark.parametrize("of_input", [True, False])
def test_gradients_equal_the_dense_convolutions(shape, of_input):
    torch.manual_seed(0)
    x = torch.rand(shape, dtype=torch.float64).lt(0.3).double()
    weight = torch.randn(6, shape[1], 3, 3, dtype=torch.float64)
    results = []
    for function in (lambda x, w: conv_of_spikes(x, w, NEVER), lambda x, w: F.conv2d(x, w, padding=1)):
        a, w = x.clone().requires_grad_(of_input), weight.clone().requires_grad_()
        y = function(a, w)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y))
        results.append((y.detach(), w.grad, a.grad if of_input else torch.zeros(())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def network(**changes) -> SpikingNetwork:
    torch.manual_seed(1)
    settings = {"n_conv": 2, "n_down": 2, "channels": 5, "fc_features": 8, "dropout": 0.0, "pool_ties": "first"}
    net = SpikingNetwork((1, 12, 12), 2, 3, **(settings | changes)).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 3.0)
            nn.init.constant_(module.bias, 0.5)
        if isinstance(module, nn.Linear):
            module.weight.data *= 4
    return net


def image() -> torch.Tensor:
    return torch.randn(4, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step(net: SpikingNetwork) -> tuple[list[torch.Tensor], list[torch.dtype]]:
    """Gradients of one training step, and dtypes of all saved 12 x 12 feature maps, as values or as bits."""
    kept: list[torch.dtype] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() in (3 * 4 * 5 * 12 * 12, 3 * 4 * 12 * 12):  # five channels, or one word per pixel
            kept.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        votes = net(image())
    (1 - votes).square().sum().backward()
    assert net.encoder.conv2.conv.weight.grad.abs().max() > 0
    return [p.grad for p in net.parameters()], kept


def test_a_network_keeps_its_spikes_as_bits_and_learns_the_same(monkeypatch):
    ours, kept = step(network())
    assert sorted(map(str, kept)) == ["torch.float64", "torch.int64"]  # conv2's output and its input
    monkeypatch.setattr(density, "MANY_SPIKES", 10**9)
    theirs, kept = step(network())
    assert kept == [torch.float64, torch.float64]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def with_average_pool(net: SpikingNetwork) -> None:
    net.encoder.conv2.pool = nn.Sequential(nn.Flatten(0, 1), nn.AvgPool2d(2), nn.Unflatten(0, (3, 4)))


def halved(part: nn.Module) -> None:
    part.register_forward_hook(lambda module, given, out: out * 0.5)


@pytest.mark.parametrize(
    ("pooling", "change"),
    [
        ("avg", lambda net: None),
        ("max", with_average_pool),
        ("max", lambda net: halved(net.encoder.conv1)),
        ("max", lambda net: halved(net.encoder.conv2.pool)),
        ("max", lambda net: halved(net.encoder.conv2.neuron)),
    ],
)
def test_non_binary_input_is_not_packed(pooling, change, monkeypatch):
    grads = []
    for many in (1, 10**9):
        monkeypatch.setattr(density, "MANY_SPIKES", many)
        net = network(pooling=pooling)
        change(net)
        grads.append(step(net)[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_under_autocast_it_is_the_convolution_of_bfloat16(monkeypatch):
    net = network(channels=16).float()
    x = torch.randn(4, 1, 12, 12)
    grads = []
    for many in (1, 10**9):
        monkeypatch.setattr(density, "MANY_SPIKES", many)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            votes = net(x)
        (1 - votes).square().sum().backward()
        assert net.encoder.conv2.conv.weight.grad.dtype == torch.float32
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 0.005 * b.norm() + 1e-6  # one of them is rounded to bfloat16 before


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (7, 9), (8, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels", [(3, 5), (70, 33)])
def test_kernels_and_strides_give_pytorchs_convolution(kernel, stride, size, channels):
    generator = torch.Generator().manual_seed(0)
    for images in (1, 4):
        x = torch.rand(images, channels[0], *size, generator=generator).lt(0.2).float()
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels[1], channels[0], kernel, kernel, generator=generator, requires_grad=True)
        # In float64, since oneDNN's gradient can be wrong, see `dense`.
        y = F.conv2d(x.double(), weight.double(), stride=stride, padding=kernel // 2)
        grad = torch.randn(y.shape, generator=generator)
        grads = torch.autograd.grad(y, (x, weight), grad.double())
        expected = y.float()
        for skip in (ALWAYS, NEVER):
            y = conv_of_spikes(x, weight, skip, stride)
            torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
            for one, other in zip(torch.autograd.grad(y, (x, weight), grad), grads, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        table = conv_events(SparseMaps.of(x), table_of(weight), torch.float32, stride=stride)
        torch.testing.assert_close(table, expected, atol=1e-4, rtol=1e-4)
