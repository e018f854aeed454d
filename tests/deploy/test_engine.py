"""Networks that only infer, layer by layer in another form."""

import logging

import pytest
import torch

from plif_lightning.deploy import deployed, fold
from plif_lightning.deploy.engine import quantised
from plif_lightning.errors import UserError
from plif_lightning.network import use_backend
from tests.deploy.conftest import frames, trained

KINDS = [{}, {"n_conv": 2}, {"pooling": "avg"}, {"tau_per": "channel"}, {"channels": 70, "fc_features": 130}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_events_are_the_network_to_the_bit(kind):
    net = trained(**kind)
    x = frames(net)
    votes = use_backend(fold(net), "cpu", "always")(x)
    assert torch.equal(deployed(net, "events")(x), votes)
    assert torch.equal(deployed(net, "auto", x)(x), votes)
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


def test_the_caller_keeps_its_network_and_hears_what_was_taken(net, caplog):
    caplog.set_level(logging.INFO)
    made = deployed(net, "auto", frames(net))
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in made.parameters())
    assert made.forms["conv1"] == "dense"
    assert "deployed: conv1 dense, conv2" in caplog.text
    assert not made(frames(net)).requires_grad


def test_what_is_wrong_is_said(net):
    with pytest.raises(UserError, match="engine must be one of auto, dense, events, int16, int8, int4, got 'fast'"):
        deployed(net, "fast")
    with pytest.raises(UserError, match="pass x"):
        deployed(net)
