"""NIR graphs in other simulators, and other NIR graphs here."""

import contextlib
import io
import itertools
import warnings

import nir
import numpy as np
import pytest
import torch
import yaml

from plif_lightning import configs
from plif_lightning.deploy import NIRNetwork, fold, to_nir
from plif_lightning.deploy.nir import DT, readers
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, use_backend
from plif_lightning.neurons import LIF
from tests.benchmarks.step import make_fire
from tests.deploy.conftest import STRUCTURES, frames, trained
from tests.deploy.test_engine import CHANGES, patched

PER_CHANNEL = {"tau_per": "channel"}
KINDS = [
    {},
    {"n_conv": 2, "shape": (2, 13, 11)},
    {"n_fc": 3, "classes": 5, "votes_per_class": 1},
    {"pooling": "avg"},
    {"neuron": "lif", "init_tau": 3.0},
    {"v_threshold": 0.8},
    {"learn_threshold": True},
    {"v_reset": -0.5},
    {"v_reset": 0.3},
    PER_CHANNEL,
    {"neuron": "lif", **PER_CHANNEL},
    {"learn_threshold": True, **PER_CHANNEL},
    *({"structure": text} for kind, text in STRUCTURES.items() if kind not in ("products", "residual first")),
]
ONLY_OURS = {STRUCTURES["integral"]}


def spikes_here(net, x):
    """Votes, and the spikes of every layer by name."""
    folded, found = use_backend(fold(net), "reference"), {}
    for name, neuron in folded.neurons():
        neuron.register_forward_hook(lambda module, given, out, name=name: found.__setitem__(name, out))
    with torch.no_grad():
        return folded(x), found


def listen(module, names):
    """Outputs of an imported graph's neurons at each step, by their layer names in this project."""
    found = {name: [] for name in names}
    for name, part in module.named_modules():
        of = name.split(".")[-1]
        if of.endswith("_neuron"):
            part.register_forward_hook(
                lambda module, given, out, of=of: found[of.removesuffix("_neuron")].append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
    return found


def run_steps(module, x):
    """Votes [T, N, C] of a simulator that maps (frame, state) to (votes, state)."""
    state, votes = None, []
    with torch.no_grad():
        for frame in x:
            y, state = module(frame, state)
            votes.append(y)
    return torch.stack(votes)


def require_equal(votes, found, expected, spikes):
    for name, of_layer in spikes.items():
        assert 0 < of_layer.sum() < of_layer.numel()
        assert torch.equal(torch.stack(found[name]).view_as(of_layer), of_layer), name
    torch.testing.assert_close(votes, expected)


def in_spikingjelly(file):
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange", reason="test extra `bench`")
    return exchange.import_from_nir(str(file))


def in_snntorch(file):
    importer = pytest.importorskip("snntorch.import_nir", reason="test extra `bench`")
    with contextlib.redirect_stdout(io.StringIO()):
        return importer.import_from_nir(nir.read(file))


def in_norse(file):
    norse = pytest.importorskip("norse.torch", reason="test extra `bench`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised by the nirtorch that Norse 1.1.0 calls
        return norse.from_nir(nir.read(file), dt=DT)


SIMULATORS = {"SpikingJelly": in_spikingjelly, "snnTorch": in_snntorch, "Norse": in_norse}


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_simulators_fire_every_spike_or_are_named(kind, simulator, tmp_path, caplog):
    net = trained(**kind)
    x = frames(net)
    expected, spikes = spikes_here(net, x)
    nir.write(tmp_path / "net.nir", to_nir(net))
    reason = readers(net)[simulator]
    assert (f"{simulator} {reason}" in caplog.text) == (reason is not None)

    def run():
        module = SIMULATORS[simulator](tmp_path / "net.nir")
        found = listen(module, spikes)
        require_equal(run_steps(module, x), found, expected, spikes)

    if reason is None:
        run()
    else:  # it refuses the file, or gives something else
        with pytest.raises((AssertionError, KeyError, ValueError, RuntimeError)):
            run()


def test_every_kind_is_read_by_somebody():
    for kind in KINDS:
        found = readers(trained(**kind)).values()
        assert (None in found) == (kind.get("structure") not in ONLY_OURS)
    assert set(readers(trained()).values()) == {None}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_our_own_files_come_back_spike_by_spike(kind, tmp_path):
    net = trained(**kind)
    x = frames(net)
    expected, spikes = spikes_here(net, x)
    nir.write(tmp_path / "net.nir", to_nir(net))
    module = NIRNetwork(tmp_path / "net.nir")
    found = listen(module, spikes)
    with torch.no_grad():
        votes = module(x)
    require_equal(votes, {name: list(of[0]) for name, of in found.items()}, expected, spikes)


def test_the_graph_is_checked_by_nir_itself(net):
    graph = to_nir(net)
    assert graph.check_types()
    assert [type(node).__name__ for node in graph.nodes.values()].count("LIF") == 6  # two implement max-pooling


def test_seconds_are_those_of_a_step(net):
    graph = to_nir(net, dt=1e-3)
    tau = net.encoder.conv1.neuron.tau.item()
    assert graph.nodes["conv1_neuron"].tau.flat[0] == pytest.approx(tau * 1e-3)
    x = frames(net)
    torch.testing.assert_close(NIRNetwork(graph, dt=1e-3)(x), fold(net)(x))


def foreign(dt=1e-4):
    """A graph like those that sinabs exports, with nodes that ours lack, and the same computed by hand."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 2, 3, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    out = rng.normal(size=(2, 12)).astype(np.float32)
    two = np.array([2, 2])
    nodes = {
        "input": nir.Input(np.array([2, 8, 8])),
        "0": nir.Conv2d((8, 8), weight, 2, 1, 1, 1, bias),
        "1": nir.IF(np.full((3, 4, 4), 1 / dt), np.ones((3, 4, 4))),
        "2": nir.SumPool2d(two, two, np.array([0, 0])),
        "3": nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
        "4": nir.Affine(out, np.zeros(2, np.float32)),
        "output": nir.Output(np.array([2])),
    }
    names = list(nodes)
    return nir.NIRGraph(nodes, list(itertools.pairwise(names))), weight, bias, out


def test_a_foreign_graph_runs():
    graph, weight, bias, out = foreign()
    x = torch.rand(5, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    v, expected = torch.zeros(2, 3, 4, 4), []
    for frame in x:
        v = v + torch.nn.functional.conv2d(frame, torch.tensor(weight), torch.tensor(bias), stride=2, padding=1)
        spikes = (v > 1).float()
        v = v * (1 - spikes)
        pooled = 4 * torch.nn.functional.avg_pool2d(spikes, 2)
        expected.append(pooled.flatten(1) @ torch.tensor(out).T)
    assert torch.stack(expected).any()
    torch.testing.assert_close(NIRNetwork(graph)(x), torch.stack(expected))


def test_nodes_may_be_called_anything():
    two, three = (nir.Scale(np.full(4, value, np.float32)) for value in (2, 3))
    nodes = {"input": nir.Input(np.array([4])), "a.b": two, "a_b": three, "forward": two}
    nodes["output"] = nir.Output(np.array([4]))
    x = torch.ones(1, 1, 4)
    assert torch.equal(NIRNetwork(nir.NIRGraph(nodes, list(itertools.pairwise(nodes))))(x), 12 * x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"neuron": "if"}, "conv1 has no leak"),
        ({"reset": "soft"}, "conv1 resets by subtraction"),
        ({"input_encoder": "poisson", "shape": (1, 12, 12)}, "input_encoder='poisson' cannot be part of a NIR graph"),
        ({"structure": STRUCTURES["products"]}, "res1 combines by AND, and NIR only adds: export ADD"),
        ({"structure": "c4k3s1-BN-PLIF-ADD(c4k3s1-BN-PLIF)-MPk2s2-FC3"}, "pool1 takes the maximum of what are not"),
    ],
    ids=str,
)
def test_what_nir_has_no_words_for_is_said(kind, message):
    with pytest.raises(UserError, match=message):
        to_nir(trained(**kind))


class NoDecay(LIF):
    def charge(v, x, k):  # noqa: N805
        return (1 - k) * v + x


class Times3(torch.nn.Module):
    def forward(self, x):
        return 3 * x


class Inverted(SpikingNetwork):
    def forward(self, x):
        return super().forward(1 - x)


def halve(module, given, output):
    return output / 2


OTHERS = {
    **{kind: CHANGES[kind][0] for kind in ("reflected", "own neuron", "hook", "own block", "own FC block")},
    **{kind: CHANGES[kind][0] for kind in ("patched block", "patched FC")},
    "patched convolution": patched("encoder.conv2.conv"),
    "own equations": lambda net: setattr(net.encoder.conv1, "neuron", NoDecay()),
    "own forward": lambda net: setattr(net, "__class__", Inverted),
    "hook on the encoder": lambda net: net.encoder.register_forward_hook(halve),
    "hook on the network": lambda net: net.register_forward_hook(halve),
    "hook on the votes": lambda net: net.voting.register_forward_hook(halve),
    "other votes": lambda net: setattr(net, "voting", Times3()),
    "other dropout": lambda net: setattr(net.classifier.fc1, "dropout", Times3()),
    "hook on a residual block": lambda net: net.encoder.res1.register_forward_hook(halve),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_part_of_another_kind_is_not_written(kind):
    net = trained(**({"structure": STRUCTURES["residual"]} if "residual" in kind else {}))
    to_nir(net)
    OTHERS[kind](net)
    with pytest.raises(UserError, match=r"cannot be (written|folded)|is not a plain"):
        to_nir(net)


@pytest.mark.parametrize(
    "pool",
    [
        torch.nn.AvgPool2d(2, 2, divisor_override=2),
        torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        torch.nn.AvgPool2d(5, 3, ceil_mode=True),
        torch.nn.AdaptiveAvgPool2d(3),
    ],
    ids=str,
)
def test_a_pool_of_another_kind_is_not_written(net, pool):
    net.encoder.conv1.pool.pool = pool
    with pytest.raises(UserError, match="conv1 has a pool without NIR equivalent: A"):
        to_nir(net)


def test_a_kernel_that_cannot_be_filled_up_to_a_square_is_named():
    with pytest.raises(UserError, match="conv1 has a kernel of 3x2, and NIR's reader takes kernels for squares"):
        to_nir(trained(structure="c4k3x2s1-BN-PLIF-FC3-PLIF"))


def test_other_graphs_are_refused(tmp_path, net):
    (tmp_path / "no.nir").write_text("no")
    with pytest.raises(UserError, match=r"no\.nir cannot be read as a NIR graph"):
        NIRNetwork(tmp_path / "no.nir")
    graph = to_nir(net)
    graph.edges.append(("fc1_neuron", "fc1_fc"))
    with pytest.raises(UserError, match="has a cycle, fc1_fc -> fc1_neuron -> fc1_fc"):
        NIRNetwork(graph)
    graph, *_ = foreign()
    graph.nodes["1"] = nir.CubaLIF(*[np.ones((3, 4, 4))] * 5)
    with pytest.raises(UserError, match="1 is a CubaLIF, which is not supported"):
        NIRNetwork(graph)


def test_what_is_added_twice_is_refused():
    net = trained(structure="c4k3s1-BN-PLIF-ADD(ADD(c4k3s1-BN-PLIF))-PLIF-FC3")
    with pytest.raises(UserError, match="res1 adds the output of conv1_neuron twice, which NIR cannot write"):
        to_nir(net)


def test_sew_resnet_18_fires_every_spike_in_spikingjelly(tmp_path):
    structure = yaml.safe_load((configs.folder() / "networks/sew_resnet18.yaml").read_text())["model"]["structure"]
    torch.manual_seed(0)
    net = SpikingNetwork((3, 32, 32), 10, 3, structure=structure, pool_ties="first")
    make_fire(net)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.3  # so that its running statistics are those of few batches
    x = torch.randn(3, 1, 3, 32, 32)
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(3, 2, 3, 32, 32))
    net.eval()
    expected, spikes = spikes_here(net, x)
    nir.write(tmp_path / "net.nir", to_nir(net))
    module = in_spikingjelly(tmp_path / "net.nir")
    found = listen(module, spikes)
    require_equal(run_steps(module, x), found, expected, spikes)
