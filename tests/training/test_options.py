"""Every argument of network and task, away from its default, changes what its row names."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.network.network import _PARAMETERS
from plif_lightning.training.schedules import OneCycle

DATA = {"input_shape": (2, 8, 8), "num_classes": 3, "time_steps": 4}
SMALL = {"channels": 4, "fc_features": 8, "votes_per_class": 2}


def frames(*shape):
    return 3 * (torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def lively(net):
    """The network with weights at which all layers fire."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 1.2)
        if isinstance(module, nn.Linear):
            module.weight.data = 3 * module.weight.data + 0.2
    return net


def made(**arguments):
    torch.manual_seed(0)
    sizes = {} if "structure" in arguments else SMALL
    net = pl.SpikingNetwork(**{**DATA, **sizes, "pool_ties": "first", **arguments})
    return lively(net)


def input_of(net):
    return frames(net.time_steps, 5, *net.input_shape)


def votes(net):
    return net.eval()(input_of(net)).detach()


def votes_of_image(net):
    return net.eval()(input_of(net)[0].clamp(max=1)).detach()


def gradients(net):
    torch.manual_seed(0)
    net.eval()(input_of(net)).square().sum().backward()
    return torch.cat([p.grad.flatten() for name, p in net.named_parameters() if name.endswith("weight")])


def running_means(net):
    net.train()(input_of(net))
    return torch.cat([module.running_mean for module in net.modules() if isinstance(module, nn.BatchNorm2d)])


def running_means_of_image(net):
    net.train()(input_of(net)[0])
    return net.encoder.conv1.norm.bn.running_mean


def parameters(net):
    return [(name, tuple(p.shape)) for name, p in net.named_parameters()]


def dropped(net):
    return [block.dropout.p for block in net.classifier]


def form(net):
    votes(net)
    return net.forms()["fc1"]


# Argument of the network: value, and what it changes.
NETWORK = {
    "input_shape": ((1, 8, 12), parameters),
    "num_classes": (4, lambda net: votes(net).shape),
    "time_steps": (6, lambda net: votes(net).shape),
    "structure": ("FC9-PLIF-FC3", parameters),
    "n_conv": (2, parameters),
    "n_down": (1, parameters),
    "n_fc": (3, parameters),
    "channels": ([4, 5], parameters),
    "fc_features": (9, parameters),
    "votes_per_class": (3, parameters),
    "dropout": ([0.5, 0.25], dropped),
    "neuron": ("if", votes),
    "pooling": ("avg", votes),
    "pool_ties": ("random", gradients),
    "norm_statistics": ("all_steps", running_means),
    "norm_held": ("once", running_means_of_image),
    "input_encoder": ("latency", votes_of_image),
    "backend": ("reference", form),
    "sparse": ("always", form),
    "folded": (True, parameters),
    "v_threshold": (0.5, votes),
    "v_reset": (-0.5, votes),
    "reset": ("soft", votes),
    "detach_reset": (False, gradients),
    "surrogate": ("triangle", gradients),
    "surrogate_width": (2.0, gradients),
    "through_time": (False, gradients),
    "init_tau": (4.0, votes),
    "tau_per": ("channel", parameters),
    "learn_threshold": (True, parameters),
}


def equal(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a.shape == b.shape and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_argument_of_the_network_has_a_row():
    assert 0.1 < votes(made()).mean() < 0.9
    assert gradients(made()).ne(0).float().mean() > 0.5
    assert NETWORK.keys() == _PARAMETERS.keys()


@pytest.mark.parametrize("name", NETWORK)
def test_an_argument_of_the_network_changes_what_its_row_names(name):
    value, observe = NETWORK[name]
    default = observe(made())
    assert equal(default, observe(made()))  # by nothing else
    assert not equal(default, observe(made(**{name: value})))


# --- the task


class TwiceTheError(nn.Module):
    """A loss of a user's file."""

    def forward(self, votes, target):
        return 2 * nn.functional.mse_loss(votes.mean(0), nn.functional.one_hot(target, 3).float())


def task(**arguments):
    torch.manual_seed(0)
    small = {"structure": "c4k3s1-BN-PLIF-MPk2s2-FC8-PLIF-FC3", "pool_ties": "first", "dropout": 0.0}
    module = lively(pl.SpikingClassifier(**DATA, **({} if "network" in arguments else small), **arguments))
    module.log = lambda *named, **more: None  # without a Trainer
    return module


def loss_of(module):
    return module.train().training_step((frames(5, 4, 2, 8, 8), torch.arange(5) % 3), 0).item()


def settings_of_parameters(module):
    """Learning rate and weight decay of every parameter, by name."""
    optimizer = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    names = {id(p): name.removeprefix("network.") for name, p in module.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert found.keys() == {*names.values()}
    return found


ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
NAMES = [
    "encoder.conv1.conv.weight", "encoder.conv1.norm.bn.weight", "encoder.conv1.norm.bn.bias", "encoder.conv1.neuron.a",
    "classifier.fc1.fc.weight", "classifier.fc1.neuron.a", "classifier.fc2.fc.weight",
]  # fmt: skip
CONV1, FC1, FC2 = NAMES[:4], NAMES[4:6], NAMES[6:]
WEIGHTS = [name for name in NAMES if name.endswith(("conv.weight", "fc.weight"))]


def decays(rate=1e-3):
    return {name: (rate, 0.1 if name in WEIGHTS else 0.0) for name in NAMES}


EXPECTED = {
    "optimizer": (
        {"optimizer": partial(torch.optim.SGD, lr=0.5)}, settings_of_parameters, dict.fromkeys(NAMES, (0.5, 0)),
    ),
    "lr_scheduler": (
        {"lr_scheduler": partial(OneCycle, warmup=0.2)}, lambda module: module.lr_scheduler.func, OneCycle,
    ),
    "decay_all": ({"decay_all": True, "optimizer": ADAMW}, settings_of_parameters, dict.fromkeys(NAMES, (1e-3, 0.1))),
    "parameter_groups": (
        {
            "optimizer": ADAMW,
            "parameter_groups": [
                {"match": "classifier.*", "lr": 0.01},
                {"match": "*.tau", "weight_decay": 0.3},
                {"match": "classifier.fc2.*", "lr": 0.5, "weight_decay": 0.0},
            ],
        },
        settings_of_parameters,
        {
            **decays(), "encoder.conv1.neuron.a": (1e-3, 0.3), "classifier.fc1.fc.weight": (0.01, 0.1),
            "classifier.fc1.neuron.a": (0.01, 0.3), "classifier.fc2.fc.weight": (0.5, 0.0),
        },
    ),
    "layer_decay": (
        {"layer_decay": 0.5, "optimizer": ADAMW},
        settings_of_parameters,
        {name: (1e-3 * 0.5 ** (2 * (name in CONV1) + (name in FC1)), decays()[name][1]) for name in NAMES},
    ),
    "loss": ({"loss": TwiceTheError()}, loss_of, None),
    "label_smoothing": ({"label_smoothing": 0.2}, loss_of, None),
    "tet_lambda": ({"tet_lambda": 0.5, "loss": "tet"}, loss_of, None),
    "early_time_steps": ({"early_time_steps": {2: 1}}, lambda module: module.training_time_steps, 2),
    "network": (
        {"network": pl.over_time(nn.Sequential(nn.Flatten(), nn.Linear(128, 3), pl.PLIF()))},
        lambda module: sum(p.numel() for p in module.parameters()), 128 * 3 + 3 + 1,
    ),
}  # fmt: skip


def test_every_argument_of_the_task_has_a_row():
    arguments = inspect.signature(pl.SpikingClassifier).parameters.keys() - {*DATA, "settings"}
    assert EXPECTED.keys() == arguments
    assert {name.removeprefix("network.") for name, _ in task().named_parameters()} == {*NAMES}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_argument_of_the_task_changes_what_its_row_names(name):
    arguments, observe, expected = EXPECTED[name]
    found = observe(task(**arguments))
    if expected is None:
        assert found != observe(task(loss=arguments["loss"] if name == "tet_lambda" else "per_step"))
    else:
        assert found == expected


# Of a readout, whose outputs are logits.
VALUES = {
    "per_step": lambda v, hot: (v - hot).square().mean(),
    "rate": lambda v, hot: (v.mean(0) - hot).square().mean(),
    "per_step_cross_entropy": lambda v, hot: -(hot * v.log_softmax(-1)).sum(-1).mean(),
    "cross_entropy": lambda v, hot: -(hot * v.mean(0).log_softmax(-1)).sum(-1).mean(),
    "of a file": lambda v, hot: 2 * (v.mean(0) - hot).square().mean(),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_loss_is_its_formula(name):
    loss = TwiceTheError() if name == "of a file" else name
    module, label = task(loss=loss), torch.arange(5) % 3
    votes = module.train().network(frames(5, 4, 2, 8, 8).transpose(0, 1))
    expected = VALUES[name](votes, nn.functional.one_hot(label, 3).float())
    assert votes.std() > 0
    assert loss_of(module) == pytest.approx(expected.item(), rel=1e-5)
