"""NIR graphs in other simulators."""

import contextlib
import io
import warnings

import nir
import pytest
import torch
import yaml

from benchmarks.step import make_fire
from plif_lightning import configs
from plif_lightning.convert import from_nir
from plif_lightning.deploy import fold, to_nir
from plif_lightning.deploy.nir import DT, readers_of
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, use_backend
from tests.deploy.conftest import STRUCTURES, frames, trained
from tests.deploy.test_frozen import patched

PER_CHANNEL = {"tau_per": "channel"}
# They multiply, add an input to itself, or pad a maximum.
REFUSED = ("products", "residual first", "windows", "rectangles")
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
    {"structure": "c8k3s1-BN-PLIF(v_reset=-0.5)-FC6-PLIF-FC3-PLIF"},
    PER_CHANNEL,
    {"neuron": "lif", **PER_CHANNEL},
    {"learn_threshold": True, **PER_CHANNEL},
    *({"structure": text} for kind, text in STRUCTURES.items() if kind not in REFUSED),
]
ONLY_OURS = {STRUCTURES["integral"], STRUCTURES["whole delays"]}


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
    reason = readers_of(net)[simulator]
    assert (f"{simulator} {reason}" in caplog.text) == (reason is not None)

    def run():
        module = SIMULATORS[simulator](tmp_path / "net.nir")
        found = listen(module, spikes)
        require_equal(run_steps(module, x), found, expected, spikes)

    if reason is None:
        run()
    else:  # it refuses the file, or gives something else
        with pytest.raises((AssertionError, AttributeError, KeyError, ValueError, RuntimeError)):
            run()


def test_every_kind_is_read_by_somebody():
    for kind in KINDS:
        found = readers_of(trained(**kind)).values()
        assert (None in found) == (kind.get("structure") not in ONLY_OURS)
    assert set(readers_of(trained()).values()) == {None}


def test_the_graph_is_checked_by_nir_itself(net):
    graph = to_nir(net)
    assert graph.check_types()
    assert [type(node).__name__ for node in graph.nodes.values()].count("LIF") == 6  # two implement max-pooling


def test_the_last_step_is_left_to_the_reader(caplog):
    net = SpikingNetwork((6,), 3, 4, structure="FC8-PLIF-FC3-LAST").eval()
    x = 3 * torch.rand(4, 2, 6)
    torch.testing.assert_close(from_nir(to_nir(net))(x)[-1:], net(x))
    assert "the numbers of every step: LAST" in caplog.text


def test_a_convolution_has_its_stride_padding_and_dilation():
    graph = to_nir(trained(structure="c4k3s2p2d3-BN-PLIF-c4k3s1x2p0d1x2-BN-PLIF-FC3-PLIF", shape=(2, 16, 16)))
    found = [(node.stride, node.padding, node.dilation) for name, node in graph.nodes.items() if name.endswith("_conv")]
    assert found == [((2, 2), (2, 2), (3, 3)), ((1, 2), (0, 0), (1, 2))]


def test_nir_time_constants_use_the_step_length(net):
    graph = to_nir(net, dt=1e-3)
    tau = net.encoder.conv1.neuron.tau.item()
    assert graph.nodes["conv1_neuron"].tau.flat[0] == pytest.approx(tau * 1e-3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"neuron": "if"}, "conv1 consists of IF with a hard reset, and NIR describes leaky neurons"),
        ({"reset": "soft"}, "conv1 consists of PLIF with a soft reset, and NIR describes leaky neurons"),
        ({"input_encoder": "poisson", "shape": (1, 12, 12)}, "input_encoder='poisson' cannot be part of a NIR graph"),
        ({"structure": STRUCTURES["products"]}, "res1 combines by AND, and NIR only adds: export ADD"),
        ({"structure": "c4k3s1-BN-PLIF-ADD(c4k3s1-BN-PLIF)-MPk2s2-FC3"}, "pool1 takes the maximum of what are not"),
        ({"structure": STRUCTURES["windows"]}, "conv1 takes the maximum of what are not spikes, or pads it"),
    ],
    ids=str,
)
def test_unsupported_nir_layers_are_named(kind, message):
    with pytest.raises(UserError, match=message):
        to_nir(trained(**kind))


def halve(module, given, output):
    return output / 2


HOOKS = {
    "block": lambda net: net.encoder.conv2.register_forward_hook(halve),
    "FC": patched("classifier.fc1.fc"),
    "convolution": patched("encoder.conv2.conv"),
    "encoder": lambda net: net.encoder.register_forward_hook(halve),
    "residual block": lambda net: net.encoder.res1.register_forward_hook(halve),
}


def test_the_blocks_of_sew_resnet_18_fire_every_spike_in_spikingjelly(tmp_path):
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
