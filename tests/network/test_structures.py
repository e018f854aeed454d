"""Networks beyond the paper's, from their structure: every form of them, and SpikingJelly's models of the same name.

Their places and shapes are those of `plif_lightning.structure.layers` and `plif_lightning.structure.shapes`.
"""

from typing import get_args

import pytest
import torch
import yaml
from torch.nn import functional

from benchmarks.step import make_fire
from plif_lightning import configs
from plif_lightning.deploy import StreamingNetwork, cost, deployed, fold
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, step, traces, use_backend
from plif_lightning.neurons import CLIF, LIF, PLIF
from plif_lightning.neurons.making import NeuronName
from plif_lightning.structure import NEURONS
from tests.deploy.conftest import STRUCTURES, frames, trained

NETWORKS = configs.folder() / "networks"


def small(kind, **changes):
    torch.manual_seed(0)
    settings = {"pool_ties": "first", "dropout": 0.0, "v_threshold": 0.1, **changes}
    net = SpikingNetwork((2, 12, 12), 3, 4, structure=STRUCTURES[kind], **settings)
    make_fire(net)
    for layer in net.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.BatchNorm1d)):
            (layer.weight if layer.bias is None else layer.bias).data.add_(0.1)
    return net


@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("sparse", ["never", "always"])
def test_the_kernels_give_the_votes_and_gradients_of_the_reference(kind, static, sparse):
    results = []
    x = torch.randn(3, 2, 12, 12) if static else torch.poisson(torch.full((4, 3, 2, 12, 12), 0.4))
    for backend in ("reference", "cpu"):
        net = small(kind, backend=backend, sparse=sparse if backend == "cpu" else "never").double()
        use_backend(net, backend, "never")
        if backend == "cpu":
            net = use_backend(small(kind).float(), "cpu", sparse)
        votes = net(x.to(next(net.parameters()).dtype))
        votes.square().mean().backward()
        results.append((votes.detach().double(), [p.grad.double() for p in net.parameters()]))
    (expected, expected_grads), (votes, grads) = results
    # A potential at the threshold may round to the other side; none of these does.
    torch.testing.assert_close(votes, expected, atol=1e-4, rtol=1e-4)
    for one, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_static_images_are_frames_that_do_not_change(kind):
    net = small(kind).eval()
    x = torch.randn(3, 2, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(x.expand(4, *x.shape)))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_sequence_may_be_cut_anywhere(kind):
    net = trained(structure=STRUCTURES[kind])
    x, state, votes = frames(net), None, []
    with torch.no_grad():
        for frame in x:
            y, state = step(net, frame, state)
            votes.append(y)
        torch.testing.assert_close(torch.stack(votes), net(x))
    whole, found = traces(net, x)
    torch.testing.assert_close(whole, net(x))
    assert len(found) == len(list(net.neurons()))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_folded_and_a_deployed_network_vote_the_same(kind):
    net = trained(structure=STRUCTURES[kind])
    x = frames(net)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(fold(net)(x), expected)
        made = deployed(net)
        torch.testing.assert_close(made(x), expected)
        state, votes = None, []
        for frame in x:
            y, state = made.step(frame, state)
            votes.append(y)
        torch.testing.assert_close(torch.stack(votes), expected)
        assert made(x[:, :0]).shape == (4, 0, 3)
        heard = {}
        with made.record_spikes(heard.__setitem__):
            made(x)
    assert [*heard] == [name for name, _ in net.neurons()]
    stream = StreamingNetwork(net)
    for frame in x:
        running = stream.step(frame)
    torch.testing.assert_close(running.float(), expected.mean(0))


@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_cost_of_every_layer_is_counted(kind):
    net = trained(structure=STRUCTURES[kind])
    found = cost(net, frames(net))
    layers = {layer.layer: layer for layer in found.layers}
    recurrent = {"fc1.recurrent"} if "RFC" in STRUCTURES[kind] else set()
    assert {name for name in net.layers() if not name.startswith("pool")} | recurrent == layers.keys()
    assert found.total("parameters") == sum(
        p.numel() for name, p in net.named_parameters() if ".bn." not in name
    )  # fmt: skip
    assert all(layer.accumulates == 0 for name, layer in layers.items() if name == "conv1")
    if kind == "residual":  # what follows a sum takes no spikes
        assert not layers["conv3"].spikes
        assert layers["conv4"].spikes


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # PyTorch's compiler looks at it
def test_it_compiles_to_the_same_votes_and_gradients():
    """`tests/layers/test_plan.py` counts the graphs that are compiled."""
    kind, x, results = "sums before neurons", torch.rand(4, 2, 2, 12, 12), []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = SpikingNetwork((2, 12, 12), 3, 4, structure=STRUCTURES[kind], dropout=0.0)
        if compiled:
            torch._dynamo.reset()
            net.compile(backend="aot_eager")
        torch.manual_seed(1)
        votes = net(x)
        votes.sum().backward()
        results.append([votes.detach(), *(p.grad for p in net.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_layers_can_have_different_neurons_and_arguments():
    text = "c4k3s1-BN-PLIF(init_tau=3.0)-c4k3s1-BN-LIF-c4k3s1-BN-CLIF(k=0.3)-FC4-PLIF-FC2"
    net = SpikingNetwork((1, 8, 8), 2, 4, structure=text, init_tau=5.0, v_threshold=0.7)
    one, two, three, four = (neuron for _, neuron in net.neurons())
    assert isinstance(one, PLIF)
    assert isinstance(two, LIF)
    assert isinstance(three, CLIF)
    assert one.tau.item() == pytest.approx(3.0)
    assert two.tau.item() == four.tau.item() == pytest.approx(5.0)
    assert three.k.item() == pytest.approx(0.3)
    assert all(neuron.firing.v_threshold == 0.7 for _, neuron in net.neurons())
    assert str(net.structure) == text
    replaced = SpikingNetwork((1, 8, 8), 2, 4, structure=text, neuron="lif", pooling="avg")
    assert str(replaced.structure) == text.replace("PLIF", "LIF")
    for wrong, message in (
        ("PLIF(init_tau=0.5)", "init_tau must be > 1"),
        ("CLIF(alpha=0.5)", "CLIF has no argument alpha"),
        ("no_such_file.Neuron", "neuron no_such_file.Neuron cannot be imported"),
        ("torch.nn.Linear", "is not a subclass of plif_lightning.Neuron"),
    ):
        with pytest.raises(UserError, match=message):
            SpikingNetwork((1, 8, 8), 2, 4, structure=f"c4k3s1-BN-{wrong}-FC2")


def test_structure_arguments_override_the_neurons_defaults():
    text = "FC4-PLIF(init_tau=3.0)-FC4-PLIF-FC2"
    for kind in (LIF(init_tau=5.0), {"class_path": "plif_lightning.LIF", "init_args": {"init_tau": 5.0}}):
        net = SpikingNetwork((1, 2, 2), 2, 4, structure=text, neuron=kind)
        assert [neuron.tau.item() for _, neuron in net.neurons()] == pytest.approx([3.0, 5.0])


def test_the_notation_knows_every_neuron_with_a_name():
    assert [name.lower() for name in NEURONS] == list(get_args(NeuronName))


def test_average_pooling_replaces_all_max_pools():
    net = SpikingNetwork(
        (1, 12, 12), 2, 4, structure="c4k3s1-BN-PLIF-MPk2s2-c4k3s1-BN-PLIF-MPk3s2p1-MP-FC2", pooling="avg"
    )
    assert str(net.structure) == "c4k3s1-BN-PLIF-APk2s2-c4k3s1-BN-PLIF-APk3s2p1-AP-FC2"


# --- pools


# --- configs/networks


def read(name):
    return yaml.safe_load((NETWORKS / f"{name}.yaml").read_text())["model"]["structure"]


@pytest.mark.parametrize("name", sorted(path.stem for path in NETWORKS.glob("*.yaml")))
def test_a_shipped_network_is_read_and_runs(name):
    of_data = name.removeprefix("plif_")
    shape, classes = configs.INPUTS.get(of_data, ((3, 32, 32), 10))
    text = read(name)
    if name != of_data:
        assert configs.shipped_settings()[of_data]["model"]["structure"] == text
    net = SpikingNetwork(shape, classes, 2, structure=text)
    assert str(net.structure) == text
    with torch.no_grad():
        assert net(torch.rand(2, 2, *shape)).shape == (2, 2, classes)


def sew_resnet18(**settings):
    """SpikingJelly's, with a 3x3 stem."""
    from spikingjelly.activation_based import layer
    from spikingjelly.activation_based.model import sew_resnet

    net = sew_resnet.sew_resnet18(cnf="ADD", num_classes=10, **settings)
    net.conv1, net.maxpool = layer.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    return net


def ms_resnet18(**settings):
    """SpikingJelly's, with a 3x3 stem and without a stride in the first stage."""
    from spikingjelly.activation_based.model import ms_resnet

    class Small(ms_resnet.MSResNet):
        _first_stage_stride = 1

    return Small(T=4, num_classes=10, stem_kernel_size=3, stem_stride=1, decay_input=True, tau=2.0, **settings)


@pytest.mark.parametrize("name", ["sew_resnet18", "ms_resnet18"])
def test_a_residual_network_is_spikingjellys_spike_for_spike(name):
    pytest.importorskip("spikingjelly.activation_based", reason="test extra `bench`")
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import neuron, surrogate

    settings = {"surrogate_function": surrogate.ATan(), "detach_reset": True, "v_threshold": 1.0}
    kind = neuron.ParametricLIFNode if name == "sew_resnet18" else neuron.LIFNode
    theirs = globals()[name](spiking_neuron=kind, **settings)
    sj.set_step_mode(theirs, "m")
    ours = SpikingNetwork(
        (3, 32, 32), 10, 4, structure=read(name), norm_statistics="all_steps", pool_ties="first",
        neuron="plif" if name == "sew_resnet18" else "lif",
    )  # fmt: skip
    make_fire(theirs)
    own, of_theirs = list(ours.parameters()), list(theirs.parameters())
    assert [p.numel() for p in own] == [p.numel() for p in of_theirs]
    with torch.no_grad():
        for p, q in zip(own, of_theirs, strict=True):
            p.copy_(q.view(p.shape))
    x = torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for net in (ours, theirs):
        net.double().train()
    votes, expected = ours(x.double()), theirs(x.double())
    if expected.dim() == 2:  # of MS-ResNet, the mean
        votes, expected = votes.mean(0)[None], expected[None]
    torch.testing.assert_close(votes, expected)
    functional.cross_entropy(votes.mean(0), torch.tensor([1, 2])).backward()
    functional.cross_entropy(expected.mean(0), torch.tensor([1, 2])).backward()
    for p, q in zip(own, of_theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad.view(p.shape))


def test_resnet_19_has_the_papers_layers():
    with torch.device("meta"):
        net = SpikingNetwork((3, 32, 32), 10, 4, structure=read("resnet19"))
    found = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d)]
    convs = [(one.in_channels, one.out_channels, one.kernel_size[0], one.stride[0]) for one in found]
    assert sum(kernel == 3 for *_, kernel, _ in convs) == 17  # and two FC layers
    assert [one for one in convs if one[2] == 1] == [(128, 256, 1, 2), (256, 512, 1, 2)]
    assert [m.weight.shape for m in net.modules() if isinstance(m, torch.nn.Linear)] == [(256, 512), (10, 256)]
    assert sum(p.numel() for p in net.parameters()) == 12_698_012


def test_vgg_11_has_spikingjellys_parameters():
    spiking_vgg = pytest.importorskip("spikingjelly.activation_based.model.spiking_vgg", reason="test extra `bench`")
    from spikingjelly.activation_based import neuron

    with torch.device("meta"):
        ours = SpikingNetwork((3, 224, 224), 10, 4, structure=read("vgg11"))
        theirs = spiking_vgg.spiking_vgg11_bn(num_classes=10, spiking_neuron=neuron.ParametricLIFNode)
    convs = [part for part in theirs.modules() if isinstance(part, torch.nn.Conv2d)]
    idle = {conv.bias for conv in convs}  # biases that BN takes away again
    assert [p.numel() for p in ours.parameters()] == [p.numel() for p in theirs.parameters() if p not in idle]


class Slow(PLIF):
    def __init__(self, init_tau: float = 8.0, **settings):
        super().__init__(init_tau, **settings)


def test_network_without_neurons_runs_single_steps():
    net = SpikingNetwork((1, 4, 4), 3, 5, structure="c4k3s1-BN-FC3-LI(init_tau=3.0)").eval()
    x, state, outputs = torch.rand(5, 2, 1, 4, 4), None, []
    with torch.no_grad():
        for frame in x:
            y, state = step(net, frame, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs), net(x))
    plain = SpikingNetwork((1, 4, 4), 3, 5, structure="c4k3s1-BN-FC3").eval()
    assert step(plain, x[0])[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "c4k3s1-BN-IF(init_tau=3.0)-FC3"}, "init_tau=3.0 has no meaning for IF"),
        ({"structure": "c4k3s1-BN-PLIF(init_tau=3.0)-FC3", "neuron": "if"}, "init_tau=3.0 has no meaning for IF"),
        ({"structure": "c4k3s1-BN-PLIF-MPk2s2-DP-FC20-PLIF-APk10s10", "channels": 8}, "FC20, gives 2 classes"),
        ({"structure": "c4k3s1-BN-PLIF-MPk2s2-DP-FC30-PLIF-APk10s10", "fc_features": 8}, "fc_features=8 has no layer"),
        ({"n_fc": 1, "fc_features": 7}, "fc_features=7 has no layer"),
        ({"structure": "c4k3s1-BN-PLIF-FC3", "dropout": [0.1]}, "dropout must be one number or n_fc = 0 of them"),
    ],
)
def test_settings_without_effect_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SpikingNetwork((1, 9, 9), 3, 2, **arguments)


def test_no_input_of_the_network_is_counted_as_spikes():
    net = SpikingNetwork((2, 6, 6), 3, 4, structure="ADD(c2k3s1-BN-PLIF|c2k1s1-BN-PLIF)-c2k3s1-BN-PLIF-FC3").eval()
    events = torch.rand(4, 2, 2, 6, 6).gt(0.5).float()
    found = {layer.layer: layer.spikes for layer in cost(net, events).layers}
    assert not found["conv1"]
    assert not found["conv2"]


def test_a_time_constant_of_2_that_a_layer_names_is_no_default():
    text = f"c4k3s1-BN-{Slow.__module__}.Slow{{}}-FC3"
    for own, tau in (("", 8.0), ("(init_tau=2.0)", 2.0), ("(init_tau=3.0)", 3.0)):
        net = SpikingNetwork((1, 4, 4), 3, 5, structure=text.format(own))
        assert net.encoder.conv1.neuron.tau.item() == pytest.approx(tau)


def test_a_product_with_counts_of_events_is_no_layer_of_spikes():
    net = trained(structure="AND(c2k3s1-BN-PLIF)-FC6-PLIF-APk2s2")
    x = 3 * frames(net)
    with torch.no_grad():
        torch.testing.assert_close(deployed(net)(x), net(x))
    assert net.forms()["fc1"].endswith("(its input is not spikes)")
