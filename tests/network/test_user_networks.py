"""A network of one's own in a task: what it must do, and what takes it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plif_lightning as pl
from plif_lightning.deploy import StreamingNetwork, cost, deployed, fold
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.layers.readout import Voting
from plif_lightning.network.storage.fingerprint import fingerprint
from plif_lightning.network.user_networks import (
    description,
    imported_network,
    kernels_of,
    neurons_of,
    record_spikes,
)

DATA = {"input_shape": (1, 8, 8), "num_classes": 3, "time_steps": 4}


class Net(nn.Module):
    """Two lines of protocol: x over time, or images; logits [T, N, classes]."""

    def __init__(self, hidden: int = 6, num_classes: int = 3) -> None:
        super().__init__()
        layers = nn.Conv2d(1, hidden, 3, padding=1), nn.BatchNorm2d(hidden), pl.PLIF(), nn.MaxPool2d(2), nn.Flatten()
        self.body = pl.over_time(nn.Sequential(*layers))
        self.head = nn.Linear(hidden * 16, num_classes)
        nn.init.constant_(self.body.net[1].bias, 1.0)

    def forward(self, x):
        return self.head(self.body(x.expand(self.time_steps, *x.shape) if x.dim() == 4 else x))


class Averages(Net):
    def forward(self, x):
        return super().forward(x).mean(0)


class Tuples(Net):
    def forward(self, x):
        return super().forward(x), None


class OtherClasses(Net):
    def __init__(self):
        super().__init__(num_classes=5)


class Keeping(nn.Module):
    """A layer that adds what it saw before."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def forward(self, x):
        y = x if self.seen is None else x + (self.seen > 5).float().mean() + self.seen.abs()
        self.seen = x.detach().mean()
        return y


class WithLayer(Net):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(super().forward(x))


def task(net, **settings):
    return pl.SpikingClassifier(**DATA, network=net, **settings)


def trained(module, x, label):
    """The loss of a training step, without a Trainer."""
    module.log = lambda *of, **settings: None
    return module.training_step((x, label), 0)


def test_task_trains_a_user_defined_network():
    module = task(Net(), loss="cross_entropy")
    x = torch.rand(5, 1, 8, 8)
    assert module(x).shape == (4, 5, 3)
    assert module(torch.rand(5, 4, 1, 8, 8)).shape == (4, 5, 3)
    assert module(torch.randint(0, 3, (5, 4, 1, 8, 8), dtype=torch.uint8)).shape == (4, 5, 3)
    assert description(module.network) == f"{__name__}.Net"
    assert [name for name, _ in neurons_of(module.network)] == ["body.net.2"]
    assert "cpu kernels" in kernels_of(module.network, torch.device("cpu"))
    heard = {}
    with record_spikes(module.network, heard.__setitem__):
        module(x)
    assert heard["body.net.2"].shape == (4, 5, 6, 8, 8)


def test_layers_without_a_forward_over_time_are_run_over_time():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), pl.PLIF(), nn.Linear(8, 3), pl.PLIF())
    module = task(layers)
    assert module(torch.rand(5, 4, 1, 8, 8)).shape == (4, 5, 3)


def test_a_module_declares_itself_time_aware():
    class OverAll(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = pl.PLIF()

        def forward(self, x):
            return self.neuron(x - x.mean(0, keepdim=True))

    with pytest.raises(UserError, match="say `time_aware = True` in its class"):
        pl.over_time(nn.Sequential(OverAll()))
    OverAll.time_aware = True
    x = torch.rand(4, 2, 3)
    assert torch.equal(pl.over_time(nn.Sequential(OverAll()))(x), OverAll()(x))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            Averages(),
            r"Averages must return votes or logits .* = \[4, 2, 3\] .*, got \[2, 3\]: do not average over time",
        ),
        (Tuples(), "Tuples must return .*, got tuple"),
        (OtherClasses(), r"OtherClasses must return .*, got \[4, 2, 5\]"),
        (WithLayer(Keeping()), "WithLayer keeps state between calls: the same input gave another output"),
    ],
    ids=["averages", "tuples", "classes", "state"],
)
def test_protocol_violations_are_named(net, message):
    module = task(net)
    with pytest.raises(UserError, match=message):
        module(torch.rand(5, 4, 1, 8, 8))


class BatchAsTime(nn.Module):
    """Neurons that take a batch [N, C, H, W] for N time-steps."""

    def __init__(self, norm):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), norm, pl.PLIF(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x):
        images = x if x.dim() == 4 else x[0]
        return self.layers(images).expand(self.time_steps, len(images), 3)


class OverTime(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layers = pl.over_time(nn.Sequential(nn.Conv2d(1, 4, 3), norm, pl.PLIF(), nn.Flatten(), nn.Linear(144, 3)))

    def forward(self, x):
        return self.layers(x.expand(self.time_steps, *x.shape[-4:]))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)])
@pytest.mark.parametrize("x", [torch.rand(5, 1, 8, 8), torch.rand(5, 4, 1, 8, 8)], ids=["images", "frames"])
def test_layers_that_take_the_batch_for_time_are_refused(norm, x):
    torch.manual_seed(0)
    with pytest.raises(UserError, match="BatchAsTime mixes samples"):
        task(BatchAsTime(norm))(x)
    assert task(OverTime(norm))(x).shape == (4, 5, 3)


@pytest.mark.parametrize("mixes", [False, True])
def test_sequences_are_tried_too(mixes):
    layers = nn.Sequential(nn.Linear(6, 8), pl.PLIF(), nn.Linear(8, 3))
    net = TimeFirst(layers) if mixes else layers
    module = pl.SpikingClassifier((6,), 3, 4, network=net)
    if mixes:
        with pytest.raises(UserError, match="TimeFirst mixes samples"):
            module(torch.rand(5, 4, 6))
    else:
        assert module(torch.rand(5, 4, 6)).shape == (4, 5, 3)


def test_samples_of_channels_and_positions_are_no_images():
    layers = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), pl.PLIF(), nn.Flatten(), nn.Linear(54, 3))
    module = pl.SpikingClassifier((2, 9), 3, 4, network=layers)
    over_time = torch.rand(5, 4, 2, 9)  # [N, T, C, L], which has the dimensions of images
    votes = module(over_time)
    assert votes.shape == (4, 5, 3)
    torch.testing.assert_close(votes, pl.over_time(layers)(over_time.transpose(0, 1)))
    static = torch.rand(5, 2, 9)
    torch.testing.assert_close(module(static), pl.over_time(layers)(static.expand(4, 5, 2, 9)))
    assert trained(module, over_time, torch.arange(5) % 3).isfinite()


class TimeFirst(nn.Module):
    """Neurons that take the samples [N, T, F] for time-steps."""

    def __init__(self, layers):
        super().__init__()
        self.layers = pl.over_time(layers)

    def forward(self, x):
        return self.layers(x.transpose(0, 1)).transpose(0, 1)


def test_a_trial_that_fails_refuses_nothing():
    class Positive(OverTime):
        def forward(self, x):
            if (x < 0).any():
                raise RuntimeError("no logarithm")
            return super().forward(x)

    assert task(Positive(nn.Identity()))(torch.rand(5, 1, 8, 8)).shape == (4, 5, 3)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 2, 1, 1, 8, 8)])
def test_over_time_reports_missing_input_shape(shape):
    got = ", ".join(map(str, shape))
    with pytest.raises(UserError, match=rf"x must be \[T, N, C, H, W\], got \[{got}\]: hold static images"):
        pl.over_time(nn.Sequential(nn.Conv2d(1, 4, 3), pl.PLIF()))(torch.rand(shape))


class Fires(nn.Module):
    """Its last layer is the first one that it registers."""

    def __init__(self, last):
        super().__init__()
        self.last, self.fc = last, nn.Linear(64, 3 * (last[-1].votes_per_class if len(last) > 1 else 1))
        self.seen = []

    def forward(self, x):
        x = x.expand(self.time_steps, *x.shape) if x.dim() == 4 else x
        self.seen.append(len(x))
        return self.last(self.fc(x.flatten(2)))


@pytest.mark.parametrize(
    ("last", "scale"),
    [
        (nn.Sequential(pl.PLIF()), 10.0),
        (nn.Sequential(pl.PLIF(), Voting(4)), 10.0),
        (nn.Sequential(nn.Identity()), 1.0),
    ],
)
def test_loss_recognises_votes(last, scale):
    module = task(Fires(last), loss="cross_entropy", label_smoothing=0.1)
    x, label = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    loss = trained(module, x, label)
    expected = F.cross_entropy(scale * module(x).mean(0), label, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_a_network_may_say_that_it_has_votes():
    class Halves(Fires):
        has_votes = True

        def forward(self, x):
            return super().forward(x) / 2

    module = task(Halves(nn.Sequential(pl.PLIF())), loss="cross_entropy")
    x, label = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(trained(module, x, label), F.cross_entropy(10 * module(x).mean(0), label))


@pytest.mark.parametrize("net", [Fires(nn.Sequential(pl.PLIF())), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))])
def test_early_epochs_have_fewer_time_steps_of_images(net):
    module = task(net, early_time_steps={2: 1})
    x, label = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    lengths = []
    module.network.register_forward_hook(lambda net, x, votes: lengths.append(len(votes)))
    trained(module, x, label)
    module(x)
    assert lengths[-2:] == [2, 4]


def test_early_time_steps_need_a_network_without_fixed_t():
    class Fixed(Fires):
        def forward(self, x):
            return super().forward(x.expand(4, *x.shape))

    module = task(Fixed(nn.Sequential(pl.PLIF())), early_time_steps={2: 1})
    with pytest.raises(UserError, match="early_time_steps: Fixed ran 4 time-steps for 2"):
        trained(module, torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))


def test_a_layer_of_spikingjelly_must_be_reset():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="test extra `bench`")
    from spikingjelly.activation_based import functional

    class Resets(WithLayer):
        def forward(self, x):
            functional.reset_net(self)
            return super().forward(x)

    keeps = WithLayer(neuron.LIFNode(step_mode="m"))
    nn.init.zeros_(keeps.head.weight)
    nn.init.constant_(keeps.head.bias, 1.3)  # the fourth step leaves a potential, so that the next call fires earlier
    with pytest.raises(UserError, match="WithLayer keeps state between calls"):
        task(keeps)(torch.rand(5, 4, 1, 8, 8))
    net = Resets(neuron.LIFNode(step_mode="m"))
    module = task(net)
    x = torch.rand(5, 4, 1, 8, 8)
    assert torch.equal(module(x), module(x))


def test_settings_that_it_would_ignore_are_refused():
    with pytest.raises(UserError, match=r"init_tau=16\.0, reset='soft' would have no effect on Net"):
        task(Net(), init_tau=16.0, reset="soft")
    with pytest.raises(UserError, match=r"structure='FC3', channels=7, dropout=0\.1 would have no effect on Net"):
        task(Net(), structure="FC3", channels=7, dropout=0.1, backend="reference")
    assert task(Net(), backend="reference").network.body.net[2].backend.name == "reference"
    made_for_others = Net()
    made_for_others.num_classes = 4
    with pytest.raises(UserError, match="Net was made for num_classes=4, but the data has 3"):
        task(made_for_others)


def test_only_networks_are_imported():
    assert imported_network(f"{__name__}.Net") is Net
    for path, message in (
        ("os.system", "network os.system is not a subclass of torch.nn.Module"),
        ("no_such_file.Net", "network no_such_file.Net cannot be imported"),
        ("Net", "cannot be imported"),
    ):
        with pytest.raises(UserError, match=message):
            imported_network(path)


def checkpoint(module, path, config=None):
    stored = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "global_step": 1}
    stored["fingerprint"] = fingerprint(module.network)
    torch.save(stored | ({} if config is None else {"cli_config": config}), path)
    return path


def test_a_checkpoint_of_it_is_loaded_with_its_class_or_by_its_configuration(tmp_path):
    module = task(Net(7))
    path = checkpoint(module, tmp_path / "a.ckpt")
    x = torch.rand(2, 1, 8, 8)
    module.eval()
    assert torch.equal(pl.load_network(path, Net(7))(x), module(x))
    with pytest.raises(CheckpointError, match=r"is a .*test_user_networks.Net that was built in Python: pass it"):
        pl.load_network(path)
    named = f"model:\n  network:\n    class_path: {__name__}.Net\n    init_args: {{hidden: 7}}\n"
    assert torch.equal(pl.load_network(checkpoint(module, tmp_path / "b.ckpt", named))(x), module(x))
    evil = "model:\n  network:\n    class_path: subprocess.Popen\n    init_args: {args: [echo]}\n"
    with pytest.raises(UserError, match=r"subprocess\.Popen is not a subclass of torch\.nn\.Module"):
        pl.load_network(checkpoint(module, tmp_path / "c.ckpt", evil))


class Wide(Net):
    def __init__(self, part: nn.Module, gain: float = 1.0, **further) -> None:
        super().__init__(**further)
        self.part, self.gain = part, gain


def test_modules_and_keywords_of_its_constructor_are_built_from_the_configuration(tmp_path):
    module = task(Wide(Net(5), 2.0, hidden=7))
    named = (
        f"model:\n  network:\n    class_path: {__name__}.Wide\n    init_args:\n      gain: 2.0\n      hidden: 7\n"
        f"      part: {{class_path: {__name__}.Net, init_args: {{hidden: 5}}}}\n"
    )
    x = torch.rand(2, 1, 8, 8)
    again = pl.load_network(checkpoint(module, tmp_path / "a.ckpt", named))
    assert torch.equal(again(x), module.eval()(x))
    assert again.gain == 2.0
    evil = named.replace(f"{__name__}.Net", "subprocess.Popen")
    with pytest.raises(UserError, match=r"subprocess\.Popen is not a subclass of torch\.nn\.Module"):
        pl.load_network(checkpoint(module, tmp_path / "b.ckpt", evil))


def test_user_defined_network_has_a_cost_and_no_structure():
    net = task(Net()).network.eval()
    x = torch.rand(4, 3, 1, 8, 8)
    with torch.no_grad():
        found = {layer.layer: layer for layer in cost(net, x).layers}
    assert [*found] == ["body.net.0", "body.net.2", "head"]
    assert found["body.net.0"].dense == 4 * 6 * (64 * 9 - 4 * 8 * 3 + 4)  # less what lies outside
    assert found["body.net.2"].updates == 4 * 6 * 64
    assert found["head"].dense == 4 * 96 * 3
    assert found["head"].spikes
    for use in (fold, deployed, StreamingNetwork):
        with pytest.raises(UserError, match="need a network from a structure, got a Net"):
            use(net)


@pytest.mark.parametrize("steps", [1, 4])
def test_sequential_accepts_static_images_for_any_t(steps):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), pl.PLIF())
    module = pl.SpikingClassifier((1, 4, 4), 3, steps, network=layers)
    x = torch.rand(5, 1, 4, 4)
    assert module(x).shape == (steps, 5, 3)
    torch.testing.assert_close(module(x), module(x[:, None].expand(5, steps, 1, 4, 4)))
    again = pl.SpikingClassifier((1, 4, 4), 3, steps, network=pl.over_time(layers))
    assert torch.equal(again(x), module(x))


def test_a_trial_draws_no_random_number_of_the_training():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x + torch.rand_like(x))

    module = task(Noisy())
    torch.manual_seed(0)
    torch.rand(5)  # the generator is no longer where its seed put it
    expected = torch.get_rng_state()
    module._input(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert module.is_tried
    assert torch.equal(torch.get_rng_state(), expected)
