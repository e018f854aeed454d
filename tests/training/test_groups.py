"""Parameter groups by patterns, and learning rates that decay with depth."""

from functools import partial

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.errors import UserError

TEXT = "c4k3s1-BN-PLIF-MPk2s2-c6k3s1-BN-PLIF-FC8-PLIF-FC3-PLIF"


def optimizer_of(structure=TEXT, adam=None, **settings):
    adam = adam or partial(torch.optim.AdamW, lr=1.0, weight_decay=0.1)
    task = pl.SpikingClassifier((1, 8, 8), 3, 2, structure=structure, optimizer=adam, v_threshold=0.1, **settings)
    return task, task.configure_optimizers()


def options_of(task, optimizer):
    """(learning rate, weight decay) of each parameter, by name."""
    names = {id(parameter): name for name, parameter in task.network.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_patterns_give_options_and_later_ones_win():
    groups = [
        {"match": "classifier.*", "lr": 0.1},
        {"match": "*.tau", "weight_decay": 0.5},
        {"match": "*fc2*", "lr": 0.2},
    ]
    found = options_of(*optimizer_of(parameter_groups=groups))
    assert found["encoder.conv1.conv.weight"] == (1.0, 0.1)
    assert found["encoder.conv1.neuron.a"] == (1.0, 0.5)  # its own decay, where time constants have none
    assert found["encoder.conv1.norm.bn.weight"] == (1.0, 0.0)
    assert found["classifier.fc1.fc.weight"] == (0.1, 0.1)
    assert found["classifier.fc2.fc.weight"] == (0.2, 0.1)
    assert found["classifier.fc2.neuron.a"] == (0.2, 0.5)


def test_rates_decay_with_depth():
    found = options_of(*optimizer_of(layer_decay=0.5))
    rates = [found[f"{layer}.weight"][0] for layer in ("encoder.conv1.conv", "encoder.conv2.conv", "classifier.fc1.fc")]
    assert rates == [0.125, 0.25, 0.5]
    assert found["classifier.fc2.fc.weight"][0] == found["classifier.fc2.neuron.a"][0] == 1.0


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = pl.over_time(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), pl.PLIF()))
        self.blocks = nn.ModuleList([pl.Recurrent(8, pl.PLIF()) for _ in range(2)])
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)


def test_layers_of_a_network_of_ones_own_are_its_children_with_a_matrix():
    task = pl.SpikingClassifier((4,), 3, 5, network=Blocks(), layer_decay=0.5)
    rates = {name: rate for name, (rate, _) in options_of(task, task.configure_optimizers()).items()}
    of_layers = {"stem": 1e-3 / 8, "blocks.0": 1e-3 / 4, "blocks.1": 1e-3 / 2, "norm": 1e-3 / 2, "head": 1e-3}
    for name, rate in rates.items():
        assert rate == next(of for layer, of in of_layers.items() if name.startswith(layer)), name


def test_layers_within_wrappers_are_found():
    layers = nn.Sequential(nn.Linear(4, 8), pl.PLIF(), nn.Linear(8, 3))
    for net in (layers, nn.Sequential(layers), nn.ModuleDict({"nodes": nn.ModuleDict(dict(layers.named_children()))})):
        task = pl.SpikingClassifier((4,), 3, 5, network=net, layer_decay=0.5)
        rates = [rate for rate, _ in options_of(task, task.configure_optimizers()).values()]
        assert rates == [5e-4, 5e-4, 5e-4, 1e-3, 1e-3]


@pytest.mark.parametrize(("structure", "decay"), [("FC3-PLIF", 0.5), (TEXT, 0.0), (TEXT, 1.5)])
def test_a_decay_without_effect_is_refused(structure, decay):
    with pytest.raises(UserError, match=r"layer_decay must lie in \(0, 1\], of two layers or more"):
        optimizer_of(structure, layer_decay=decay)


def test_tied_values_and_parameters_beside_the_declared_ones_have_names():
    class Gain(pl.PLIF):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x, time_steps=None):
            return super().forward(self.gain * x, time_steps)

    net = nn.Sequential(nn.Linear(4, 8), Gain(), nn.Linear(8, 3), pl.PLIF())
    net[3].a = net[1].a
    groups = [{"match": "net.1.gain", "lr": 0.1}, {"match": "net.3.tau", "lr": 0.2}]
    task = pl.SpikingClassifier((4,), 3, 5, network=net, parameter_groups=groups)
    found = options_of(task, task.configure_optimizers())
    assert (found["net.1.gain"][0], found["net.1.a"][0]) == (0.1, 0.2)


@pytest.mark.parametrize(("layers", "more"), [(4, ""), (5, " and 1 more"), (7, " and 3 more")])
def test_four_names_of_a_pattern_are_printed(layers, more, monkeypatch):
    said = []
    monkeypatch.setattr("plif_lightning.training.groups.rank_zero_info", said.append)
    optimizer_of("-".join(["FC8-PLIF"] * (layers - 1) + ["FC3"]), parameter_groups=[{"match": "*.weight", "lr": 0.1}])
    names = ", ".join(f"classifier.fc{i}.fc.weight" for i in range(1, 5))
    assert said == [f"*.weight: {{'lr': 0.1}} for {names}{more}"]


def test_neurons_parameters_have_the_names_of_their_values():
    groups = [{"match": "*.slope", "lr": 0.1}, {"match": "*.v_threshold", "lr": 0.2}]
    task, optimizer = optimizer_of("FC8-KLIF-FC3-KLIF", parameter_groups=groups, learn_threshold=True)
    found = options_of(task, optimizer)
    assert found["classifier.fc1.neuron.slope_raw"][0] == 0.1
    assert found["classifier.fc1.neuron.v_threshold_raw"][0] == 0.2


def test_a_step_with_groups_of_the_same_options_is_the_same():
    weights = []
    for settings in ({}, {"parameter_groups": [{"match": "classifier.*", "lr": 0.01}]}):
        torch.manual_seed(0)
        task, optimizer = optimizer_of(adam=partial(torch.optim.Adam, lr=0.01), **settings)
        x = 3 * torch.rand(2, 4, 1, 8, 8)
        task.network(x).sum().backward()
        optimizer.step()
        weights.append(task.network.state_dict())
    for a, b in zip(weights[0].values(), weights[1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"parameter_groups": [{"match": "head.*", "lr": 0.1}]},
            r"head\.\* matches none of encoder\.conv1\.conv\.weight",
        ),
        ({"parameter_groups": [{"match": "*.tau", "lrr": 0.1}]}, r"\*\.tau has no argument lrr\. Did you mean lr"),
        ({"parameter_groups": [{"lr": 0.1}]}, "a group of parameter_groups is"),
        ({"parameter_groups": [{"match": "*"}]}, "a group of parameter_groups is"),
    ],
)
def test_groups_without_effect_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        optimizer_of(**settings)
