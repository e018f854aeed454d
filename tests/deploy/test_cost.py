"""Operation counts, compared with SpikingJelly's counter and by hand."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plif_lightning.deploy import cost, fold
from plif_lightning.deploy.costs import picojoules_a_byte
from plif_lightning.network import Recurrent, SpikingNetwork, over_time, step, use_backend
from plif_lightning.neurons import ILIF, PLIF
from plif_lightning.signals.states import as_tuple
from tests.deploy.conftest import frames, trained

KINDS = [{}, {"n_conv": 2}, {"pooling": "avg"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_operations_are_spikingjellys(kind):
    counter = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="test extra `bench`")
    net = trained(**kind)
    x = (frames(net) > 0).float()  # their counter supports binary inputs only
    ours = cost(net, x)
    plain = use_backend(fold(net), "reference")
    theirs = counter.SynOpCounter()
    with counter.DispatchCounterMode([theirs]), torch.no_grad():
        plain(x)
    of_spikes = sum(layer.actual for layer in ours.layers if layer.spikes or layer.layer == "conv1")
    assert of_spikes * 3 == pytest.approx(theirs.get_total(), rel=1e-6)


def test_dense_operations_follow_from_the_shapes():
    net = trained()
    found = {layer.layer: layer for layer in cost(net, torch.ones(4, 1, 2, 12, 12)).layers}
    # Along a side of 12, 3 * 12 - 2 pairs of pixels are at most one apart; squared for both directions.
    assert found["conv1"].dense == found["conv1"].actual == 4 * (3 * 12 - 2) ** 2 * 2 * 8
    assert found["conv1"].firing == 1
    assert found["fc1"].dense == 4 * 8 * 9 * 20
    assert found["fc1"].parameters == 8 * 9 * 20 + 1
    assert found["conv2"].state == 8 * 36
    assert found["conv2"].updates == 4 * 8 * 36
    held = {layer.layer: layer for layer in cost(net, torch.ones(1, 2, 12, 12)).layers}
    assert held["conv1"].dense == found["conv1"].dense / 4  # the first convolution runs once for a static image
    assert held["conv1"].updates == found["conv1"].updates


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = torch.nn.Linear(8, 8)
        self.merged = torch.nn.Linear(8, 4)

    def forward(self, x):  # [T, N, 1, 5, 8], or an image [N, 1, 5, 8] that is seen twice
        x = x if x.dim() == 5 else x.expand(2, *x.shape)
        return self.merged(self.inside(x[:, :, 0]).flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("shape", [(2, 3, 1, 5, 8), (3, 1, 5, 8)])
def test_positions_are_no_steps(shape):
    """Found by a review: an FC layer over five positions was counted as one that runs five times as often."""
    net = Tokens()
    assert cost(net, torch.ones(shape)).time_steps == 2
    found = {layer.layer: layer for layer in cost(net, torch.ones(shape)).layers}
    assert (found["inside"].once, found["inside"].runs, found["inside"].dense) == (5 * 64, 2, 2 * 5 * 64)
    assert (found["merged"].once, found["merged"].runs) == (5 * 32, 2)


class Plain(torch.nn.Module):
    """A convolution and neurons of a user-defined network."""

    def __init__(self):
        super().__init__()
        self.conv, self.neuron = torch.nn.Conv2d(1, 2, 3, stride=2), PLIF()

    def forward(self, x):
        return self.neuron(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


def test_a_convolution_of_a_user_defined_network_is_counted_by_itself():
    found = cost(Plain(), torch.ones(4, 3, 1, 5, 9))
    assert [layer.layer for layer in found.layers] == ["conv", "neuron"]  # and no other products
    assert found.layers[0].dense == found.layers[0].actual == 4 * 2 * (2 * 4) * 9
    assert (found.layers[0].parameters, found.layers[1].state) == (2 * 9 + 2, 2 * 2 * 4)


def test_an_output_of_a_convolution_in_groups_sees_the_inputs_of_its_group():
    net = Plain()
    net.conv = torch.nn.Conv2d(4, 6, 3, stride=2, groups=2)
    layer = cost(net, torch.ones(4, 3, 4, 5, 9)).layers[0]
    assert layer.dense == layer.actual == 4 * 6 * (2 * 4) * 9 * 2


class Attention(torch.nn.Module):
    """Attention between rows of an image, by one product of PyTorch's or by two of matrices; neurons behind it."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv, self.merged, self.neuron = torch.nn.Linear(8, 24), torch.nn.Linear(40, 3), PLIF()

    def forward(self, x):  # [T, N, 1, 5, 8]
        q, k, v = self.qkv(x[:, :, 0]).chunk(3, -1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.matmul(torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1), v)
        return self.neuron(self.merged(y.flatten(2)))


@pytest.mark.parametrize("fused", [True, False])
def test_products_of_attention_are_counted(fused):
    net, x = Attention(fused), torch.rand(4, 3, 1, 5, 8)
    found = cost(net, x)
    layers = {layer.layer: layer for layer in found.layers}
    products = layers["other products"]
    # Scores and their mixture: 5 x 5 pairs of rows of 8 numbers each, twice, in 4 time-steps.
    assert products.dense == products.actual == products.macs == 4 * 2 * 5 * 5 * 8
    assert (products.spikes, products.runs, products.once) == (False, 4, 2 * 5 * 5 * 8)
    assert (products.parameters, products.state, products.updates) == (0, 0, 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        net(x)
    assert found.total("dense") == flops.get_total_flops() / 2 / 3  # a multiply-accumulate is two; three samples


class Delay(torch.nn.Module):
    time_aware = True

    def forward(self, x):
        return torch.cat([0 * x[:1], x[:-1]])


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.factor


def test_modules_whose_operations_no_row_has_are_named():
    layers = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), Delay(), Scale(), PLIF(), torch.nn.PReLU()
    )
    found = cost(over_time(layers), torch.ones(5, 2, 1, 2, 4))
    assert found.not_counted == ("net.3: Delay", "net.4: Scale", "net.6: PReLU")
    assert [layer.layer for layer in found.layers] == ["net.1", "net.5"]
    for net in (Attention(fused=True), Plain(), trained(), SpikingNetwork((6,), 4, 5, structure="RFC8-PLIF-DP-FC4b")):
        x = (
            torch.rand(4, 3, 1, 5, 8)
            if isinstance(net, (Attention, Plain))
            else torch.rand(net.time_steps, 3, *net.input_shape)
        )
        assert cost(net, x).not_counted == ()


def test_weights_of_a_layer_that_is_not_counted_are_named():
    """As where a new layer of the notation has products that its row leaves out."""
    net = trained()
    net.encoder.conv1.pool = torch.nn.Sequential(net.encoder.conv1.pool, torch.nn.Conv2d(8, 8, 1))
    net.encoder.conv1.pool.forward = net.encoder.conv1.pool[0].forward
    assert cost(net, frames(net)).not_counted == ("encoder.conv1.pool.1: Conv2d",)


def test_energies_add_up():
    net = trained()
    found = cost(net, frames(net))
    assert found.total("arithmetic") == pytest.approx(4.6 * found.total("macs") + 0.9 * found.total("accumulates"))
    assert found.total("arithmetic") < found.total("arithmetic_dense")
    for layer in found.layers:
        small = picojoules_a_byte(layer.parameters)
        potentials = 8 * layer.updates * picojoules_a_byte(4 * layer.state)
        computed = (0.1 if layer.spikes else 0.3) * layer.actual + 0.3 * layer.updates
        assert layer.with_memory(False) == pytest.approx(layer.actual * small + potentials + computed)
        assert layer.conventional(False) > 0
    assert [picojoules_a_byte(size) for size in (8192, 8193, 2**20, 2**20 + 1)] == [1.25, 2.5, 12.5, 200]


def test_memory_traffic_counts_every_state_of_a_neuron():
    """Found by a review: neurons with two states cost as much as those with one."""
    structure = "c8k3s1-BN-{}-MPk2s2-FC10-{}"
    one, two = (SpikingNetwork((2, 8, 8), 10, 4, structure=structure.format(kind, kind)) for kind in ("PLIF", "CLIF"))
    x = torch.ones(4, 3, 2, 8, 8)
    single, double = (cost(net, x).layers[0] for net in (one, two))
    kept = sum(v.numel() for v in as_tuple(step(two.eval(), x[0, :1])[1]["encoder.conv1.neuron"]))
    assert double.state == kept == 2 * single.state
    assert double.updates == single.updates
    assert double.traffic - double.actual == 2 * (single.traffic - single.actual)
    assert double.conventional(True) == pytest.approx(single.conventional(True), rel=1e-3)  # tau is a parameter
    assert double.with_memory(True) - single.with_memory(True) == pytest.approx(
        8 * single.updates * (2 * picojoules_a_byte(8 * 8 * 64) - picojoules_a_byte(4 * 8 * 64)), rel=1e-2
    )


class Own(PLIF):
    """A neuron that overrides `run`, with the equations of PLIF."""

    def simulate(self, x, v=None, time_steps=None):
        return super().simulate(x, v, time_steps)


def test_cost_restores_training_modes(net):
    net.train()
    net.encoder.conv1.norm.eval()
    cost(net, frames(net))
    assert net.training
    assert net.encoder.conv2.norm.training
    assert not net.encoder.conv1.norm.training
    assert not any(part._forward_hooks for part in net.modules())


class Reversed(torch.nn.Module):
    """Its layers are defined in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.readout, self.body, self.neuron = torch.nn.Linear(6, 10), torch.nn.Linear(16, 6), PLIF()

    def forward(self, x):
        x = x.expand(4, *x.shape) if x.dim() == 4 else x
        return self.readout(self.neuron(self.body(x.flatten(2))))


@pytest.mark.parametrize("shape", [(4, 2, 1, 4, 4), (7, 1, 4, 4)])  # frames, static images
def test_input_layer_is_identified(shape):
    """Found by a review: of a network that begins with FC, and by the order of definition in one of one's own."""
    x = (torch.rand(shape) < 0.3).float()
    net, own = SpikingNetwork((1, 4, 4), 10, 4, structure="FC20-PLIF-FC10"), Reversed()
    for made, given in ((net, x), (net, x.to(torch.uint8)), (net.double(), x), (own, x)):
        found = cost(made, given)
        spikes = [layer.spikes for layer in found.layers if layer.parameters > 1]  # more than tau
        assert (spikes, found.time_steps) == ([False, True], 4)


class Copied(Reversed):
    def forward(self, x):
        return super().forward(x.clone())


def test_layer_on_a_copy_of_the_input_is_not_event_driven():
    found = cost(Copied(), (torch.rand(4, 2, 1, 4, 4) < 0.3).float())
    assert [layer.spikes for layer in found.layers if layer.parameters > 1] == [False, True]


def test_a_weight_that_is_reused_is_fetched_once_a_step():
    net = trained()
    found = cost(net, 10 * frames(net))
    for layer in found.layers:
        fetched = min(layer.actual, 4 * layer.parameters)
        kept = 8 * layer.updates * picojoules_a_byte(4 * layer.state)
        computed = (0.1 if layer.spikes else 0.3) * layer.actual + 0.3 * layer.updates
        expected = fetched * picojoules_a_byte(layer.parameters) + layer.actual * picojoules_a_byte(1) + kept + computed
        assert layer.with_memory(True) == pytest.approx(expected)
    assert any(layer.actual > 4 * layer.parameters for layer in found.layers)


def test_recurrent_operations_have_a_row():
    net = SpikingNetwork((1, 2, 3), 4, 5, structure="RFC8-LIF(init_tau=1.5)-FC4-PLIF")
    with torch.no_grad():
        net.classifier.fc1.fc.weight.fill_(0.5)
    x = (torch.rand(5, 3, 1, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    recorded = []
    with net.record_spikes(lambda name, spikes: recorded.append(spikes)):
        net(x)
    own = torch.nn.Sequential(torch.nn.Flatten(), net.classifier.fc1.fc, Recurrent(8, net.classifier.fc1.neuron))
    own[2].recurrent = net.classifier.fc1.recurrent
    for name, costs in [("fc1", cost(net, x)), ("2", cost(over_time(own), x))]:
        rows = {layer.layer.removeprefix("net."): layer for layer in costs.layers}
        row = rows[f"{name}.recurrent"]
        # Spikes of the last step go nowhere.
        assert row.spikes
        assert row.actual > 0
        assert row.actual == pytest.approx(recorded[0][:-1].sum().item() * 8 / 3)
        assert (row.dense, row.parameters, row.updates) == (5 * 8 * 8, 64, 0)
        assert rows[name].updates == 5 * 8
        assert (rows[name].inputs, row.inputs) == (1, 0)  # a conventional network sees one frame


@pytest.mark.parametrize(("neuron", "value", "spikes"), [(ILIF, 3.0, True), (ILIF, 1.5, False), (PLIF, 3.0, False)])
def test_whole_numbers_are_spikes_where_neurons_count(neuron, value, spikes):
    net = over_time(torch.nn.Sequential(torch.nn.Linear(4, 6), neuron(), torch.nn.Linear(6, 3)))
    net.net[1].register_forward_hook(lambda module, given, output: torch.full_like(output, value))
    found = {layer.layer: layer for layer in cost(net, torch.rand(5, 3, 4)).layers}
    assert found["net.2"].spikes == spikes


def test_conventional_network_runs_at_each_step_of_a_sequence():
    net = SpikingNetwork((6,), 4, 5, structure="RFC8-LIF(init_tau=1.5)-FC4")
    found = cost(net, torch.ones(5, 3, 6))
    assert {layer.inputs for layer in found.layers} == {5}
    once = sum(layer.dense for layer in found.layers) / 5
    assert found.total("conventional", False) > 5 * 0.3 * once
    ones = tuple(layer._replace(inputs=1) for layer in found.layers)
    assert found.total("conventional", True) == pytest.approx(5 * sum(layer.conventional(True) for layer in ones))
