"""Residual blocks: how they combine, and in which type."""

import torch

import plif_lightning as pl
from plif_lightning.layers.blocks import ResidualBlock
from plif_lightning.network import SpikingNetwork


def test_a_residual_block_combines_as_sew_resnet_does():
    for how, expected in (("ADD", [[2.0, 1.0], [1.0, 0.0]]), ("AND", [[1.0, 0.0], [0.0, 0.0]]),
                          ("IAND", [[0.0, 0.0], [1.0, 0.0]])):  # fmt: skip
        branch = pl.network.over_time(torch.nn.Sequential(Constant([[1.0, 1.0], [0.0, 0.0]])))
        shortcut = pl.network.over_time(torch.nn.Sequential(Constant([[1.0, 0.0], [1.0, 0.0]])))
        block = ResidualBlock(how, branch, shortcut)
        assert block(torch.zeros(1, 1, 2, 2))[0, 0].tolist() == expected


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.tensor(value)

    def forward(self, x):
        return self.value.expand(len(x), 2, 2)


def test_a_float32_shortcut_is_not_rounded_to_the_bfloat16_of_its_branch():
    structure = "ADD(c2k3s1-BN)-PLIF-FC3"
    x = 4 * torch.rand(6, 8, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    spikes = {}
    for backend in ("cpu", "reference"):
        torch.manual_seed(0)
        net = SpikingNetwork((2, 12, 12), 3, 6, structure=structure, backend=backend)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = net.encoder(x)
        assert y.dtype == torch.float32
        spikes[backend] = y
    assert 0.1 < spikes["cpu"].mean() < 0.9
    assert torch.equal(spikes["cpu"], spikes["reference"])
