"""A checkpoint is loaded into the network that was trained, and into no other; nothing that it names is run."""

import copy
import json
import sys

import lightning as L
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.layers.pooling import Pool2d
from plif_lightning.network import SpikingNetwork, load_network
from plif_lightning.network.storage.fingerprint import fingerprint
from plif_lightning.neurons import LIF, PLIF, Neuron, learned
from plif_lightning.signals.signal import LayerModule

SIZES = {"channels": 4, "fc_features": 8, "votes_per_class": 2, "v_threshold": 0.1}
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LOADER = torch.utils.data.DataLoader([(x, i % 3) for i, x in enumerate(X[:4])], batch_size=2)


class Quiet(PLIF):
    """A neuron that needs twice the threshold to fire."""

    def simulate(self, x, v=None, time_steps=None):
        return super().simulate(x / 2, v, time_steps)


class Own(Neuron):
    k = learned(0.5, "unit")

    def charge(v, x, k):  # noqa: N805
        return v + k * (x - v)


class _Edited(Neuron):
    k = learned(0.5, "unit")

    def charge(v, x, k):  # noqa: N805
        return v + 2 * k * (x - v)


_Edited.__name__ = _Edited.__qualname__ = "Own"  # its equation was edited after the training


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def quick():
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(max_steps=1, limit_val_batches=0, accelerator="cpu", enable_model_summary=False, **silent)


def made(**settings):
    torch.manual_seed(0)
    return pl.SpikingClassifier((1, 8, 8), 3, 4, **{**SIZES, **settings})


def save(task, path):
    """Train one step and write a checkpoint."""
    trainer = quick()
    trainer.fit(task, LOADER, LOADER)
    trainer.save_checkpoint(path)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"neuron": "lif", "pooling": "avg"},
        {"tau_per": "channel", "learn_threshold": True, "dropout": [0.0, 0.2]},
        {"neuron": f"{__name__}.Own"},
    ],
    ids=str,
)
def test_trained_checkpoint_loads_into_a_fresh_network(settings):
    task = made(**settings)
    save(task, "net.ckpt")
    expected = task.network.eval()(X)
    assert torch.equal(load_network("net.ckpt")(X), expected)
    again = pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True)
    assert torch.equal(again.network.eval()(X), expected)
    fresh = made(**settings)
    quick().test(fresh, LOADER, ckpt_path="net.ckpt", weights_only=True, verbose=False)
    assert torch.equal(fresh.network.eval()(X), expected)


def test_a_checkpoint_written_under_ddp_with_synchronised_bn_loads():
    task = made()
    task.network = nn.SyncBatchNorm.convert_sync_batchnorm(task.network)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in task.network.modules())
    save(task, "net.ckpt")
    assert torch.equal(load_network("net.ckpt")(X), task.network.eval()(X))
    assert pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True)


def test_checkpoint_loads_with_another_t_and_training_only_settings():
    task = made()
    save(task, "net.ckpt")
    for changed in ({"time_steps": 7}, {"dropout": 0.0}, {"pool_ties": "first"}, {"backend": "reference"}):
        again = pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True, **changed)
        steps = changed.get("time_steps", 4)
        with task.network.eval().for_time_steps(steps):
            torch.testing.assert_close(again.network.eval()(X), task.network(X))
        assert again.network(X).shape == (steps, 5, 3)
        assert task.network(X).shape == (4, 5, 3)


# Each has the weights of the first, in number and shape.
STRUCTURE = "c4k3s1-BN-PLIF-MPk2s2-c4k3s1-BN-PLIF-FC3-PLIF"
OTHERS = {
    "neuron": {"neuron": "lif"},
    "pooling": {"pooling": "avg"},
    "threshold": {"v_threshold": 0.9},
    "surrogate": {"surrogate": "sigmoid"},
    "width": {"surrogate_width": 2.0},
    "encoder": {"input_encoder": "latency"},
    "through_time": {"through_time": False},
    "stride": {"structure": "c4k3s2-BN-PLIF-c4k3s1-BN-PLIF-FC3-PLIF"},
    "pool": {"structure": "c4k3s1-BN-PLIF-MPk4s2p1-c4k3s1-BN-PLIF-FC3-PLIF"},
    "order": {"structure": "c4k3s1-BN-PLIF-c4k3s1-BN-PLIF-MPk2s2-FC3-PLIF"},
    "votes": {"structure": "c4k3s1-BN-PLIF-MPk2s2-c4k3s1-BN-PLIF-FC3-PLIF-APk1s1"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of STRUCTURE that a Trainer wrote."""
    path = tmp_path_factory.mktemp("saved") / "net.ckpt"
    save(pl.SpikingClassifier((1, 8, 8), 3, 4, structure=STRUCTURE), path)
    return path


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_network_is_refused(other, saved):
    with pytest.raises(CheckpointError, match="differs from this one in a class"):
        pl.SpikingClassifier.load_from_checkpoint(saved, weights_only=True, **OTHERS[other])


def test_a_leaky_integral_of_another_time_constant_is_another_network():
    structure = STRUCTURE.removesuffix("-PLIF") + "-LI(init_tau={})"
    save(pl.SpikingClassifier((1, 8, 8), 3, 4, structure=structure.format(4.0)), "net.ckpt")
    load = pl.SpikingClassifier.load_from_checkpoint
    assert load("net.ckpt", weights_only=True).network.voting.init_tau == 4
    with pytest.raises(CheckpointError, match="differs from this one in a class"):
        load("net.ckpt", weights_only=True, structure=structure.format(2.0))


def test_a_trainer_refuses_a_checkpoint_of_other_settings(saved):
    """Found by a review: it tested with these settings and those weights, without a word."""
    other = pl.SpikingClassifier((1, 8, 8), 3, 4, structure=STRUCTURE, v_threshold=0.5)
    with pytest.raises(CheckpointError, match="differs from this one in a class"):
        quick().test(other, LOADER, ckpt_path=saved, weights_only=True)


def _with_quiet_neurons(net):
    net.encoder.conv1.neuron = Quiet()


def _with_fixed_neurons(net):
    net.encoder.conv1.neuron = LIF()


def _with_another_threshold(net):
    net.classifier.fc1.neuron = PLIF(v_threshold=0.5)


def _with_another_pool(net):
    net.encoder.conv1.pool = Pool2d(nn.MaxPool2d(3, stride=2, padding=1))


def _with_another_stride(net):
    net.encoder.conv1.conv.stride, net.encoder.conv1.pool = (2, 2), nn.Identity()


def _with_another_eps(net):
    net.encoder.conv2.norm.bn.eps = 0.1


@pytest.mark.parametrize(
    "change",
    [
        *(_with_quiet_neurons, _with_fixed_neurons, _with_another_threshold),
        *(_with_another_pool, _with_another_stride, _with_another_eps),
    ],
    ids=lambda change: change.__name__,
)
def test_a_module_that_was_swapped_by_hand_before_it_was_saved_is_refused(change):
    task = pl.SpikingClassifier((1, 8, 8), 3, 4, structure=STRUCTURE)
    change(task.network)
    save(task, "net.ckpt")
    for load in (load_network, pl.SpikingClassifier.load_from_checkpoint):
        with pytest.raises(CheckpointError, match="differs from this one in a class"):
            load("net.ckpt")


def test_edited_equations_are_refused(monkeypatch):
    save(pl.SpikingClassifier((1, 8, 8), 3, 4, structure=STRUCTURE, neuron=f"{__name__}.Own"), "net.ckpt")
    load_network("net.ckpt")
    monkeypatch.setattr(sys.modules[__name__], "Own", _Edited)
    for load in (load_network, pl.SpikingClassifier.load_from_checkpoint):
        with pytest.raises(CheckpointError, match="the equations or constants of neurons"):
            load("net.ckpt")


class _Marks:
    def __reduce__(self):
        return open, ("marker", "w")


STRANGER = """
import pathlib

class Neuron:
    def __init__(self, *arguments, **named):
        pathlib.Path("marker").touch()

def call(*arguments, **named):
    pathlib.Path("marker").touch()
"""


@pytest.mark.parametrize("path", ["stranger.Neuron", "stranger.call", "subprocess.Popen"])
@pytest.mark.parametrize("where", ["neuron", "class_path", "structure", "network"])
def test_the_class_path_of_a_stranger_is_refused_and_never_called(path, where, saved, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint, described = torch.load(saved, weights_only=True), {"class_path": path, "init_args": {"args": ["true"]}}
    changes = {
        "neuron": {"neuron": path},
        "class_path": {"neuron": described},
        "structure": {"structure": STRUCTURE.replace("PLIF", path, 1)},
        "network": {"network": path},
    }
    checkpoint["hyper_parameters"].update(changes[where])
    checkpoint["cli_config"] = json.dumps({"model": {"network": described}})
    torch.save(checkpoint, "net.ckpt")
    with pytest.raises(UserError, match=f"{path} is not a subclass of"):
        load_network("net.ckpt")
    assert not (tmp_path / "marker").exists()


def test_python_objects_in_a_checkpoint_are_refused_and_not_built(saved, tmp_path):
    torch.save({**torch.load(saved, weights_only=True), "more": _Marks()}, "net.ckpt")
    with pytest.raises(CheckpointError, match="holds Python objects"):
        load_network("net.ckpt")
    assert not (tmp_path / "marker").exists()


def test_checkpoint_without_a_network_description_is_refused(saved):
    checkpoint = torch.load(saved, weights_only=True)
    del checkpoint["fingerprint"]
    torch.save(checkpoint, "net.ckpt")
    with pytest.raises(CheckpointError, match="does not say what its network is"):
        load_network("net.ckpt")
    with pytest.raises(CheckpointError, match="differs from this one"):
        pl.SpikingClassifier.load_from_checkpoint("net.ckpt", weights_only=True)


def test_equivalent_forms_share_a_fingerprint():
    net = SpikingNetwork((1, 8, 8), 3, 4, structure=STRUCTURE)
    expected = fingerprint(net)
    assert fingerprint(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))) == expected
    assert fingerprint(torch.compile(net, backend="eager")) == expected
    compiled = copy.deepcopy(net)
    compiled.encoder = torch.compile(compiled.encoder, backend="eager")
    assert fingerprint(compiled) == expected
    assert fingerprint(pl.use_backend(net, "reference")) == expected


def test_constants_that_a_layer_names_are_part_of_a_fingerprint():
    class Shift(LayerModule):
        geometry = ("steps",)

        def __init__(self, steps, unnamed=0):
            super().__init__()
            self.steps, self.unnamed = steps, unnamed

    ones = [fingerprint(nn.Sequential(nn.Linear(2, 2), Shift(*of))) for of in ((1,), (1, 5), (2,))]
    assert ones[0] == ones[1] != ones[2]
    readouts = [pl.SpikingNetwork((4,), 2, 2, structure=f"FC2-{name}") for name in ("LI", "LI(init_tau=3.0)", "LAST")]
    assert len({fingerprint(net) for net in readouts}) == 3
