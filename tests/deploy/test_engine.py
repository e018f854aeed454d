"""Networks that only infer, layer by layer in another form."""

import logging

import pytest
import torch

from plif_lightning.deploy import deployed, fold
from plif_lightning.deploy.engine import quantised
from plif_lightning.errors import UserError
from plif_lightning.network import use_backend
from plif_lightning.neurons import PLIF
from tests.deploy.conftest import frames, trained

KINDS = [{}, {"n_conv": 2}, {"pooling": "avg"}, {"tau_per": "channel"}, {"channels": 70, "fc_features": 130}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_events_are_the_network_to_the_bit(kind):
    net = trained(**kind)
    x = frames(net)
    votes = use_backend(fold(net), "cpu", "always")(x)
    assert torch.equal(deployed(net, "events")(x), votes)
    torch.testing.assert_close(deployed(net, "auto", x)(x), votes)  # whichever forms are faster here
    torch.testing.assert_close(deployed(net, "dense")(x), votes)
    torch.testing.assert_close(deployed(net, "events")(x[0]), fold(net)(x[0]))  # a static image


@pytest.mark.parametrize("engine", ["int16", "int8", "int4"])
@pytest.mark.parametrize("kind", [{}, {"n_conv": 2}], ids=str)
def test_integers_are_the_network_with_rounded_weights(engine, kind):
    net = trained(**kind)
    largest = {"int16": 32767, "int8": 127, "int4": 7}[engine]
    rounded = fold(net)
    layers = [*(block.conv for block in rounded.encoder)][1:] + [block.fc for block in rounded.classifier]
    for layer in layers:
        integers, scale = quantised(layer.weight, largest)
        assert integers.abs().amax() == largest
        layer.weight.data = integers.float() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    x = frames(net)
    made = deployed(net, engine)
    assert set(made.forms.values()) == {"dense", engine}
    assert made.forms["conv1"] == "dense"  # its input is no spikes
    torch.testing.assert_close(made(x), rounded(x))


def test_sixteen_bits_change_no_vote(net):
    x = frames(net, 8)
    assert torch.equal(deployed(net, "int16")(x), deployed(net, "events")(x))


def test_rounding_keeps_what_is_zero_and_what_is_largest():
    weight = torch.tensor([[0.0, 0.0], [0.1, -0.2], [3.0, 1e-9]])
    integers, scale = quantised(weight, 127)
    assert integers.dtype == torch.int8
    assert integers.tolist() == [[0, 0], [64, -127], [127, 0]]
    assert scale[1].item() == pytest.approx(0.2 / 127)


def test_an_average_pool_gives_no_spikes_to_the_layer_after_it():
    assert deployed(trained(pooling="avg"), "events").forms == {
        "conv1": "dense", "conv2": "dense", "fc1": "dense", "fc2": "events",
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["dense", "events", "int8"])
def test_no_samples_have_no_votes(net, engine):
    assert deployed(net, engine)(torch.zeros(4, 0, 2, 12, 12)).shape == (4, 0, 3)
    for sparse in ("never", "always"):
        assert use_backend(net, "cpu", sparse)(torch.zeros(4, 0, 2, 12, 12)).shape == (4, 0, 3)


def test_the_caller_keeps_its_network_and_hears_what_was_taken(net, caplog):
    caplog.set_level(logging.INFO)
    made = deployed(net, "auto", frames(net))
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in made.parameters())
    assert made.forms["conv1"] == "dense"
    assert "deployed: conv1 dense, conv2" in caplog.text
    assert not made(frames(net)).requires_grad


class Half(PLIF):
    def forward(self, x, time_steps=None):
        return super().forward(x, time_steps) / 2


def with_other_conv(**changes):
    def change(net):
        net.encoder.conv2.conv = torch.nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, "bias": False} | changes)

    return change


def with_bias(net):
    net.classifier.fc1.fc = torch.nn.Linear(72, 20)
    torch.nn.init.constant_(net.classifier.fc1.fc.bias, 2.0)


CHANGES = {
    "1x1": (with_other_conv(kernel_size=1, padding=0), "conv2"),
    "5x5": (with_other_conv(kernel_size=5, padding=2), "conv2"),
    "groups": (with_other_conv(groups=2), "conv2"),
    "reflected": (with_other_conv(padding_mode="reflect"), "conv2"),
    "bias": (with_bias, "fc1"),
    "own neuron": (lambda net: setattr(net.classifier.fc1, "neuron", Half()), "fc2"),
    "hook": (lambda net: net.encoder.conv2.register_forward_hook(lambda m, a, o: o * 0.5), "fc1"),
    "pre-hook": (lambda net: net.encoder.conv2.register_forward_pre_hook(lambda m, a: (a[0] * 0.5, *a[1:])), "conv2"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_layer_of_another_kind_stays_as_it_is(net, kind):
    change, layer = CHANGES[kind]
    change(net)
    x = frames(net)
    made = deployed(net, "events")
    assert made.forms[layer] == "dense"
    assert set(made.forms.values()) == {"dense", "events"}
    torch.testing.assert_close(made(x), net(x))


def test_what_is_wrong_is_said(net):
    with pytest.raises(UserError, match="engine must be one of auto, dense, events, int16, int8, int4, got 'fast'"):
        deployed(net, "fast")
    for x in (None, torch.zeros(4, 0, 2, 12, 12)):
        with pytest.raises(UserError, match="pass x"):
            deployed(net, x=x)
