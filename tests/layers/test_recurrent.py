"""Recurrent layers: equal to SpikingJelly's, snnTorch's and Norse's, and step by step."""

# ruff: noqa: N805  # equations have no self
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import plif_lightning as pl
from plif_lightning.deploy import deployed
from plif_lightning.deploy.exporting import to_export
from plif_lightning.errors import UserError
from plif_lightning.layers.recurrent import RecurrentLinear
from plif_lightning.network.inspect import record_spikes
from plif_lightning.neurons.published import UndecayedLIF, UndecayedPLIF
from plif_lightning.structure import parse
from tests.layers.making import F, N, T, a_layer, an_input


@pytest.mark.parametrize("decay_input", [True, False])
def test_recurrent_layer_equals_spikingjellys_container(decay_input):
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    node = neuron.ParametricLIFNode(
        init_tau=2.0, decay_input=decay_input, detach_reset=True, surrogate_function=surrogate.ATan(), v_reset=0.0
    )
    theirs = layer.LinearRecurrentContainer(node, F, F, bias=False, step_mode="m").double()
    functional.set_step_mode(theirs, "m")
    ours = pl.Recurrent(F, pl.PLIF() if decay_input else UndecayedPLIF()).double()
    kernel = torch.rand(F, 2 * F, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.3
    linear = next(module for module in theirs.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(kernel)
        ours.recurrent.weight.copy_(kernel[:, F:])
    fc = nn.Linear(F, F, bias=False).double()
    with torch.no_grad():
        fc.weight.copy_(kernel[:, :F])
    x, weight = an_input().detach(), torch.rand(T, N, F, dtype=torch.float64)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = ours(fc(mine))
    (y * weight).sum().backward()
    z = theirs(other)
    (z * weight).sum().backward()
    assert 0.02 < y.mean() < 0.98
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(mine.grad, other.grad)
    gradient = torch.cat([fc.weight.grad, ours.recurrent.weight.grad], 1)
    torch.testing.assert_close(gradient, linear.weight.grad)


@pytest.mark.parametrize("kind", ["node", "linear and node"])
def test_spikingjellys_container_is_converted(kind, fused_calls):
    from spikingjelly.activation_based import functional, layer, neuron

    torch.manual_seed(0)
    node = neuron.ParametricLIFNode(v_threshold=0.3, detach_reset=True)
    within = node if kind == "node" else nn.Sequential(nn.Linear(F, F + 2), node)
    size = F if kind == "node" else F + 2
    container = layer.LinearRecurrentContainer(within, F, size, step_mode="m")
    theirs = nn.Sequential(
        container, layer.Linear(size, 3, step_mode="m"), neuron.LIFNode(v_threshold=0.2, step_mode="m")
    )
    theirs.double()
    ours = pl.from_spikingjelly(theirs, an_input().detach())
    assert str(ours.conversion).startswith("2 nodes in blocks, 0 alone, 0 kept; equal on the example")
    assert fused_calls
    functional.reset_net(theirs)
    x = an_input().detach()
    y, z = ours(x), theirs(x)
    assert torch.equal(y, z)
    assert ours.net[0](x).any()
    theirs.load_state_dict(pl.to_spikingjelly_state_dict(ours))


def test_recurrent_layer_equals_snntorchs_rleaky():
    import snntorch
    from snntorch import surrogate

    torch.manual_seed(0)
    theirs = snntorch.RLeaky(
        beta=0.5, linear_features=F, reset_mechanism="zero", spike_grad=surrogate.atan(alpha=2.0), reset_delay=False
    )
    ours = pl.Recurrent(F, UndecayedLIF(init_tau=2.0, v_threshold=1.0), bias=True)
    with torch.no_grad():
        theirs.recurrent.weight.mul_(2)
        ours.recurrent.weight.copy_(theirs.recurrent.weight)
        ours.recurrent.bias.copy_(theirs.recurrent.bias)
    x = an_input(torch.float32).detach()
    spikes, potential = torch.zeros(2, N, F)
    outputs = []
    for step in x:
        spikes, potential = theirs(step, spikes, potential)
        outputs.append(spikes)
    y = ours(x)
    assert 0.05 < y.mean() < 0.95
    torch.testing.assert_close(y, torch.stack(outputs))


@pl.surrogate
def superspike(u, width):
    return 1 / (1 + u.abs() / width).square()


class OfNorse(pl.Neuron):
    """Its LIF neurons: a current that decays, and a potential that it charges."""

    state = ("v", "current")
    k = pl.fixed(0.1, "unit")
    keep = pl.fixed(0.8, "unit")

    def charge(v, current, x, k):
        return v + k * (current + x - v)

    def after(reset, current, x, keep):
        return reset, keep * (current + x)


def test_recurrent_layer_equals_norses(fused_calls):
    lif = pytest.importorskip("norse.torch.functional.lif", reason="test extra `bench`")
    settings = {"tau_mem_inv": 100.0, "tau_syn_inv": 200.0, "v_th": 0.6}
    parameters = lif.LIFParameters(**{name: torch.tensor(value).double() for name, value in settings.items()})
    ours = a_layer(OfNorse(v_threshold=0.6, surrogate=superspike, surrogate_width=1.0))  # 1.1 leaves its alpha out
    x, y = an_input(steps=30), an_input(steps=30)
    weight = ours.recurrent.weight.detach().clone().requires_grad_()
    state = lif.LIFState(*torch.zeros(3, N, F).double())
    theirs = []
    for step in y:
        z, state = lif.lif_step(step, state, torch.eye(F).double(), weight, parameters, dt=0.001)
        theirs.append(z)
    spikes, theirs = ours(x), torch.stack(theirs)
    assert fused_calls
    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(spikes, theirs)
    factor = torch.linspace(0, 1, 30).double()[:, None, None]
    (spikes * factor).sum().backward()
    (theirs * factor).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-7)  # fixed parameters are float32
    torch.testing.assert_close(ours.recurrent.weight.grad, weight.grad, rtol=1e-5, atol=1e-7)


def test_single_steps_equal_the_sequence_and_hooks_see_it():
    layer = a_layer(pl.PLIF(), torch.float32)
    x = an_input(torch.float32).detach()
    whole = layer(x)
    state, outputs = None, []
    for frame in x:
        y, state = pl.step(layer, frame, state)
        outputs.append(y)
    assert state.keys() == {"recurrent", "neuron"}
    assert torch.equal(torch.stack(outputs), whole)
    heard = {}
    with record_spikes({"neuron": layer.neuron}, heard.__setitem__):
        assert torch.equal(layer(x), whole)
    assert torch.equal(heard["neuron"], whole)


class Halved(RecurrentLinear):
    def forward(self, spikes):
        return super().forward(spikes) / 2


def replaced(layer):
    weight = layer.recurrent.weight
    layer.recurrent = Halved(F)
    layer.recurrent.weight = weight


CHANGED = {
    "pruned": lambda layer: prune.random_unstructured(layer.recurrent, "weight", 0.5),
    "spectral norm": lambda layer: nn.utils.spectral_norm(layer.recurrent.eval()),
    "a hook": lambda layer: layer.recurrent.register_forward_hook(lambda module, spikes, y: y / 2),
    "a subclass": replaced,
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_changed_recurrent_layers_are_called_at_each_step(change, backend):
    layer, x = pl.use_backend(a_layer(pl.PLIF()), backend), an_input().detach()
    unchanged = layer(x)
    change(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):  # the second step has the weight that the first one changed
        whole = layer(x)
        state, outputs = None, []
        for frame in x:
            y, state = pl.step(layer, frame, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs), whole, rtol=0, atol=0)
        optimizer.zero_grad()
        whole.sum().backward()
        (trained,) = layer.recurrent.parameters()
        assert trained.grad.abs().sum() > 0
        optimizer.step()
    assert not torch.equal(whole, unchanged)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameters_of_another_number_of_neurons_are_refused(backend):
    layer = pl.use_backend(a_layer(pl.PLIF(tau_per="neuron", channels=F + 1)), backend)
    with pytest.raises(UserError, match=rf"one value per channel of x \(.*, {F}\), got \({F + 1},\)"):
        layer(an_input())


def test_another_recurrent_layer_is_refused():
    layer = a_layer(pl.PLIF())
    layer.recurrent = nn.Linear(F, F)
    with pytest.raises(UserError, match="RecurrentLinear"):
        layer(an_input())


def a_network(**settings):
    torch.manual_seed(0)
    net = pl.SpikingNetwork(
        (1, 4, 4), 3, T, structure="c4k3s1-BN-PLIF-MPk2s2-RFC12-PLIF-DP-RFC6-PLIF-APk2s2", v_threshold=0.3, **settings
    )
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, RecurrentLinear):
                module.weight.mul_(3)
    return net.eval()


def test_notation_writes_and_reads_recurrent_layers():
    text = "DP-RFC256-PLIF-RFC20b-LIF(init_tau=3.0)-APk2s2"
    assert str(parse(text)) == text
    with pytest.raises(UserError, match="RFC10 needs neurons"):
        parse("RFC10")


def test_network_of_recurrent_layers_trains_steps_and_deploys():
    net, x = a_network(), torch.rand(T, 2, 1, 4, 4)
    votes = net(x)
    state, outputs = None, []
    for frame in x:
        y, state = pl.step(net, frame, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs), votes)
    frozen = deployed(net)
    torch.testing.assert_close(frozen(x), votes)
    steps, state = [], None
    for frame in x:
        y, state = frozen.step(frame, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps), votes)
    torch.testing.assert_close(to_export(net, static=False).module()(x), votes)
    net.train()(x).sum().backward()
    weights = [module.weight for module in net.modules() if isinstance(module, RecurrentLinear)]
    assert len(weights) == 2
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


def test_fingerprint_knows_recurrence():
    from plif_lightning.network.storage.fingerprint import fingerprint

    with_recurrence, plain = (pl.SpikingNetwork((1, 4, 4), 3, 2, structure=f"{r}FC6-PLIF-APk2s2") for r in ("R", ""))
    assert fingerprint(with_recurrence) != fingerprint(plain)


def test_without_gradient_through_time_a_step_is_trained_on_its_own_spikes():
    for backend in ("auto", "reference"):
        layer, x = pl.use_backend(a_layer(pl.PLIF(through_time=False)), backend), an_input()
        spikes = layer(x)
        spikes[-1].sum().backward()
        assert x.grad[-1].any()
        assert not x.grad[:-1].any()
        # The weight learns from the spikes before, as from any input.
        expected = x.grad[-1].t() @ spikes[-2].detach()
        torch.testing.assert_close(layer.recurrent.weight.grad, expected)


def test_other_shapes_run_in_the_loop_or_are_refused():
    layer = a_layer(pl.LIF())
    positions = an_input().detach()[:, :, None].expand(T, N, 4, F).contiguous()
    torch.testing.assert_close(layer(positions)[:, :, 2], layer(an_input()).detach(), check_stride=False)
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|must match"):
        layer(an_input()[..., :-1])


def test_forms_say_which_ran():
    net = pl.SpikingNetwork((1, 2, 3), 4, 5, structure="RFC8-LIF-RFC8-LIF-FC4-PLIF")
    x = torch.rand(5, 3, 1, 2, 3)
    net(x)
    forms = net.forms()
    assert forms["fc1"] == "recurrent, fused, dense (its input is not spikes)"
    assert forms["fc2"].startswith("recurrent, fused, dense")
    assert not forms["fc3"].startswith("recurrent")
    pl.use_backend(net, "reference")(x)
    assert net.forms()["fc2"].startswith("recurrent, a loop over steps")


class Graded(pl.LIF):
    """A leaky integral whose output is a smooth function of it, so that finite differences exist."""

    def simulate(self, x, v=None, time_steps=None):
        h = torch.zeros_like(x[0]) if v is None else v
        outputs = []
        for current in x:
            h = h + (current - h) / 2
            outputs.append(torch.sigmoid(h))
        return torch.stack(outputs), h


def test_gradients_through_time_equal_finite_differences():
    layer = a_layer(Graded(), bias=True)
    names = [f"recurrent.{name}" for name, _ in layer.recurrent.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.recurrent.parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (an_input().detach().requires_grad_(), *values))
