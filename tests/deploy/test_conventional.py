"""Conventional networks of a spiking network's shape."""

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.deploy.conventional import ConventionalNetwork, int8_session
from plif_lightning.deploy.costs import cost
from plif_lightning.errors import UserError

NET = "{c8k3s1-BN-PLIF-MPk2s2}*2-DP-FC32-PLIF-DP-FC20-PLIF-APk2s2"


def test_its_layers_have_the_shapes_of_the_spiking_network():
    spiking = pl.SpikingNetwork((2, 16, 16), 10, 4, structure=NET)
    net = ConventionalNetwork(NET, (2, 16, 16), 10)
    kinds = (nn.Conv2d, nn.Linear)
    shapes = [[tuple(part.weight.shape) for part in one.modules() if isinstance(part, kinds)] for one in (net, spiking)]
    assert shapes[0] == shapes[1]
    expected = cost(spiking, torch.rand(4, 1, 2, 16, 16)).total("once")
    found = cost(net, torch.rand(1, 1, 2, 16, 16))
    assert found.total("dense") == expected


@pytest.mark.parametrize(
    "text", [NET, "c8k5s2p1d2g2-PLIF-APk3s1p1-FC10b", "c4k3s1-BN-MPk2s2-c6k1s1-PLIF-AP-FC10b-PLIF", "FC10-PLIF"]
)
def test_it_computes_what_pytorch_does_layer_by_layer(text):
    torch.manual_seed(0)
    net = ConventionalNetwork(text, (2, 12, 12), 10).eval()
    x = torch.randn(3, 5, 2, 12, 12)
    y = net(x)
    assert y.shape == (3, 5, 10)
    assert torch.equal(y[1], net.logits(x[1])) or torch.allclose(y[1], net.logits(x[1]), atol=1e-6)
    assert (y < 0).any()  # logits, not ReLU's output
    net.time_steps = 2
    assert torch.equal(net(x[0]), net.logits(x[0]).expand(2, 5, 10))


@pytest.mark.parametrize("text", ["ADD(c2k3s1-BN-PLIF)-FC10", "FC10-LI"])
def test_other_layers_are_refused(text):
    with pytest.raises(UserError, match=r"a conventional network has no layer (ADD|LI)"):
        ConventionalNetwork(text, (2, 8, 8), 10)


def test_eight_bits_keep_the_logits_to_a_few_steps():
    pytest.importorskip("onnxruntime", reason="test extra `export`")
    torch.manual_seed(0)
    net = ConventionalNetwork(NET, (2, 16, 16), 10)
    x = torch.rand(32, 2, 16, 16)
    with torch.no_grad():
        for _ in range(10):
            net.logits(x)  # BN's statistics
    net.eval()
    session = int8_session(net, x)
    found = torch.cat([session(x[i : i + 1]) for i in range(len(x))])
    with torch.no_grad():
        expected = net.logits(x)
    spread = expected.max() - expected.min()
    assert (found - expected).abs().max() < 0.05 * spread
    assert not torch.equal(found, expected)


@pytest.mark.parametrize(("pool", "expected"), [("MP", torch.amax), ("AP", torch.mean)])
def test_a_pool_over_the_whole_map_is_of_its_kind(pool, expected):
    net = ConventionalNetwork(f"c8k3s1-PLIF-{pool}-FC10", (1, 8, 8), 10)
    x = torch.rand(3, 1, 8, 8)
    maps = net.layers[:2](x)
    assert torch.allclose(net.layers[2](maps), expected(maps, (2, 3), keepdim=True))
