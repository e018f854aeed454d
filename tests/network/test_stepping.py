"""Networks run one time-step at a time, and traces of their neurons."""

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.errors import UserError
from tests.dynamics import oracle


def steps_of(net, x):
    state, outputs = None, []
    for frame in x:
        y, state = pl.step(net, frame, state)
        outputs.append(y)
    return torch.stack(outputs), state


def exact(net):
    """Weights whose sums are exact in any order: small multiples of 1/8; BN that does not round."""
    for part in net.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.weight.data = torch.randint(-3, 6, part.weight.shape) / 8
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 2.0**-60  # rounded away next to the variance; PyTorch 2.10 refuses 0
            part.running_mean.data = torch.randint(0, 3, part.running_mean.shape) / 4
            part.running_var.fill_(0.25)
            part.bias.data = torch.randint(-2, 3, part.bias.shape) / 8
    return net.eval()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize(
    "settings", [{}, {"neuron": "if"}, {"reset": "soft", "learn_threshold": True, "v_reset": -0.5}]
)
def test_steps_equal_the_sequence_to_the_bit(backend, pooling, settings):
    torch.manual_seed(0)
    net = pl.SpikingNetwork(
        (2, 8, 8), 3, 6, n_conv=2, channels=4, fc_features=8, pooling=pooling, backend=backend, **settings
    )
    net = exact(net)
    x = torch.randint(0, 3, (6, 3, 2, 8, 8))
    y, state = steps_of(net, x)
    assert torch.equal(y, net(x))
    assert 0 < y.mean() < 1
    assert list(state) == [f"encoder.conv{i}.neuron" for i in (1, 2, 3, 4)] + [
        f"classifier.fc{i}.neuron" for i in (1, 2)
    ]
    assert steps_of(net, x[:2])[0].equal(y[:2])  # no state is left in it


def test_steps_of_a_static_image_equal_its_sequence():
    torch.manual_seed(0)
    net = exact(pl.SpikingNetwork((1, 8, 8), 3, 6, channels=4, fc_features=8, v_threshold=0.1))
    x = torch.randint(0, 4, (3, 1, 8, 8)).float()
    assert torch.equal(steps_of(net, x.expand(6, -1, -1, -1, -1))[0], net(x))
    module = pl.SpikingClassifier((1, 8, 8), 3, 6, channels=4, fc_features=8, v_threshold=0.1)
    module.network.load_state_dict(net.state_dict())
    assert torch.equal(steps_of(exact(module), x[None])[0], steps_of(module.network, x[None])[0])


def test_ordinary_weights_differ_by_rounding_at_most():
    torch.manual_seed(0)
    net = pl.SpikingNetwork((1, 8, 8), 3, 6, channels=4, fc_features=8, v_threshold=0.1).double().eval()
    x = torch.randn(6, 1, 1, 8, 8, dtype=torch.float64)
    _, state = steps_of(net, x)
    _, found = pl.traces(net, x)
    for name, v in state.items():
        torch.testing.assert_close(v, found[name].v[-1])


def test_gradients_flow_through_the_state():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), pl.PLIF()).double()
    x = 4 * torch.rand(5, 2, 1, 2, 3, dtype=torch.float64)
    grads = []
    for run in (lambda: steps_of(net, x)[0], lambda: pl.over_time(net)(x)):
        net.zero_grad()
        (run() * torch.linspace(0, 1, 50).view(5, 2, 5)).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    assert grads[0][-1].abs() > 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_block_in_training_passes_gradients_on_from_step_to_step(backend):
    """The fused block takes the potential and returns it, with gradients."""
    torch.manual_seed(0)
    net = pl.SpikingNetwork(
        (1, 8, 8), 3, 4, channels=4, fc_features=8, v_threshold=0.1, dropout=0.0, pool_ties="first"
    ).double()
    pl.use_backend(net, backend)
    x = torch.randn(4, 5, 1, 8, 8, dtype=torch.float64)
    grads = []
    for run in (lambda: steps_of(net, x)[0], lambda: net(x)):
        net.zero_grad()
        (run() * torch.linspace(0, 1, 60).view(4, 5, 3)).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    assert grads[0][0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # PyTorch's compiler looks at it
def test_a_compiled_network_is_stepped_as_it_is():
    net = pl.SpikingNetwork((1, 8, 8), 3, 2, channels=4, fc_features=8, v_threshold=0.1).eval()
    x = torch.randn(2, 16, 1, 8, 8)
    expected = steps_of(net, x)[0]
    assert torch.equal(steps_of(torch.compile(net, backend="eager"), x)[0], expected)
    net.compile(backend="eager")
    assert torch.equal(steps_of(net, x)[0], expected)
    assert torch.equal(net(x), expected)
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), pl.PLIF())
    expected = steps_of(layers, x)[0]
    layers[1].compile(backend="eager")
    assert torch.equal(steps_of(pl.over_time(layers), x)[0], expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_single_sample_steps_with_any_memory_layout(backend):
    torch.manual_seed(0)
    x = 2 * torch.randn(6, 1, 2, 8, 8)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), pl.PLIF()).to(memory_format=torch.channels_last)
    pl.use_backend(layers, backend)
    assert torch.equal(steps_of(layers, x)[0], pl.over_time(layers)(x))
    settings = {"channels": 4, "fc_features": 8, "tau_per": "channel", "pool_ties": "first"}
    net = exact(pl.SpikingNetwork((2, 8, 8), 3, 6, backend=backend, **settings))
    frames = x.round()
    y = steps_of(net, frames)[0]
    assert torch.equal(y, net(frames))
    y.sum().backward()
    stepped = net.encoder.conv1.neuron.a.grad.clone()
    net.zero_grad()
    net(frames).sum().backward()
    torch.testing.assert_close(stepped, net.encoder.conv1.neuron.a.grad)
    assert stepped.abs().sum() > 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = pl.over_time(nn.Sequential(nn.Linear(4, 4), pl.PLIF()))
        self.neuron = pl.PLIF()

    def forward(self, x):
        return self.neuron(x + self.part(x))


def test_user_defined_network_steps_and_traces():
    torch.manual_seed(0)
    net, x = Residual(), 2 * torch.rand(6, 3, 4)
    y, state = steps_of(net, x)
    assert torch.equal(y, net(x))
    assert list(state) == ["part.net.1", "neuron"]
    out, found = pl.traces(net, x)
    assert torch.equal(out, net(x))
    assert torch.equal(found["neuron"].spikes, out)


def test_custom_charge_has_no_builtin_trace():
    class Mine(pl.PLIF):
        def simulate(self, x, v=None, time_steps=None):
            return torch.zeros_like(x), x[-1]

    with pytest.raises(UserError, match="Mine overrides simulate: override trace too"):
        pl.traces(nn.Sequential(Mine()), torch.zeros(2, 3, 4))


def test_traces_are_the_oracles_potentials():
    torch.manual_seed(0)
    neuron = pl.PLIF(init_tau=3.0, v_reset=-0.2)
    x = torch.randn(7, 2, 5) * 2
    trace = neuron.trace(x)
    v = None
    for t in range(7):
        spikes, v = oracle.run(x[t : t + 1], neuron.k.detach(), v, v_reset=-0.2)
        assert torch.equal(trace.spikes[t], spikes[0])
        torch.testing.assert_close(trace.v[t], v)
    assert torch.equal(trace.spikes, (trace.charged >= 1).float())
    assert torch.equal((two := pl.CLIF().trace(x)).v, two.states["v"])
    assert 0 < trace.spikes.mean() < 1


def test_traces_of_a_network_belong_to_its_output():
    torch.manual_seed(0)
    net = pl.SpikingNetwork((1, 8, 8), 3, 6, channels=4, fc_features=8, v_threshold=0.1).eval()
    x = torch.randn(2, 1, 8, 8)
    votes, found = pl.traces(net, x)
    assert found["encoder.conv1.neuron"].v.shape == (6, 2, 4, 8, 8)
    assert torch.equal(found["classifier.fc2.neuron"].spikes.unflatten(-1, (3, 10)).mean(-1), votes)
    assert not any(neuron._forward_hooks for _, neuron in net.neurons())
    assert net.forms()["conv1"].startswith("part by part")
    assert torch.equal(votes, net(x))
    assert net.forms()["conv1"].startswith("fused")  # as fast as before


def test_a_neuron_alone_runs_in_the_fastest_form():
    x = torch.randn(4, 2, 3)
    neuron = pl.PLIF()
    assert neuron.backend.chosen(x.device) == "cpu"
    assert neuron(x.half()).dtype == torch.float16  # in the reference: numba does not support float16
    assert torch.equal(neuron(x), pl.use_backend(pl.PLIF(), "reference")(x))


@pytest.mark.parametrize("call", ["neuron(y, 4)", "neuron(y, time_steps=4)", "neuron(x=y, time_steps=4)"])
def test_a_neuron_that_is_called_by_name_is_traced(call):
    """Found by a review: a held input was traced for one step, and one given by name was a traceback."""

    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(6, 5), pl.PLIF()

        def forward(self, x):
            return eval(call, {"neuron": self.neuron, "y": 3 * self.fc(x)})

    torch.manual_seed(0)
    out, found = pl.traces(Held(), torch.rand(1, 3, 6))
    assert torch.equal(found["neuron"].spikes, out)
    assert out.shape == (4, 3, 5)
    assert out.any()


def test_a_neuron_that_is_used_twice_has_no_single_steps():
    neuron = pl.PLIF()
    with pytest.raises(UserError, match="PLIF is used twice in the network"):
        pl.step(nn.Sequential(nn.Linear(4, 4), neuron, nn.Linear(4, 4), neuron), torch.rand(2, 4))


class WithHead(nn.Module):
    """A network with a head for its training alone."""

    def __init__(self):
        super().__init__()
        self.fc, self.neuron, self.head = nn.Linear(4, 4), pl.PLIF(), pl.PLIF()

    def forward(self, x):
        return self.neuron(self.fc(x))


def test_a_neuron_that_the_network_does_not_call_has_no_state():
    net, x, state = WithHead(), 4 * torch.rand(5, 2, 4), None
    for frame, expected in zip(x, net(x), strict=True):
        y, state = pl.step(net, frame, state)
        torch.testing.assert_close(y, expected)
    assert [*state] == ["neuron"]
    with pytest.raises(
        UserError, match="must hold the states of neuron, as returned by the previous step, got nothing"
    ):
        pl.step(net, x[0], {})


class Delay(nn.Module):
    """A step later, by itself."""

    time_aware = True

    def forward(self, x):
        return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


class LongDelay(nn.Module):
    time_aware = True

    def forward(self, x):
        return torch.cat([torch.zeros_like(x[:12]), x[:-12]])[: len(x)]


class OverSteps(nn.Module):
    """A convolution over time."""

    time_aware = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=2)

    def forward(self, x):
        return self.conv(x.permute(1, 2, 0))[..., : len(x)].permute(2, 0, 1)


class Within(nn.Module):
    """Sees the step before in its own forward."""

    def __init__(self):
        super().__init__()
        self.neuron = pl.PLIF()

    def forward(self, x):
        return self.neuron(x + torch.cat([torch.zeros_like(x[:1]), x[:-1]]))


def _net(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 4), layer, pl.PLIF(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize(
    ("net", "name"),
    [(_net(Delay()), r"Delay \(2\)"), (_net(LongDelay()), r"LongDelay \(2\)"), (_net(OverSteps()), r"OverSteps \(2\)"),
     (Within(), "Within")],
)  # fmt: skip
def test_a_module_that_sees_other_steps_is_refused(net, name):
    """Steps of such a network would differ from its sequences by any amount."""
    with pytest.raises(UserError, match=f"^{name} sees other time-steps"):
        pl.step(net, torch.rand(3, 4))


class LearnedMix(nn.Module):
    """Adds a share of the step before, which is nothing at first."""

    time_aware = True

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return x + self.share * torch.cat([torch.zeros_like(x[:1]), x[:-1]])


@pytest.mark.parametrize("change", ["learns", "loads"])
def test_a_memory_that_a_module_learned_later_is_refused(change):
    net, x = _net(LearnedMix()), torch.rand(3, 4)
    pl.step(net, x)
    if change == "learns":
        net[2].share.data.fill_(0.5)
    else:
        net.load_state_dict(net.state_dict() | {"2.share": torch.tensor(0.5)})
    with pytest.raises(UserError, match=r"^LearnedMix \(2\) sees other time-steps"):
        pl.step(net, x)


def test_a_memory_behind_silent_neurons_is_refused():
    """The second neurons are silent at any input of theirs below 1, and so is what lies behind them."""
    net, x = nn.Sequential(nn.Linear(4, 4), pl.LIF(), LearnedMix()), torch.rand(3, 4)
    with torch.no_grad():
        net[0].weight.fill_(0.01)
        net[0].bias.zero_()
        net[2].share.fill_(0.5)
    assert not pl.over_time(net)(x[None]).any()
    with pytest.raises(UserError, match=r"^LearnedMix \(2\) sees other time-steps"):
        pl.step(net, x)


class Scaled(nn.Module):
    time_aware = True

    def forward(self, x):
        return 3 * x


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.rand_like(x)


class Narrows(nn.Module):
    time_aware = True

    def forward(self, x):
        return x.float()


@pytest.mark.parametrize("layer", [Scaled(), Noise(), pl.LIF(), pl.over_time(nn.Linear(4, 4))])
def test_modules_without_a_memory_of_their_own_step_without_a_word(layer, caplog):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), layer, pl.PLIF(), Scaled()).eval()
    x = torch.rand(5, 3, 4)
    y, _ = steps_of(net, x)
    assert not caplog.records
    if not isinstance(layer, Noise):
        torch.testing.assert_close(y, pl.over_time(net)(x))


def test_a_network_that_cannot_be_compared_says_so_once(caplog):
    net, x = _net(Narrows()), torch.rand(2, 3, 4)
    for _ in range(2):
        assert torch.equal(steps_of(net, x)[0], pl.over_time(net)(x))
    assert caplog.text.count("could not be compared with a run over a sequence") == 1


def test_the_comparison_leaves_random_numbers_and_the_network_alone():
    torch.manual_seed(0)
    net = _net(Scaled())
    before, expected = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    pl.step(net, torch.rand(3, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.get_rng_state().equal(expected)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
