"""Blocks: what each computes, in every form, how it prints, and what it refuses."""

import copy

import pytest
import torch

import plif_lightning as pl
from plif_lightning.errors import UserError
from plif_lightning.layers import blocks
from plif_lightning.layers.blocks import NeuronBlock, NormBlock, ResidualBlock, layers_of
from plif_lightning.layers.inputs import InputEncoder
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.pooling import SpikeMaxPool2d, TimeDropout
from plif_lightning.layers.readout import LeakyIntegrator
from plif_lightning.layers.recurrent import Recurrent
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.signals.signal import keeps_spikes


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


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_neurons_of_a_sum_fire_behind_all_layers_of_its_branch(backend, monkeypatch):
    """The last convolution, BN, sum and neurons are one kernel on a CPU."""
    fused, run = [], blocks.run_conv
    monkeypatch.setattr(blocks, "run_conv", lambda *arguments: fused.append(arguments[0]) or run(*arguments))
    torch.manual_seed(0)
    x = 4 * torch.rand(6, 8, 2, 12, 12)
    structure = "ADD(c2k3s1-BN-PLIF-c2k3s1-BN)-PLIF-FC3"
    net = SpikingNetwork((2, 12, 12), 3, 6, structure=structure, backend=backend).eval()
    (block,) = (module for module in net.modules() if isinstance(module, ResidualBlock))
    assert len(block.branch) == 2
    apart = copy.deepcopy(block)
    with torch.no_grad():
        expected = apart.neuron(apart.branch(x) + x)
        assert torch.equal(block(x), expected)
    assert fused == ([block.branch[1]] if backend == "cpu" else [])
    assert 0.1 < expected.mean() < 0.9


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(5,), (5, 4, 3)])
def test_neurons_alone_and_behind_a_bn_are_their_parts_in_sequence(shape, backend):
    torch.manual_seed(0)
    x, neuron, norm = 3 * torch.rand(6, 4, *shape), pl.PLIF(), TimeBatchNorm(5, of_maps=len(shape) > 1)
    alone, behind = use_backend(NeuronBlock(neuron), backend), use_backend(NormBlock(norm, neuron), backend)
    assert torch.equal(alone(x), neuron(x))
    apart = copy.deepcopy(norm)
    for mode in (True, False):
        y = behind.train(mode)(x)
        torch.testing.assert_close(y, neuron(apart.train(mode)(x)))
        torch.testing.assert_close(norm.state_dict(), apart.state_dict())
        assert 0 < y.mean() < 1
    assert behind.keeps_spikes(False)


def test_layers_of_a_residual_block_come_before_it_if_it_fires():
    for end, names in (("-PLIF", ["conv1", "conv2", "conv3", "res1"]), ("", ["conv1", "conv2", "conv3"])):
        net = SpikingNetwork((2, 8, 8), 3, 2, structure=f"c4k3s1-BN-PLIF-ADD(c4k3s1-BN|c4k1s1-BN){end}-FC3")
        assert [name for name, _ in layers_of(net.encoder)] == names


def test_spikes_are_followed_through_layers_and_modules():
    spikes, pool = torch.nn.Sequential(torch.nn.Linear(2, 2), pl.PLIF()), torch.nn.MaxPool2d(2)
    assert keeps_spikes(spikes, False)
    assert keeps_spikes(Recurrent(3, pl.PLIF()), False)
    for layer in (pool, None, torch.nn.Sequential(pool, torch.nn.Flatten())):
        assert [keeps_spikes(layer, given) for given in (True, False)] == [True, False]
    assert not keeps_spikes(torch.nn.ReLU(), True)
    net = SpikingNetwork((2, 8, 8), 3, 2, structure="ADD(c2k3s1-BN-PLIF)-c4k3s1-BN-PLIF-FC3")
    block = net.layers()["conv2"]
    assert block.keeps_spikes(False)
    assert not net.blocks()["res1"].keeps_spikes(True)


@pytest.mark.parametrize(
    ("layer", "printed"),
    [
        (TimeDropout(0.25), "TimeDropout(p=0.25)"),
        (pl.Delay(3, 7), "Delay(3, max_delay=7, kernel='linear', rounds=False)"),
        (
            pl.Delay(3, 7, "gaussian", sigma=0.5, rounds=True),
            "Delay(3, max_delay=7, kernel='gaussian' of sigma 0.5, rounds=True)",
        ),
        (LeakyIntegrator(3.0), "LeakyIntegrator(init_tau=3.0)"),
        (SpikeMaxPool2d(ties="first"), "SpikeMaxPool2d(ties='first')"),
        (TimeBatchNorm(4, statistics="all_steps"), "statistics='all_steps', held='every_step'"),
        (ResidualBlock("IAND", torch.nn.Sequential(), torch.nn.Sequential()), "IAND"),
    ],
)
def test_a_layer_prints_its_settings(layer, printed):
    assert printed in repr(layer)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: TimeDropout(1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: InputEncoder("latency")(torch.rand(2, 1, 1, 4, 4), 2), "frames need 'direct'"),
        (lambda: InputEncoder("poisson")(2 * torch.ones(1, 1, 1, 4, 4), 2), r"intensities in \[0, 1\], got \[2, 2\]"),
        (
            lambda: InputEncoder("latency")(-torch.ones(1, 1, 1, 4, 4), 2),
            r"got \[-1, -1\]: pass --data.norm",
        ),
        (lambda: pl.Delay(3, 2)(torch.rand(4, 2, 5)), r"a delay of 3 channels takes \[T, N, C, \*\], got \[4, 2, 5\]"),
        (lambda: use_backend(NormBlock(TimeBatchNorm(2), pl.PLIF()), "cpu")(torch.rand(3, 1, 2)), "more than 1 value"),
    ],
)
def test_what_a_layer_cannot_take_is_named(call, said):
    with pytest.raises(UserError, match=said):
        call()
