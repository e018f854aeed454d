"""The modules of a network: notation of Table S1, and verification of checkpoints."""

import copy
from dataclasses import replace
from enum import Enum
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.deploy import fold
from plif_lightning.errors import CheckpointError
from plif_lightning.network import SpikingNetwork, load_network, over_time
from plif_lightning.network.layers import Pool2d
from plif_lightning.network.parts import parts_of, require_parts
from plif_lightning.neurons import LIF, PLIF

SIZES = {"channels": 4, "fc_features": 8, "votes_per_class": 2}


def network(**changes):
    torch.manual_seed(0)
    return SpikingNetwork((1, 8, 8), 3, 4, **{**SIZES, **changes})


class Quiet(PLIF):
    """A neuron that needs twice the threshold to fire."""

    def run(self, x, v=None, time_steps=None):
        return super().run(x / 2, v, time_steps)


def with_quiet_neurons(net):
    net.encoder.conv1.neuron = Quiet()


def with_strides_for_pools(net):
    for block in net.encoder:
        block.pool = Pool2d(nn.Conv2d(4, 4, 2, stride=2, bias=False))


def with_a_method_of_its_own(net):
    neuron = net.classifier.fc1.neuron
    neuron.run = partial(PLIF.run, neuron)


def with_another_threshold(net):
    net.classifier.fc1.neuron = PLIF(v_threshold=0.5)


def with_dropout_of_steps(net):
    net.classifier.fc1.dropout = nn.Dropout(0.5)


def with_another_eps(net):
    net.encoder.conv2.norm.bn.eps = 0.1


CHANGES = {
    with_quiet_neurons: r"encoder\.conv1\.neuron is a Quiet of another program there, a PLIF here",
    with_strides_for_pools: r"encoder\.conv1\.pool\.pool is a Conv2d there, a SpikeMaxPool2d here",
    with_a_method_of_its_own: r"replaced of classifier\.fc1\.neuron is \['run'\] there, None here",
    with_another_threshold: r"v_threshold of classifier\.fc1\.neuron is 0\.5 there, 1\.0 here",
    with_dropout_of_steps: r"classifier\.fc1\.dropout is a Dropout there, a TimeDropout here",
    with_another_eps: r"eps of encoder\.conv2\.norm\.bn is 0\.1 there, 1e-05 here",
}


def trained_task(kind=pl.SpikingClassifier, change=None, **settings):
    task = kind((1, 8, 8), 3, 4, **SIZES, **settings)
    if change is not None:
        change(task.network)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, limit_val_batches=0, **silent)
    loader = torch.utils.data.DataLoader([(torch.rand(1, 8, 8), i % 3) for i in range(6)], batch_size=3)
    trainer.fit(task, loader, loader)
    trainer.save_checkpoint("net.ckpt")
    return task


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_checkpoint_of_another_network_is_refused_by_name(change):
    trained_task(change=change)
    with pytest.raises(CheckpointError, match=CHANGES[change]):
        load_network("net.ckpt")
    with pytest.raises(CheckpointError, match=CHANGES[change]):
        pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True)


class OwnTask(pl.SpikingClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with_quiet_neurons(self.network)
        with_strides_for_pools(self.network)


def test_a_task_that_builds_the_network_loads_it():
    task = trained_task(OwnTask)
    again = OwnTask.load_from_checkpoint("net.ckpt", weights_only=True)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(task.eval()(x), again.eval()(x))


@pytest.mark.parametrize(
    "settings",
    [{}, {"neuron": "lif", "pooling": "avg"}, {"tau_per": "channel", "learn_threshold": True, "dropout": [0.0, 0.2]}],
    ids=str,
)
def test_the_projects_own_networks_come_back(settings):
    task = trained_task(**settings)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(load_network("net.ckpt")(x), task.network.eval()(x))


def test_a_checkpoint_that_does_not_say_loads_as_before():
    task = trained_task()
    checkpoint = torch.load("net.ckpt", weights_only=True)
    del checkpoint["network_parts"]
    torch.save(checkpoint, "net.ckpt")
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(load_network("net.ckpt")(x), task.network.eval()(x))
    pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True)


def test_settings_that_are_younger_than_a_checkpoint_are_no_difference():
    net = network()
    stored = parts_of(net)
    del stored["encoder.conv1.neuron"]["reset"]
    require_parts(parts_of(net), stored, "net.ckpt")
    with pytest.raises(CheckpointError, match=r"classifier\.fc9, a PLIF, is only there"):
        require_parts(parts_of(net), {**stored, "classifier.fc9": {"class": "PLIF"}}, "net.ckpt")
    with pytest.raises(CheckpointError, match="does not say what its network is"):
        require_parts(parts_of(net), {"encoder": 3}, "net.ckpt")


class Mode(str, Enum):  # noqa: UP042 (common in other programs)
    FAST = "fast"


class Counting(PLIF):
    """Another program's neuron, with attributes of its own."""

    def __init__(self):
        super().__init__()
        self.calls, self.mode, self.scale = 0, Mode.FAST, np.float64(1.0)

    def forward(self, x, time_steps=None):
        self.calls += 1
        return super().forward(x, time_steps)


class CountingTask(pl.SpikingClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.network.encoder.conv1.neuron = Counting()


def test_a_trainer_refuses_a_checkpoint_of_other_settings():
    """Found by a review: it tested with these settings and those weights, without a word."""
    trained_task()
    other = pl.SpikingClassifier((1, 8, 8), 3, 4, **SIZES, v_threshold=0.5)
    loader = torch.utils.data.DataLoader([(torch.rand(1, 8, 8), 0)])
    with pytest.raises(CheckpointError, match=r"v_threshold .* is 1\.0 there, 0\.5 here"):
        L.Trainer(accelerator="cpu", logger=False).test(other, loader, ckpt_path="net.ckpt")
    assert pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True, v_threshold=0.5)
    same_votes = pl.SpikingClassifier((1, 8, 8), 3, 4, **SIZES, through_time=False, surrogate="triangle")
    L.Trainer(accelerator="cpu", logger=False).test(same_votes, loader, ckpt_path="net.ckpt")


class OwnForward(pl.SpikingClassifier):
    def forward(self, x):
        return super().forward(1 - x)


def test_other_programs_modules_may_keep_what_they_like(monkeypatch):
    trained_task(CountingTask)
    CountingTask.load_from_checkpoint("net.ckpt", weights_only=True)
    monkeypatch.setattr(Counting, "__module__", "__main__")  # trained in a script, loaded by another one
    CountingTask.load_from_checkpoint("net.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match=r"encoder\.conv1\.neuron is a Counting of another program there"):
        load_network("net.ckpt")


def test_settings_are_plain_values():
    net = network()
    net.encoder.conv1.norm.bn.eps = np.float64(1e-5)
    net.voting.mode = Mode.FAST
    neuron = net.classifier.fc1.neuron
    neuron.constants = replace(neuron.constants, v_threshold=torch.linspace(0.8, 1.2, 8))
    stored = parts_of(net)
    torch.save(stored, "parts.pt")
    assert torch.load("parts.pt", weights_only=True) == stored
    assert stored["voting"]["mode"] == "fast"
    require_parts(parts_of(network()), stored, "net.ckpt")


def test_who_asks_for_other_arguments_gets_them():
    trained_task()
    for changed in ({"v_threshold": 0.9}, {"dropout": 0.0}, {"surrogate_width": 2.0}, {"pool_ties": "first"}):
        task = pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True, **changed)
        (name,) = changed
        assert task.hparams[name] == changed[name]


def test_what_acts_in_training_alone_may_change_in_it():
    net = network()
    stored = parts_of(net)
    net.classifier.fc1.dropout.p = 0.1
    net.encoder.conv1.norm.bn.momentum = 0.01
    require_parts(parts_of(net), stored, "net.ckpt")


def test_a_task_with_a_forward_of_its_own_is_not_loaded_as_another():
    task = trained_task(OwnForward)
    with pytest.raises(CheckpointError, match="the task, a OwnForward, is only there"):
        load_network("net.ckpt")
    x = torch.rand(5, 1, 8, 8)
    again = OwnForward.load_from_checkpoint("net.ckpt", weights_only=True)
    assert torch.equal(task.eval()(x), again.eval()(x))


def test_hooks_that_no_checkpoint_holds_are_warned_of(caplog):
    trained_task(change=lambda net: net.encoder.conv1.register_forward_hook(lambda module, given, out: 1 - out))
    load_network("net.ckpt")
    assert "encoder.conv1 had hooks when it was saved" in caplog.text


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not")  # by PyTorch's compiler
def test_a_network_that_was_compiled_in_place_is_the_same():
    trained_task(change=lambda net: net.compile(backend="eager"))
    load_network("net.ckpt")


@pytest.mark.parametrize(
    ("names", "sensor"),
    [(np.array(["a", "b", "c"]), "DVS346"), (lambda: ["a"], (3,)), ("abc", None), (None, [128, 128])],
)
def test_other_programs_data_modules_are_no_hindrance(names, sensor):
    class Data(L.LightningDataModule):
        class_names, sensor = None, None

        def train_dataloader(self):
            return torch.utils.data.DataLoader([(torch.rand(1, 8, 8), 0), (torch.rand(1, 8, 8), 1)], batch_size=2)

        val_dataloader = train_dataloader

    data = Data()
    data.class_names, data.sensor = names, sensor
    task = pl.SpikingClassifier((1, 8, 8), 3, 4, **SIZES)
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, limit_val_batches=0, **silent)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint("net.ckpt")
    assert not {"class_names", "sensor"} & torch.load("net.ckpt", weights_only=True).keys()


def test_forms_of_the_same_function_are_no_difference():
    net = network()
    stored = parts_of(net)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    require_parts(parts_of(synchronised), stored, "net.ckpt")
    require_parts(parts_of(torch.compile(net, backend="eager")), stored, "net.ckpt")
    compiled = copy.deepcopy(net)
    compiled.encoder = torch.compile(compiled.encoder, backend="eager")
    require_parts(parts_of(compiled), stored, "net.ckpt")
    pl.use_backend(net, "reference")
    require_parts(parts_of(net), stored, "net.ckpt")


def test_the_notation_is_of_the_modules_that_are_there():
    net = network(n_conv=2)
    assert str(net.structure) == "{{c4k3s1-BN-PLIF}*2-MPk2s2}*2-DP-FC8-PLIF-DP-FC6-PLIF-APk2s2"
    assert str(fold(net).structure) == "{{c4k3s1-PLIF}*2-MPk2s2}*2-DP-FC8-PLIF-DP-FC6-PLIF-APk2s2"
    with_quiet_neurons(net)
    net.encoder.conv2.pool = Pool2d(nn.Conv2d(4, 4, 2, stride=2))
    net.encoder.conv4.conv = nn.Conv2d(4, 4, (1, 5), padding=(0, 2), groups=2)
    net.encoder.conv4.pool = Pool2d(nn.AvgPool2d(3, stride=2, padding=1))
    net.classifier.fc1.dropout = nn.Identity()
    net.classifier.fc2.neuron = LIF(3.0)
    net.classifier.fc2.dropout = nn.Dropout(0.5)
    assert str(net.structure) == (
        f"c4k3s1-BN-{__name__}.Quiet-c4k3s1-BN-PLIF-c4k2s2p0-c4k3s1-BN-PLIF-c4k1x5s1g2-BN-PLIF-APk3s2p1-FC8-PLIF-Dropout-"
        "FC6-LIF(init_tau=3.0)-APk2s2"
    )
    net.encoder.conv4.pool = nn.AdaptiveAvgPool2d(1)
    assert "-c4k1x5s1g2-BN-PLIF-AP-FC8" in str(net.structure)
    net.encoder.conv4.pool = nn.AdaptiveAvgPool2d(2)  # which the notation has no name for
    assert "-c4k1x5s1g2-BN-PLIF-AdaptiveAvgPool2d-FC8" in str(net.structure)
    net.encoder.conv4 = nn.Conv2d(4, 4, 2, stride=2)
    net.classifier.fc1 = over_time(nn.Sequential(nn.Linear(4, 8), PLIF()))
    net.voting = nn.Identity()
    assert str(net.structure).endswith("-Conv2d-OverTime-Dropout-FC6-LIF(init_tau=3.0)-Identity")
