"""Networks over sequences [T, N, F]: trained, step by step, deployed, exported, counted."""

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import plif_lightning as pl
from plif_lightning.deploy import cost, deployed
from plif_lightning.deploy.exporting import to_export
from plif_lightning.errors import UserError

T, F = 12, 6


def of_order(n):
    """Sequences [n, T, F] of two classes that hold the same pulses: those of class 1 run backwards."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(n, T, F)
    label = torch.arange(n) % 2
    for sample, forwards in enumerate(label == 0):
        channels = torch.arange(F) if forwards else torch.arange(F).flip(0)
        x[sample, 2 * torch.arange(F), channels] = 5
    return x + 0.1 * torch.rand(x.shape, generator=generator), label


def a_network(structure="RFC32-PLIF-FC16-PLIF-FC2"):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((F,), 2, T, structure=structure)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(2)
    return net


def test_a_recurrent_network_learns_the_order_of_pulses():
    x, label = of_order(64)
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=0.01)
    task = pl.SpikingClassifier((F,), 2, T, structure="RFC32-PLIF-FC2", loss="cross_entropy", optimizer=adam)
    loader = DataLoader(TensorDataset(x, label), 16, shuffle=True)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_epochs=15, accelerator="cpu", **silent).fit(task, loader, DataLoader(loader.dataset, 64))
    with torch.no_grad():
        votes = task.network.eval()(x.transpose(0, 1)).mean(0)
    assert (votes.argmax(1) == label).float().mean() > 0.95


def test_steps_deployed_and_exported_equal_the_sequence():
    net, x = a_network().eval(), of_order(3)[0].transpose(0, 1)
    with torch.no_grad():
        votes = net(x)
        assert votes.abs().sum() > 0
        frozen, state, frozen_state = deployed(net), None, None
        for t, frame in enumerate(x):
            y, state = pl.step(net, frame, state)
            z, frozen_state = frozen.step(frame, frozen_state)
            torch.testing.assert_close(y, votes[t])
            torch.testing.assert_close(z, votes[t])
        torch.testing.assert_close(frozen(x), votes)
        torch.testing.assert_close(net(x[0]), net(x[:1].expand(T, -1, -1)))  # a held sample
        torch.testing.assert_close(to_export(net, static=False).module()(x), votes)
    rows = {layer.layer: layer for layer in cost(net, x).layers}
    assert rows["fc1"].dense == T * F * 32
    assert rows["fc1.recurrent"].dense == T * 32 * 32


def test_shapes_of_maps_and_sequences_are_told_apart():
    net = a_network()
    with pytest.raises(UserError, match=rf"x must be \[{T}, N, {F}\], time first, or static samples \[N, {F}\], got"):
        net(torch.rand(T, 2, 1, 2, 3))
    with pytest.raises(UserError, match=rf"x must be \[{T}, N, 1, 2, 3\].*got \[{T}, 2, {F}\]"):
        pl.SpikingNetwork((1, 2, 3), 2, T, structure="FC4-PLIF-FC2")(torch.rand(T, 2, F))
    for text in ("c8k3s1-BN-PLIF", "MPk2s2"):
        with pytest.raises(UserError, match=rf"{text} takes maps \[C, H, W\], and the data has features \[{F}\]"):
            a_network(f"{text}-FC2")
