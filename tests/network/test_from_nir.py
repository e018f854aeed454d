"""NIR graphs that snnTorch, Norse, SpikingJelly and this package wrote run here as they run there."""

import contextlib
import io
import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.deploy.nir import to_nir
from plif_lightning.errors import UserError
from plif_lightning.network.from_nir import LeakyNeuron
from plif_lightning.neurons.published import Synaptic, UndecayedLIF
from tests.deploy.conftest import STRUCTURES, frames, trained

nir = pytest.importorskip("nir", reason="extra `nir`")
T, N = 9, 3


def an_input(*shape, seed=0):
    return 5 * torch.rand(T, N, *shape, generator=torch.Generator().manual_seed(seed))


def louder(net):
    """The same with larger weights, so that all layers fire."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                part.weight.mul_(3).add_(0.8 / part.weight[0].numel())
    return net


def steps_of(module, x):
    """Outputs [T, N, *] of a module that maps (x_t, state) to (y_t, state)."""
    state, outputs = None, []
    for frame in x:
        y, state = module(frame, state)
        outputs.append(y)
    return torch.stack(outputs)


# --- snnTorch


def of_snntorch(seed):
    snn = pytest.importorskip("snntorch", reason="test extra `bench`")
    torch.manual_seed(seed)
    shared = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": False}
    beta, threshold = 0.5 + 0.04 * seed, 0.4 + 0.1 * (seed % 3)
    kinds = [
        lambda n: snn.Leaky(torch.full([n], beta), torch.full([n], threshold), **shared),
        lambda n: snn.Leaky(torch.linspace(0.3, 0.9, n), torch.full([n], threshold), **shared),
        lambda n: snn.Synaptic(torch.full([n], 0.6), torch.full([n], beta), torch.full([n], threshold), **shared),
    ]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.n1 = nn.Linear(6, 8, bias=seed % 2 == 0), kinds[seed % 3](8)
            self.fc2, self.n2 = nn.Linear(8, 5), kinds[(seed + 1) % 3](5)

        def forward(self, x, state=None):
            one, two = state or ((), ())
            spikes, *one = self.n1(self.fc1(x), *one)
            spikes, *two = self.n2(self.fc2(spikes), *two)
            return spikes, (one, two)

    net = louder(Net())
    nodes = {"input": nir.Input(np.array([6]))}
    from snntorch.export_nir import _extract_snntorch_module

    names = ["fc1", "n1", "fc2", "n2"]
    nodes |= {name: _extract_snntorch_module(getattr(net, name)) for name in names}
    order = ["input", *names, "output"]
    nodes["output"] = nir.Output(np.array([5]))
    return net, nir.NIRGraph(nodes, list(itertools.pairwise(order))), an_input(6, seed=seed), 1e-4


def of_spikingjelly(seed):
    pytest.importorskip("spikingjelly", reason="test extra `bench`")
    from spikingjelly.activation_based import functional, layer, neuron, nir_exchange

    torch.manual_seed(seed + 10)
    kinds = [
        lambda: neuron.LIFNode(2.0 + seed, v_threshold=0.4),
        lambda: neuron.LIFNode(2.5, v_threshold=0.7, decay_input=False),
        lambda: neuron.IFNode(v_threshold=1.5),
        lambda: neuron.ParametricLIFNode(3.0, v_threshold=0.3),
    ]
    front = [layer.Conv2d(2, 4, 3, padding=1, bias=False), kinds[seed % 4](), layer.AvgPool2d(2, 2), layer.Flatten()]
    net = nn.Sequential(*front, layer.Linear(36, 5), kinds[(seed + 1) % 4]())
    functional.set_step_mode(louder(net), "s")
    x = an_input(2, 6, 6, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        graph = nir_exchange.export_to_nir(net, x[0], dt=1e-4)
    functional.reset_net(net)

    def run(frame, state):
        return net(frame), ()

    return run, graph, x, 1e-4


def of_norse(seed):
    norse = pytest.importorskip("norse.torch", reason="test extra `bench`")
    torch.manual_seed(seed)
    dt = 0.001
    cell, other = (
        norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(rate), v_th=torch.tensor(0.3)), dt=dt)
        for rate in (100.0 + 40 * seed, 300.0)
    )
    net = louder(norse.SequentialState(nn.Linear(6, 8), cell, nn.Linear(8, 5), other))
    x = an_input(6, seed=seed)
    nodes, order = {"input": nir.Input(np.array([6]))}, ["input"]
    for i, part in enumerate(net.children()):
        order.append(str(i))
        if isinstance(part, nn.Linear):
            nodes[str(i)] = nir.Affine(part.weight.detach().numpy(), part.bias.detach().numpy())
        else:
            n = 8 if i == 1 else 5
            full = [np.full(n, float(v)) for v in (1 / part.p.tau_mem_inv, 1.0, part.p.v_leak, part.p.v_th, 0.0)]
            tau, r, leak, threshold, reset = full
            nodes[str(i)] = nir.LIF(tau=tau, r=r, v_leak=leak, v_threshold=threshold, v_reset=reset)
    nodes["output"] = nir.Output(np.array([5]))
    order.append("output")
    return net, nir.NIRGraph(nodes, list(itertools.pairwise(order))), x, dt


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("written_by", [of_snntorch, of_spikingjelly, of_norse])
def test_graphs_run_here_as_they_run_there(written_by, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other libraries
        theirs, graph, x, dt = written_by(seed)
        with torch.no_grad():
            expected = steps_of(theirs, x)
    net = pl.from_nir(graph, dt)
    with torch.no_grad():
        spikes = net(x)
    assert 0.02 < expected.mean() < 0.98
    assert torch.equal(spikes, expected)


def test_a_recurrent_graph_of_snntorch_runs_here():
    snn = pytest.importorskip("snntorch", reason="test extra `bench`")
    from snntorch.export_nir import _extract_snntorch_module

    torch.manual_seed(0)
    shared = {"reset_mechanism": "zero", "reset_delay": False}
    recurrent = snn.RLeaky(0.7, linear_features=6, threshold=0.8, **shared)
    nodes = {
        "input": nir.Input(np.array([6])),
        "r": _extract_snntorch_module(recurrent),
        "output": nir.Output(np.array([6])),
    }
    net = pl.from_nir(nir.NIRGraph(nodes, [("input", "r"), ("r", "output")]))
    x, spikes, v, expected = an_input(6), torch.zeros(N, 6), torch.zeros(N, 6), []
    with torch.no_grad():
        for frame in x:
            spikes, v = recurrent(frame, spikes, v)
            expected.append(spikes)
        found = net(x)
    assert 0 < found.mean() < 1
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize(
    "kind", [k for k in STRUCTURES if k not in ("products", "residual first", "windows", "rectangles")]
)
def test_a_round_trip_is_exact(kind, tmp_path):
    net = trained(structure=STRUCTURES[kind])
    nir.write(tmp_path / "net.nir", to_nir(net))
    again, x = pl.from_nir(tmp_path / "net.nir"), frames(net)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
        state, votes = None, []
        for frame in x:
            y, state = pl.step(again, frame, state)
            votes.append(y)
        torch.testing.assert_close(torch.stack(votes), net(x))


def lif(**changes):
    constants = {"tau": 2e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: np.broadcast_to(np.asarray(value, float), 4).copy() for name, value in constants.items()})


def graph_of(node, size=4):
    nodes = {"input": nir.Input(np.array([size])), "n": node, "output": nir.Output(np.array([size]))}
    return nir.NIRGraph(nodes, [("input", "n"), ("n", "output")])


def test_constants_choose_the_neuron():
    constants = {"tau_syn": 2e-4, "tau_mem": 4e-4, "r": 4.0, "w_in": 2.0, "v_threshold": 1.0}
    zero = dict.fromkeys(("v_leak", "v_reset"), 0.0)
    synaptic = nir.CubaLIF(**{name: np.full(4, value) for name, value in (constants | zero).items()})
    kinds = {
        pl.LIF: lif(),
        UndecayedLIF: lif(r=2.0),
        LeakyNeuron: lif(tau=[2e-4, 3e-4, 4e-4, 5e-4]),
        Synaptic: synaptic,
    }
    for kind, node in kinds.items():
        assert type(pl.from_nir(graph_of(node)).nodes["n"]) is kind


def test_it_trains_as_a_network_of_ones_own():
    net = pl.from_nir(to_nir(trained()))
    task = pl.SpikingClassifier((2, 12, 12), 3, 4, network=net, loss="cross_entropy")
    x = frames(trained()).transpose(0, 1)
    loss, _ = task._evaluate(pl.data.loading.as_batch((x, torch.tensor([0, 1, 2]))), task._input(x))
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (lambda: graph_of(nir.Delay(np.ones(4))), "NIR: n is a Delay; read are Affine"),
        (lambda: graph_of(lif(v_reset=[0.0, 0.0, 0.1, 0.0])), "NIR: n has several v_reset"),
    ],
)
def test_what_has_no_counterpart_is_refused(graph, expected):
    with pytest.raises(UserError, match=expected):
        pl.from_nir(graph())
