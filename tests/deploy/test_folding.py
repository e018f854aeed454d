"""Folding of BN into convolutions."""

import copy

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.deploy import fold, round_delays
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, step, use_backend
from tests.deploy.conftest import frames, trained

KINDS = [{}, {"n_conv": 2}, {"pooling": "avg"}, {"neuron": "lif"}, {"neuron": "if"}, {"tau_per": "channel"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_folded_network_votes_like_the_original(kind, backend):
    net = trained(**kind).double()
    folded = fold(net)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    x = frames(net).double()
    ours = use_backend(folded, backend)(x)
    assert ours.sum() > 0
    torch.testing.assert_close(ours, net(x))
    torch.testing.assert_close(folded(x[0]), net(x[0]))  # a static image


def test_folded_and_converted_networks_agree(net):
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


def test_folding_gives_the_weights_of_a_network_built_folded(net):
    again = SpikingNetwork((2, 12, 12), 3, 4, channels=8, fc_features=20, votes_per_class=2, folded=True)
    again.load_state_dict(fold(net).state_dict())
    assert torch.equal(again.eval()(frames(net)), fold(net)(frames(net)))


class QuarterBN(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) / 4


class Inverted(SpikingNetwork):
    def forward(self, x):
        return super().forward(1 - x)


def halve(module, given, output):
    return output / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.encoder.conv1.conv.register_forward_hook(lambda *of: None), "conv1.conv has hooks"),
        (lambda net: net.encoder.conv2.norm.register_forward_hook(lambda *of: None), "conv2.norm has hooks"),
        (lambda net: net.register_forward_hook(halve), "has hooks, which would be lost"),
        (lambda net: net.voting.register_forward_hook(halve), "has hooks, which would be lost"),
        (lambda net: setattr(net.encoder.conv1, "conv", nn.Identity()), "a part of the network was replaced"),
        (lambda net: setattr(net.encoder.conv1, "norm", nn.Identity()), "a part of the network was replaced"),
        (lambda net: setattr(net.encoder.conv2.norm, "bn", QuarterBN(8)), "a part of the network was replaced"),
        (lambda net: setattr(net.encoder.conv2, "conv", net.encoder.conv1.conv), "a part of the network was replaced"),
        (lambda net: setattr(net, "__class__", Inverted), "need a network from a structure, got a Inverted"),
    ],
)
def test_unfoldable_networks_are_reported(net, change, message):
    change(net)
    with pytest.raises(UserError, match=message):
        fold(net)


def test_folding_refuses_a_user_defined_network():
    with pytest.raises(UserError, match=r"folding, .* need a network from a structure, got a Sequential") as refused:
        fold(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    assert "\n" not in str(refused.value)


def test_a_kernel_does_not_stand_for_a_subclass_of_bn(net):
    x = frames(net)
    plain = use_backend(copy.deepcopy(net), "cpu").eval()(x)
    own = QuarterBN(8)
    own.load_state_dict(net.encoder.conv2.norm.bn.state_dict())
    net.encoder.conv2.norm.bn = own
    votes = use_backend(net, "cpu").eval()(x)
    assert torch.equal(votes, use_backend(net, "reference")(x))
    assert not torch.equal(votes, plain)


@pytest.mark.parametrize("kind", ["structure", "folded", "task", "own"])
def test_rounded_delays_are_those_of_a_network_that_rounds(kind):
    text = "c4k3s1-BN-PLIF-DELAY(max_delay=4{r})-FC9-PLIF-DELAY(kernel=gaussian,max_delay=2{f})-FC3b"
    net = trained(structure=text.format(r="", f=",rounds=false")).double()
    before = copy.deepcopy(net.state_dict())
    x = frames(net).double()
    if kind == "own":
        layers = [nn.Flatten(), pl.Delay(288, 4).double(), nn.Linear(288, 3).double()]
        rounded = round_delays(nn.Sequential(*layers))
        layers[1].rounds = True
        assert rounded[1].rounds
        assert torch.equal(pl.over_time(rounded)(x), pl.over_time(nn.Sequential(*layers).eval())(x))
        return
    task = pl.SpikingClassifier(net.input_shape, net.num_classes, net.time_steps)
    task.network = net
    rounded = round_delays({"folded": fold(net), "task": task}.get(kind, net))
    r = ",rounds=true"
    whole = SpikingNetwork(**{**net.arguments, "structure": text.format(r=r, f=r)}).double()
    whole.load_state_dict(before)
    assert str(rounded.structure) == str(whole.structure)
    torch.testing.assert_close(rounded(x), whole.eval()(x))
    assert not torch.allclose(rounded(x), net.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.layers()["delay2"].rounds = True
    with pytest.raises(UserError, match="a part of the network was replaced"):
        round_delays(net)
