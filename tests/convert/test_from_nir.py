"""NIR graphs that snnTorch, Norse, SpikingJelly and this package wrote run here as they run there."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.convert.nir import LeakyNeuron
from plif_lightning.deploy import fold
from plif_lightning.deploy.nir import to_nir
from plif_lightning.errors import UserError
from plif_lightning.neurons.published import Synaptic, UndecayedLIF
from tests.deploy.conftest import STRUCTURES, frames, trained

nir = pytest.importorskip("nir", reason="extra `nir`")
# of snnTorch and Norse, which call an older form of nirtorch
pytestmark = pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph is being deprecated")
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
    shared = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
    beta, threshold = 0.5 + 0.04 * seed, 0.4 + 0.1 * (seed % 3)
    kinds = [
        lambda n, **more: snn.Leaky(torch.full([n], beta), torch.full([n], threshold), **shared, **more),
        lambda n, **more: snn.Leaky(torch.linspace(0.3, 0.9, n), torch.full([n], threshold), **shared, **more),
        lambda n, **more: snn.Synaptic(
            torch.full([n], 0.6), torch.full([n], beta), torch.full([n], threshold), **shared, **more
        ),
    ]
    first, second = kinds[seed % 3](8), kinds[(seed + 1) % 3](5, output=True)
    net = louder(nn.Sequential(nn.Linear(6, 8, bias=seed % 2 == 0), first, nn.Linear(8, 5), second))
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    graph = export_to_nir(net, torch.rand(6))
    utils.reset(net)
    return lambda frame, state: (net(frame)[0], ()), graph, an_input(6, seed=seed), 1e-4


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
    return net, norse.to_nir(net, x[0, 0], dt=dt), x, dt * dt  # it writes dt / tau_mem_inv


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


@pytest.mark.parametrize(
    ("kind", "dt"), [("LIBox", 1e-6), ("IAF", 1.0)], ids=["LIBoxCell", "IAFCell"]
)  # dt as docs/howto/simulators.md says
def test_other_cells_of_norse_run_here(kind, dt):
    norse = pytest.importorskip("norse.torch", reason="test extra `bench`")
    torch.manual_seed(0)
    cells = {
        "LIBox": lambda: norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(140.0)), dt=0.001),
        "IAF": lambda: norse.IAFCell(norse.IAFParameters(v_th=torch.tensor(1.5)), dt=0.001),
    }
    net = louder(norse.SequentialState(nn.Linear(6, 8), cells[kind](), nn.Linear(8, 5), cells[kind]()))
    x = an_input(6)
    with torch.no_grad():
        expected = steps_of(net, x)
        found = pl.from_nir(norse.to_nir(net, x[0, 0]), dt)(x)
    assert expected.any()
    torch.testing.assert_close(found, expected)


def test_a_recurrent_graph_of_snntorch_runs_here():
    snn = pytest.importorskip("snntorch", reason="test extra `bench`")
    from snntorch import utils
    from snntorch.export_nir import export_to_nir

    torch.manual_seed(0)
    shared = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True, "output": True}
    recurrent = snn.RLeaky(torch.full([6], 0.7), linear_features=6, threshold=torch.full([6], 0.8), **shared)
    layers = louder(nn.Sequential(nn.Linear(6, 6), recurrent))
    net = pl.from_nir(export_to_nir(layers, torch.rand(6)))
    utils.reset(layers)
    x, expected = an_input(6), []
    with torch.no_grad():
        for frame in x:
            expected.append(layers(frame)[0])
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
        assert torch.equal(again(x), fold(net)(x))
        state, votes = None, []
        for frame in x:
            y, state = pl.step(again, frame, state)
            votes.append(y)
        torch.testing.assert_close(torch.stack(votes), net(x))


@pytest.mark.parametrize(("steps", "maximum"), [([3000.0] * 4, 3000), ([0.5, 1.25, 2.0, 0.0], 2), ([0.0] * 4, 1)])
def test_delays_are_those_of_the_graph(steps, maximum):
    layer = pl.from_nir(graph_of(nir.Delay(np.array(steps, np.float32) * np.float32(1e-4)))).nodes["n"]
    assert layer.max_delay == maximum
    torch.testing.assert_close(layer.delay.detach(), torch.tensor(steps))
    assert layer.rounds == all(step.is_integer() for step in steps)


def lif(**changes):
    constants = {"tau": 2e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | changes
    return nir.LIF(**{name: np.broadcast_to(np.asarray(value, float), 4).copy() for name, value in constants.items()})


def cuba(**changes):
    constants = {"tau_syn": 2e-4, "tau_mem": 4e-4, "r": 4.0, "w_in": 2.0, "v_threshold": 1.0, "v_leak": 0.0}
    return nir.CubaLIF(**{name: np.full(4, value) for name, value in ({**constants, "v_reset": 0.0} | changes).items()})


def graph_of(node, size=4, after=None):
    ends = {"input": nir.Input(np.atleast_1d(size)), "output": nir.Output(np.atleast_1d(after or size))}
    return nir.NIRGraph({"n": node, **ends}, [("input", "n"), ("n", "output")])


def wired(*edges, **nodes):
    """`graph_of` a LIF layer with further nodes and edges."""
    graph = graph_of(lif())
    return nir.NIRGraph({**graph.nodes, **nodes}, [*graph.edges, *edges])


def test_the_output_is_that_of_the_output_node_whatever_the_order():
    graph = wired(("n", "m"), ("m", "output"), m=lif(v_threshold=0.3))
    turned = nir.NIRGraph(dict(reversed(graph.nodes.items())), graph.edges[::-1])
    x = an_input(4)
    with torch.no_grad():
        first, second = (pl.from_nir(one)(x) for one in (graph, turned))
    assert first.any()
    assert torch.equal(first, second)


def test_constants_choose_the_neuron():
    kinds = {
        pl.LIF: lif(),
        UndecayedLIF: lif(r=2.0),
        LeakyNeuron: lif(tau=[2e-4, 3e-4, 4e-4, 5e-4]),
        Synaptic: cuba(),
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
        (lambda: graph_of(nir.Threshold(np.ones(4))), "NIR: n is a Threshold; read are Affine"),
        (lambda: graph_of(nir.Delay(np.full(4, -1e-4))), "NIR: n has a delay of -0.0001 to -0.0001 s"),
        (lambda: graph_of(lif(v_reset=[0.0, 0.0, 0.1, 0.0])), "NIR: n has several v_reset"),
        (lambda: graph_of(lif(tau=9e-5)), r"n has a time constant of 9e-05 s, below dt = 0\.0001 s: pass the dt"),
        (lambda: graph_of(cuba(tau_syn=9e-5)), "n has a time constant of 9e-05 s, below dt"),
        (lambda: wired(("n", "second"), second=nir.Output(np.array([4]))), r"has 2 nodes Output \(output, second\)"),
        (lambda: wired(("second", "n"), second=nir.Input(np.array([4]))), r"has 2 nodes Input \(input, second\)"),
        (lambda: wired(("n", "end"), end=lif()), "has 2 nodes Output"),
        (lambda: wired(("begin", "n"), begin=lif()), "has 2 nodes Input"),
        (
            lambda: wired(("n", "w"), ("w", "n"), ("w", "m"), ("m", "output"), w=nir.Linear(np.eye(4)), m=lif()),
            "n, w, m, output form a cycle|form a cycle that is no weight from a neuron to itself",
        ),
        (lambda: graph_of(nir.Flatten({"input": np.array([2, 3, 4])}, -2, -1), (2, 3, 4), (2, 12)), "n flattens some"),
    ],
)
def test_what_has_no_counterpart_is_refused(graph, expected):
    with pytest.raises(UserError, match=expected):
        pl.from_nir(graph())
