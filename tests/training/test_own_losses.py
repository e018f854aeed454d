"""Losses that see more than votes and target: distillation, features, the task."""

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import plif_lightning as pl
from plif_lightning.errors import UserError
from plif_lightning.network.inspect import layer_outputs

TEXT = "c4k3s1-BN-PLIF-MPk2s2-FC8-PLIF-FC3-PLIF"
SILENT = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Distil(nn.Module):
    def __init__(self, teacher: str, weight: float = 0.5):
        super().__init__()
        self.teacher = (pl.load_network(teacher),)  # in a tuple: neither trained nor stored
        self.weight = weight

    def forward(self, votes, target, x):
        with torch.no_grad():
            soft = (10 * self.teacher[0].to(x.device)(x).mean(0)).softmax(-1)
        logits = 10 * votes.mean(0)
        return F.cross_entropy(logits, target) + self.weight * F.cross_entropy(logits, soft)


class Imitate(nn.Module):
    """Feature distillation: the second layer's output as another network's."""

    layers = ("fc1",)

    def __init__(self, teacher):
        super().__init__()
        self.teacher = (teacher,)

    def forward(self, votes, target, x, features):
        with torch.no_grad(), layer_outputs(self.teacher[0], self.layers) as wanted:
            self.teacher[0](x)
        return (features["fc1"] - wanted["fc1"]).square().mean() + 0 * votes.sum()


class TimmStyle(nn.Module):
    """Its votes are named as an argument of the context, and its `layers` are none of the network's."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Identity())

    def forward(self, x, target):
        return F.cross_entropy(10 * self.layers(x).mean(0), target)


def task_of(loss="per_step", **settings):
    torch.manual_seed(1)
    adam = partial(torch.optim.Adam, lr=0.01)
    return pl.SpikingClassifier((1, 8, 8), 3, 2, structure=TEXT, loss=loss, optimizer=adam, v_threshold=0.1, **settings)


def loader(n=12):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(3 * torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 3), 6)


def fit(task, folder, epochs=1):
    trainer = L.Trainer(max_epochs=epochs, default_root_dir=folder, enable_checkpointing=False, **SILENT)
    trainer.fit(task, loader(), loader())
    return trainer


def test_a_student_is_distilled_and_its_checkpoint_holds_no_teacher(tmp_path):
    teacher = task_of()
    fit(teacher, tmp_path).save_checkpoint(tmp_path / "teacher.ckpt")
    student = task_of(Distil(str(tmp_path / "teacher.ckpt")))
    before = {name: value.clone() for name, value in student.custom_loss.teacher[0].state_dict().items()}
    trainer = fit(student, tmp_path)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    names = torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in names if "teacher" in name]
    assert {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]} == {
        id(p) for p in student.network.parameters()
    }
    for name, value in student.custom_loss.teacher[0].state_dict().items():
        assert torch.equal(value, before[name])
    x, label = next(iter(loader()))
    with torch.no_grad():
        votes = student.network.eval()(x)
        expected = student.custom_loss(votes, label, x)
        torch.testing.assert_close(student._evaluate(pl.data.loading.as_batch((x, label)), x)[0], expected)


def test_features_of_a_layer_can_be_imitated(tmp_path):
    teacher = task_of().network.eval()
    torch.manual_seed(2)
    with torch.no_grad():
        teacher.classifier.fc1.fc.weight.mul_(4).add_(0.3)
    student = task_of(Imitate(teacher))
    x, label = next(iter(loader()))
    batch = pl.data.loading.as_batch((x, label))
    first = student._evaluate(batch, x)[0].item()
    fit(student, tmp_path, epochs=30)
    assert student._evaluate(batch, x)[0].item() < 0.7 * first


def test_a_loss_is_given_what_it_names(tmp_path):
    seen = {}

    def loss(votes, target, task, net, batch):
        seen.update(task=task, net=net, batch=batch)
        return votes.mean()

    task = task_of(loss)
    fit(task, tmp_path)
    assert seen["task"] is task
    assert seen["net"] is task.network
    assert seen["batch"].sample.tolist() == list(range(6))


def test_the_first_two_arguments_may_have_any_name(tmp_path):
    task = task_of(TimmStyle())
    fit(task, tmp_path)
    x, label = next(iter(loader()))
    with torch.no_grad():
        loss, votes = task._evaluate(pl.data.loading.as_batch((x, label)), x)
    assert loss == F.cross_entropy(10 * votes.mean(0), label)


def test_layers_of_features_must_be_named_and_there():
    with pytest.raises(UserError, match="names their layers in its attribute `layers`"):
        task_of(lambda votes, target, features: votes.mean())
    with (
        pytest.raises(UserError, match="the network has no layer fc9; it has "),
        layer_outputs(task_of().network, ["fc9"]),
    ):
        pass


class ItsOwnLayers(nn.Module):
    def layers(self, x):
        return x


def test_a_network_may_have_layers_of_its_own():
    net = nn.Module()
    net.layers = nn.Linear(3, 2)
    with layer_outputs(net, ["layers"]) as outputs:
        y = net.layers(torch.ones(4, 3))
    assert torch.equal(outputs["layers"], y)
    with layer_outputs(ItsOwnLayers(), []):
        pass


def test_outputs_of_layers_are_those_before_a_forward_writes_into_them():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.spikes = pl.IF()

        def forward(self, x):
            y = self.spikes(x)
            y += x
            return y

    net, x = Residual(), 2 * torch.rand(4, 3, 5)
    with layer_outputs(net, ["spikes"]) as outputs:
        y = net(x)
    assert torch.equal(outputs["spikes"], net.spikes(x))
    assert torch.equal(y, net.spikes(x) + x)
