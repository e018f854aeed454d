"""Operation counts, compared with SpikingJelly's counter and by hand."""

import pytest
import torch

from plif_lightning.deploy import cost, fold
from plif_lightning.deploy.costs import picojoules_a_byte
from plif_lightning.errors import UserError
from plif_lightning.network import use_backend
from plif_lightning.neurons import PLIF
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


def test_dense_operations_are_those_of_the_shapes():
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


def test_a_cost_needs_a_sample(net):
    with pytest.raises(UserError, match="but there are none in x"):
        cost(net, torch.zeros(4, 0, 2, 12, 12))


def test_a_part_that_is_frozen_in_a_network_that_trains_stays_so(net):
    net.train()
    net.encoder.conv1.norm.eval()
    cost(net, frames(net))
    assert net.training
    assert net.encoder.conv2.norm.training
    assert not net.encoder.conv1.norm.training


def test_a_network_in_training_stays_so_and_hooks_are_gone(net):
    net.train()
    cost(net, frames(net))
    assert net.training
    assert not any(part._forward_pre_hooks for part in net.modules())


class Own(PLIF):
    """A neuron that overrides `run`, with the equations of PLIF."""

    def run(self, x, v=None, time_steps=None):
        return super().run(x, v, time_steps)


def test_neurons_with_a_run_of_their_own_are_counted_alike():
    net = trained()
    x = frames(net)
    expected = cost(net, x)
    for block in (net.encoder.conv1, net.classifier.fc1):
        own = Own()
        own.load_state_dict(block.neuron.state_dict())
        block.neuron = own
    assert cost(net, x) == expected
    assert expected.layers[0].accumulates == 0 < expected.layers[1].accumulates


def test_a_network_in_float64_costs_the_same():
    net = trained()
    x = frames(net)
    assert cost(net.double(), x.double()) == cost(net.float(), x)
