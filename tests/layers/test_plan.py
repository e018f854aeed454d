"""Speed by counting: graphs of torch.compile, calls of kernels, nodes left unconverted; never by a clock."""

import pytest
import torch
from torch import nn

import plif_lightning as pl
from plif_lightning.kernels import block, density, ops, sparse
from plif_lightning.layers import plan
from plif_lightning.network.network import use_backend
from tests.network.test_network import inputs, small

STRUCTURE = "c8k3s1-BN-PLIF-MPk2s2-c8k3s1-BN-PLIF-FC12-PLIF-FC4b"


def made(structure=STRUCTURE, **arguments):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 8, 8), 4, 3, structure=structure, pool_ties="first", **arguments)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)
    return net


def frames():
    return 3 * (torch.rand(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def graphs_of(net):
    """Number of graphs, and of convolutions and comparisons in them, that torch.compile makes of a network."""
    found = []

    def backend(graph, example):
        found.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(net.eval(), backend=backend)
        votes = compiled(frames())
        torch.testing.assert_close(votes, net(frames()))
    torch._dynamo.reset()
    return len(found), sum("conv" in target for targets in found for target in targets)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_the_reference_compiles_to_one_graph_and_the_cpus_kernels_run_outside_of_graphs():
    """On the reference backend every layer is in the graph; between the kernels nothing is compiled for a shape."""
    assert graphs_of(made(backend="reference")) == (1, 2)
    _, convolutions = graphs_of(made(backend="auto"))
    assert convolutions == 0


def calls(net, monkeypatch, train=True):
    """Names of the compiled loops that a step runs, and how often."""
    found = []
    for module in (ops, block, sparse):
        run = module.parallel
        monkeypatch.setattr(
            module, "parallel", lambda loop, *rest, run=run: (found.append(loop.__name__), run(loop, *rest))[1]
        )
    with torch.set_grad_enabled(train):
        votes = net.train(train)(frames())
        if train:
            votes.square().sum().backward()
    return {name: found.count(name) for name in dict.fromkeys(found)}


def test_a_training_step_runs_each_kernel_once_a_layer(monkeypatch):
    """Dense layers: oneDNN convolves, one loop a layer of neurons, and the second block's BN beside its neurons."""
    assert calls(made(sparse="never"), monkeypatch) == {
        "forward": 3,
        "statistics": 1,
        "backward": 3,
        "normalise_back": 1,
    }


def test_event_driven_layers_run_their_loops(monkeypatch):
    found = calls(made(sparse="always"), monkeypatch)
    assert found["conv_fire_pool"] == found["conv_fire_pool_backward"] == 1  # events, in one pass
    assert found["conv"] == found["conv_weight"] == 1  # the second convolution
    assert found["linear"] == found["linear_weight"] == 2
    found = calls(made(sparse="always"), monkeypatch, train=False)
    assert found["conv_fire_pool"] == 2  # without gradients both blocks are one pass


@pytest.mark.parametrize(("fires", "most", "stored"), [(True, 1, 1), (True, 2**23, 0), (False, 1, 0)])
def test_many_spikes_are_stored_as_bits_and_numbers_never(monkeypatch, fires, most, stored):
    """In a dense convolution; on a GPU, an input that is not spikes fails an assertion and aborts the process."""
    found, run = [], plan.conv_of_spikes
    monkeypatch.setattr(plan, "conv_of_spikes", lambda *arguments: found.append(1) or run(*arguments))
    monkeypatch.setattr(density, "MANY_SPIKES", most)
    made(f"c4k3s1-BN{'-PLIF' if fires else ''}-c4k3s1-BN-PLIF-FC4-PLIF", sparse="never")(frames())
    assert len(found) == stored


def test_the_reference_backend_runs_no_compiled_loop(monkeypatch):
    assert calls(made(backend="reference", sparse="never"), monkeypatch) == {}


def test_forms_name_why_nothing_faster_ran():
    net = made()
    net.train()(frames())
    assert net.forms()["conv1"].startswith("one pass")
    assert net.forms()["conv2"].startswith("fused")
    use_backend(net, "reference")
    net(frames())
    assert "the reference backend" in net.forms()["conv2"]


class Named(nn.Module):
    """A node and a convolution under two names each, one of them called."""

    def __init__(self, layer, neuron):
        super().__init__()
        self.conv = layer.Conv2d(2, 4, 3, padding=1)
        self.node = neuron.LIFNode()
        self.layers = nn.ModuleDict({"conv": self.conv, "node": self.node})
        self.other = neuron.IFNode()

    def forward(self, x):
        return self.other(self.layers["node"](self.conv(x)))


@pytest.mark.parametrize("with_example", [True, False])
def test_a_node_under_two_names_is_replaced_if_an_example_shows_one_call(with_example):
    pytest.importorskip("spikingjelly.activation_based", reason="test extra `bench`")
    from spikingjelly.activation_based import functional, layer, neuron

    torch.manual_seed(0)
    net = Named(layer, neuron)
    functional.set_step_mode(net, "m")
    x = 3 * torch.rand(4, 3, 2, 6, 6)
    converted = pl.from_spikingjelly(net, *([x] if with_example else []))
    left = [name for name, module in converted.net.named_modules() if isinstance(module, neuron.BaseNode)]
    assert left == [*converted.conversion.kept] == ([] if with_example else ["node"])
    assert len({module for module in converted.modules() if isinstance(module, pl.Neuron)}) == 2 - len(left)
    with torch.no_grad():
        assert torch.equal(converted.eval()(x), net.eval()(x))


def test_layer_reports_its_form_and_why_not_a_faster_one():
    net, x = small(sparse="always").eval(), inputs()
    assert net.forms() == {}
    net(x)
    assert net.forms()["conv1"].startswith("one pass, ")
    assert net.forms()["conv2"].startswith("fused, event-driven at ")  # with gradients
    with torch.no_grad():
        net(x)
        assert net.forms()["conv2"].startswith("one pass, event-driven at ")
        assert net.forms()["fc1"].startswith("event-driven at ")
        use_backend(net, "auto", "never")(x)
        assert net.forms()["conv2"].startswith("fused, dense")
        handle = net.encoder.conv2.neuron.register_forward_hook(lambda module, given, out: None)
        net(x)
        assert net.forms()["conv2"].startswith("part by part, ")
        assert "its BN or neurons have hooks" in net.forms()["conv2"]
        handle.remove()
        use_backend(net, "reference")(x)
    assert "part by part, dense (the reference backend" in net.forms()["conv2"]


def _hook(module):
    module.register_forward_hook(lambda module, given, output: None)


@pytest.mark.parametrize(
    ("layer", "change", "form"),
    [
        ("c8k3s1-BN-PLIF", None, "fused, "),
        ("c8k1s2-BN-PLIF", None, "fused, "),
        ("c8k7s1-BN-PLIF", None, "its convolution is not 1x1, 3x3 or 5x5"),
        ("c8k3s3-BN-PLIF", None, "its convolution is not 1x1, 3x3 or 5x5"),
        ("c8k3s1-BN-PLIF", lambda block: _hook(block.conv), "its convolution has hooks"),
        ("c8k3s1-BN-PLIF", lambda block: _hook(block.norm), "its BN or neurons have hooks"),
        ("c8k3s1-BN-PLIF", lambda block: setattr(block.norm.bn, "momentum", None), "its BN is not affine with running"),
        ("c8k3s1-BN-PLIF", lambda block: _hook(block), "it has hooks, or is of another class"),
        ("c8k3s1-BN-ILIF", None, "its BN or neurons have hooks, fire integers"),
    ],
)  # fmt: skip
def test_a_layer_says_why_no_faster_form_ran(layer, change, form):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 9, 9), 3, 4, structure=f"c8k3s1-BN-PLIF-{layer}-FC3", backend="cpu")
    x = 3 * torch.rand(4, 2, 2, 9, 9)
    torch.manual_seed(1)
    expected = use_backend(net, "reference")(x)
    use_backend(net, "cpu")
    if change is not None:
        change(net.layers()["conv2"])
    torch.testing.assert_close(net(x), expected)
    assert form in net.forms()["conv2"]
    assert net.forms()["conv2"].startswith("part by part") == form.startswith(("its BN", "it has"))
