"""Folding of BN into convolutions."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from plif_lightning.deploy import fold
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, step, use_backend
from plif_lightning.network.norm import TimeBatchNorm2d
from tests.deploy.conftest import frames, trained

KINDS = [{}, {"n_conv": 2}, {"pooling": "avg"}, {"neuron": "lif"}, {"neuron": "if"}, {"tau_per": "channel"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_folded_network_votes_as_the_one_it_comes_from(kind, backend):
    net = trained(**kind).double()
    folded = fold(net)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    x = frames(net).double()
    ours = use_backend(folded, backend)(x)
    assert ours.sum() > 0
    torch.testing.assert_close(ours, net(x))
    torch.testing.assert_close(folded(x[0]), net(x[0]))  # a static image


def test_both_forms_of_a_folded_network_are_one(net):
    x = frames(net)
    folded = fold(net)
    assert torch.equal(use_backend(folded, "cpu")(x), use_backend(folded, "reference")(x))
    assert torch.equal(use_backend(folded, "cpu", "always")(x), use_backend(folded, "reference")(x))


def test_a_folded_network_runs_step_by_step_learns_and_folds_again(net):
    folded, x = use_backend(fold(net), "cpu", "always"), frames(net)
    state, votes = None, []
    for frame in x:
        y, state = step(folded, frame, state)
        votes.append(y)
    assert torch.equal(torch.stack(votes), folded(x))
    grads = []
    for backend in ("cpu", "reference"):
        again = use_backend(fold(folded), backend).double()
        (1 - again(x.double())).square().sum().backward()
        grads.append([p.grad for p in again.parameters()])
    assert grads[0][1].abs().sum() > 0  # gradient of the first bias
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_its_weights_are_those_of_a_network_made_folded(net):
    again = SpikingNetwork((2, 12, 12), 3, 4, channels=8, fc_features=20, votes_per_class=2, folded=True)
    again.load_state_dict(fold(net).state_dict())
    assert torch.equal(again.eval()(frames(net)), fold(net)(frames(net)))


def test_a_hook_on_a_folded_convolution_is_called(net):
    folded = fold(net)
    expected = folded(frames(net))
    seen = []
    folded.encoder.conv2.conv.register_forward_hook(lambda *of: seen.append(1))
    torch.testing.assert_close(folded(frames(net)), expected)
    assert seen


class Quarter(TimeBatchNorm2d):
    def forward(self, x, time_steps=None):
        return super().forward(x, time_steps) / 4


class QuarterBN(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net.encoder.conv1, "conv", nn.Identity()), "conv1 is not a plain convolution with BN"),
        (lambda net: net.encoder.conv1.conv.register_forward_hook(lambda *of: None), "or it has hooks"),
        (lambda net: prune.l1_unstructured(net.encoder.conv1.conv, "weight", 0.5), "conv1 is not a plain convolution"),
        (
            lambda net: setattr(net.encoder.conv2.norm, "bn", nn.InstanceNorm2d(8)),
            "the norm of conv2 is not a plain BN",
        ),
        (lambda net: net.encoder.conv1.norm.register_forward_hook(lambda *of: None), "the norm of conv1 .* has hooks"),
        (lambda net: setattr(net.encoder.conv1, "norm", nn.Identity()), "the norm of conv1 is not a plain BN"),
        (lambda net: setattr(net.encoder.conv2, "norm", Quarter(8)), "the norm of conv2 is not a plain BN"),
        (lambda net: setattr(net.encoder.conv2.norm, "bn", QuarterBN(8)), "the norm of conv2 is not a plain BN"),
        (lambda net: setattr(net.encoder.conv2, "conv", net.encoder.conv1.conv), "conv1.conv has several places"),
    ],
)
def test_what_cannot_be_folded_is_said(net, change, message):
    change(net)
    with pytest.raises(UserError, match=message):
        fold(net)


def used(module):
    """The same module after a few batches, in evaluation mode."""
    torch.manual_seed(0)
    for _ in range(5):
        module(5 * torch.randn(8, 2, 6, 6) + 1)
    return module.eval()


def test_what_a_kernel_computes_is_bn_alone(net):
    """Found by a review: a kernel took the place of a subclass of BN with a forward of its own."""
    x = frames(net)
    plain = use_backend(copy.deepcopy(net), "cpu").eval()(x)
    own = QuarterBN(8)
    own.load_state_dict(net.encoder.conv2.norm.bn.state_dict())
    net.encoder.conv2.norm.bn = own
    votes = use_backend(net, "cpu").eval()(x)
    assert torch.equal(votes, use_backend(net, "reference")(x))
    assert not torch.equal(votes, plain)


class PlainBN(nn.BatchNorm2d):
    pass


def test_a_bn_that_two_convolutions_share_is_folded_into_both(net):
    own = PlainBN(8)
    own.load_state_dict(net.encoder.conv2.norm.bn.state_dict())
    net.encoder.conv1.norm.bn = own
    net.encoder.conv2.norm = net.encoder.conv1.norm
    net.eval()
    assert net.encoder.conv1.refuses_norm is None
    torch.testing.assert_close(fold(net)(frames(net)), net(frames(net)))


def test_modules_with_several_places_are_not_folded_wrongly():
    """Found by a review: BN was folded into a convolution in front of a ReLU that had been before, too."""
    act = nn.ReLU()
    twice = used(nn.Sequential(nn.Conv2d(2, 4, 3), act, nn.Conv2d(4, 4, 3), act, nn.BatchNorm2d(4)))
    with pytest.raises(UserError, match="4 of Sequential cannot be folded"):
        fold(twice)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    shared = used(
        nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(2)), nn.ReLU(), nn.Sequential(conv, nn.BatchNorm2d(2)))
    )
    with pytest.raises(UserError, match=r"0\.0 has several places in the network"):
        fold(shared)


@pytest.mark.parametrize("kind", [{"momentum": None}, {"affine": False}])
def test_any_bn_with_running_statistics_is_folded(kind):
    layers, x = used(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, **kind))), torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(fold(layers)(x), layers(x), atol=1e-5, rtol=1e-5)
    assert isinstance(fold(layers)[1], nn.Identity)


def test_a_bias_under_bn_is_scaled_with_its_convolution():
    """The paper's convolutions have none, those of one's own may."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3, bias=True), nn.BatchNorm2d(4)).double()
    with torch.no_grad():
        layers[0].bias.uniform_(-3, 3)
        layers[1].weight.uniform_(0.2, 3)
        for _ in range(20):
            layers(5 * torch.randn(8, 2, 6, 6).double() + 1)
    layers.eval()
    x = torch.randn(3, 2, 6, 6).double()
    torch.testing.assert_close(fold(layers)(x), layers(x))
