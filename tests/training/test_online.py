"""Training step by step, without gradient through time."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.training.losses import per_step_mse
from plif_lightning.training.online import separable, step_by_step
from tests.cli.calls import TINY, fit, rows


def lively(**settings):
    torch.manual_seed(0)
    changes = {
        "channels": 12,
        "fc_features": 20,
        "pool_ties": "first",
        "dropout": 0.0,
        "through_time": False,
        **settings,
    }
    net = pl.SpikingNetwork((2, 8, 8), 3, 5, **changes).double()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.bias, 0.6)
        if isinstance(part, nn.Linear):
            nn.init.uniform_(part.weight, -0.1, 0.5)
    return net


def test_bn_of_a_sum_is_updated_once_a_step():
    text = "c6k3s1-BN-PLIF-ADD(c6k3s1-BN)-PLIF-FC3-PLIF"
    whole = lively(structure=text, channels=None, fc_features=None)
    parts, x = copy.deepcopy(whole), torch.rand(5, 4, 2, 8, 8).lt(0.4).double()
    whole(x)
    step_by_step(parts, x, 5, lambda votes: votes.mean())
    for ours, theirs in zip(parts.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_online_gradients_of_recurrent_layers_equal_the_sequences():
    whole = lively(structure="RFC20-PLIF-FC3-PLIF", channels=None, fc_features=None)
    parts, x, label = copy.deepcopy(whole), torch.rand(5, 4, 2, 8, 8).lt(0.4).double(), torch.tensor([0, 1, 2, 0])
    per_step_mse(whole(x), label).backward()
    loss, votes = step_by_step(parts, x, 5, lambda votes: per_step_mse(votes, label))
    loss.backward()
    assert votes.any()
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("neuron", ["plif", "clif"])
@pytest.mark.parametrize("threshold", [False, True])
def test_online_gradients_equal_the_sequences(static, neuron, threshold):
    whole = lively(neuron=neuron, learn_threshold=threshold)
    parts = copy.deepcopy(whole)
    x = torch.rand(4, 2, 8, 8).double() if static else torch.rand(5, 4, 2, 8, 8).lt(0.4).double()
    label = torch.tensor([0, 1, 2, 0])
    votes = whole(x)
    expected = per_step_mse(votes, label)
    expected.backward()
    loss, found = step_by_step(parts, x, 5, lambda votes: per_step_mse(votes, label))
    (2 * loss).backward()
    assert votes.any()
    assert torch.equal(found, votes)
    torch.testing.assert_close(loss, expected)
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, 2 * theirs.grad, msg=lambda m, n=name: f"{n}: {m}")
    for ours, theirs in zip(parts.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sample_has_a_single_dropout_mask():
    net = lively(dropout=0.5, channels=4)
    x = torch.rand(4, 2, 8, 8).double()
    seen = []
    net.classifier.fc1.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0] == 0))
    net.classifier.fc1.dropout.register_forward_pre_hook(lambda module, given: (torch.ones_like(given[0]),))
    step_by_step(net, x, 5, lambda votes: votes.mean())
    assert len(seen) == 5
    assert all(torch.equal(mask, seen[0]) for mask in seen)
    assert seen[0].any()


@pytest.mark.parametrize(
    ("loss", "settings", "expected"),
    [
        ("per_step", {}, True),
        ("tet", {}, True),
        ("rate", {}, False),
        ("per_step", {"through_time": True}, False),
        ("per_step", {"norm_statistics": "all_steps"}, False),
        ("per_step", {"input_encoder": "poisson"}, False),
    ],
)
def test_only_independent_steps_run_separately(loss, settings, expected):
    assert separable(lively(**settings), loss) == expected


def test_online_memory_does_not_grow_with_t():
    kept = []
    for steps in (2, 16):
        torch.manual_seed(0)
        net = lively().float()
        most = now = 0

        def store(tensor):
            nonlocal most, now
            now += tensor.numel()
            most = max(most, now)
            return tensor

        def load(tensor):
            nonlocal now
            now -= tensor.numel()
            return tensor

        with net.for_time_steps(steps), torch.autograd.graph.saved_tensors_hooks(store, load):
            step_by_step(net, torch.rand(4, 2, 8, 8), steps, lambda votes: votes.square().mean())
        kept.append(most)
    assert kept[0] == kept[1] > 0


def test_it_is_a_setting_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(*TINY, "--model.through_time", "false", "--model.loss", "per_step", "--trainer.max_epochs", "2")
    losses = [float(row["train/loss"]) for row in rows("runs/quickstart/version_0/metrics.csv") if row["train/loss"]]
    assert losses[1] < losses[0]


def test_bn_that_sees_a_static_image_once_is_not_trained_step_by_step():
    settings = {"channels": 2, "fc_features": 4, "through_time": False, "norm_held": "once"}
    net = pl.SpikingNetwork((1, 8, 8), 3, 4, **settings)
    assert not separable(net, "per_step", static=True)
    assert separable(net, "per_step", static=False)
    assert separable(pl.SpikingNetwork((1, 8, 8), 3, 4, **settings | {"norm_held": "every_step"}), "per_step")


def test_gradients_that_hooks_or_a_scale_act_on_are_not_taken_step_by_step():
    """Found by a review: hooks of parameters acted twice, and float16's scale after small gradients were lost."""
    task = pl.SpikingClassifier((1, 8, 8), 3, 4, channels=2, fc_features=4, through_time=False)
    assert task._goes_step_by_step(static=True)
    handle = task.network.classifier.fc1.fc.weight.register_hook(lambda gradient: gradient)
    assert not task._goes_step_by_step(static=True)
    handle.remove()
    task._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    assert not task._goes_step_by_step(static=True)


def test_compiled_networks_and_custom_losses_are_not_trained_online():
    task = pl.SpikingClassifier((1, 8, 8), 3, 5, structure="FC3-LIF", through_time=False)
    assert task._goes_step_by_step(static=True)
    task.loss = lambda votes, label, smoothing=0.0: votes.mean(0).square().mean()
    assert not task._goes_step_by_step(static=True)
    net = lively()
    net.encoder.conv1.compile(backend="eager")
    assert not separable(net, "per_step")
