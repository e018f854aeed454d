"""Networks of SpikingJelly, moved here: outputs and gradients in float64, old weights, and what is kept or refused."""

import copy
import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plif_lightning as pl
from plif_lightning.convert import proof
from plif_lightning.convert.blocks import Replacement
from plif_lightning.convert.converted import Converted
from plif_lightning.convert.surrogates import SURROGATES
from plif_lightning.errors import UserError
from plif_lightning.layers.blocks import NormBlock
from plif_lightning.layers.plan import ConvBlock
from plif_lightning.layers.pooling import TimeDropout
from plif_lightning.neurons.published import UndecayedLIF
from tests.processes import on_two_processes

sj = pytest.importorskip("spikingjelly.activation_based", reason="test extra `bench`")
from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: E402
from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spiking_vgg  # noqa: E402

from tests.convert.spikingjelly_nets import Doubled, Stage, random_network, results_of  # noqa: E402

NODES = {
    "if": (neuron.IFNode, {}),
    "lif": (neuron.LIFNode, {"tau": 3.0}),
    "lif soft": (neuron.LIFNode, {"v_reset": None, "surrogate_function": surrogate.Rect(0.7)}),
    "lif undecayed": (neuron.LIFNode, {"decay_input": False, "v_reset": -0.2, "detach_reset": True}),
    "plif": (neuron.ParametricLIFNode, {"init_tau": 1.5, "surrogate_function": surrogate.ATan(3.0)}),
    "plif undecayed": (neuron.ParametricLIFNode, {"decay_input": False, "v_threshold": 0.8}),
    "qif": (neuron.QIFNode, {"a0": 0.7, "surrogate_function": surrogate.SoftSign(3.0)}),
    "eif": (neuron.EIFNode, {"delta_T": 0.6, "v_rest": 0.1, "theta_rh": 0.9}),
    "klif": (neuron.KLIFNode, {"surrogate_function": surrogate.PiecewiseQuadratic(0.5)}),
    "klif undecayed": (neuron.KLIFNode, {"decay_input": False}),
    "clif": (neuron.ComplementaryLIFNode, {"tau": 2.5}),
}


def excited(net):
    """A network whose layers fire."""
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
            nn.init.constant_(part.weight, 2.0)
            nn.init.uniform_(part.bias, 0.0, 1.0)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 3 / part.in_features**0.5)
    return net


def same_masks(net):
    """Dropout draws by the shape alone, since each library draws masks of its own."""
    for part in net.modules():
        if isinstance(part, layer.Dropout):
            part.create_mask = proof._fixed_mask.__get__(part)
        elif isinstance(part, TimeDropout):
            part._mask = proof._fixed_mask_of_steps.__get__(part)
    return net


def require_equal(net, converted, x):
    """Outputs, gradients and running statistics of two training steps, and an evaluation, in float64."""
    theirs, ours = results_of(same_masks(net), x), results_of(same_masks(converted), x)
    assert theirs[0]["output"].unique().numel() > 1
    names = {name: here for name, (here, _) in converted.names.items()}
    for before, here in zip(theirs, ours, strict=True):
        largest = max(value.abs().max().item() for value in before.values())
        for name, value in before.items():
            own, _, kind = name.partition(" ")
            found = here[name if name in here else f"{names[own]} {kind}".strip()].reshape(value.shape)
            torch.testing.assert_close(found, value, rtol=1e-7, atol=1e-9 * largest, msg=lambda m, n=name: f"{n}: {m}")


def stack(node, **settings):
    net = nn.Sequential(
        layer.Conv2d(2, 5, 3, padding=1, bias=False), layer.BatchNorm2d(5), node(**settings), layer.MaxPool2d(2, 2),
        layer.Flatten(), layer.Dropout(0.4), layer.Linear(5 * 9, 12), node(**settings), layer.Linear(12, 3, bias=False),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


def frames(*shape, steps=5):
    return 2 * torch.rand(steps, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", NODES)
def test_a_node_is_the_same_neuron(name, with_example):
    torch.manual_seed(0)
    kind, settings = NODES[name]
    net, x = excited(stack(kind, **settings).double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, *[x] * with_example)
    compared = "equal on the example" if with_example else "not compared"
    assert str(converted.conversion) == f"2 nodes in blocks, 0 alone, 0 kept; {compared}"
    blocks = [type(part).__name__ for part in converted.modules() if type(part).__name__.endswith("Block")]
    assert blocks == ["ConvBlock", "FCBlock", "FCBlock"]
    require_equal(net, converted, x)


@pytest.mark.parametrize("with_example", [False, True])
def test_containers(with_example):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)),
        layer.MultiStepContainer(neuron.LIFNode(), nn.AdaptiveMaxPool2d(3), nn.BatchNorm2d(5), layer.Dropout(0.2)),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(5 * 9, 6)),
        neuron.LIFNode(step_mode="m"), layer.VotingLayer(2, step_mode="m"),
    )  # fmt: skip
    net[0][1].eval()  # frozen, while the others train
    net, x = excited(net.double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, *[x] * with_example)
    assert list(converted.conversion.kept) == ["1.0"]  # single steps
    assert not with_example or converted.conversion.blocks == ["3"]
    require_equal(net, converted, x)


MODELS = {
    "spiking_vgg11_bn": (lambda **s: spiking_vgg.spiking_vgg11_bn(num_classes=4, **s), (3, 32, 32)),
    "spiking_vgg11": (lambda **s: spiking_vgg.spiking_vgg11(num_classes=4, **s), (3, 32, 32)),
    "sew_resnet18": (lambda **s: sew_resnet.sew_resnet18(cnf="ADD", num_classes=4, **s), (3, 32, 32)),
    "sew_resnet50 IAND": (lambda **s: sew_resnet.sew_resnet50(cnf="IAND", num_classes=4, **s), (3, 32, 32)),
    "MNIST": (lambda **s: parametric_lif_net.MNISTNet(8, **s), (1, 28, 28)),
    "CIFAR10": (lambda **s: parametric_lif_net.CIFAR10Net(8, **s), (3, 32, 32)),
    "DVSGesture": (lambda **s: parametric_lif_net.DVSGestureNet(8, **s), (2, 128, 128)),
}
LARGE = ("sew_resnet18", "spiking_vgg11_bn", "spiking_vgg11", "sew_resnet50 IAND", "CIFAR10", "DVSGesture")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in MODELS]
)
def test_untrained_silent_networks_form_blocks(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    net = make(spiking_neuron=neuron.ParametricLIFNode, surrogate_function=surrogate.ATan())
    functional.set_step_mode(net, "m")
    converted = pl.from_spikingjelly(net, frames(*shape, steps=2).float())
    nodes = sum(isinstance(part, neuron.ParametricLIFNode) for part in net.modules())
    assert str(converted.conversion) == f"{nodes} nodes in blocks, 0 alone, 0 kept; equal on the example"


def conversion_of(seed, with_example):
    net, x = random_network(seed)
    try:
        converted = pl.from_spikingjelly(net, *[x] * with_example)
        copy.deepcopy(converted)(x)
    except (UserError, AttributeError):  # a forward may ask a node for its potential
        return None
    require_equal(net, converted, x)
    return converted


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("seeds", [range(24), pytest.param(range(24, 324), marks=pytest.mark.slow)], ids=len)
def test_random_networks_are_equal_or_refused(seeds, with_example):
    found = [conversion_of(seed, with_example) for seed in seeds]
    converted = [one for one in found if one is not None]
    assert len(converted) > 0.8 * len(found)
    # Without an example only those of plain Sequentials, a third of the networks, form blocks.
    assert sum(bool(one.conversion.blocks) for one in converted) > (0.5 if with_example else 0.25) * len(found)


@pytest.mark.parametrize("kind", ["dropout", "mode", "two nodes", "pool first", "residual", "twice"])
def test_custom_forward_keeps_running_with_blocks(kind, monkeypatch):
    """Functional dropout, `self.training`, a node that is called twice."""
    monkeypatch.setattr(Stage, "KINDS", (kind,))
    net, x = random_network(7)
    for stage in (net.first, net.second):
        stage.node = stage.other = None
        stage.node, stage.other = (neuron.LIFNode(step_mode="m", v_threshold=0.5) for _ in range(2))
    converted = pl.from_spikingjelly(net, x)
    assert not converted.conversion.reason
    assert len(converted.conversion.blocks) >= 1
    assert list(converted.conversion.kept) == (["first.node", "second.node"] if kind == "twice" else [])
    require_equal(net, converted, x)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.node = layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode()
        self.fc, self.last = layer.Linear(4 * 36, 3), neuron.LIFNode()
        functional.set_step_mode(self, "m")
        excited(self.double())

    def forward(self, x):
        return self.last(self.fc(self.node(self.bn(self.conv(x))).flatten(2)))


class Tapped(Small):
    def forward(self, x):
        y = self.conv(x)
        return self.last(self.fc((self.node(self.bn(y)) + 0.1 * y).flatten(2)))


class Unbounded(Tapped):
    """Goes another way in an evaluation; infinite beside its votes."""

    def forward(self, x):
        y = Small.forward(self, x) if self.training else super().forward(x)
        return torch.cat([y, torch.full_like(y[..., :1], torch.inf)], -1)


class Silent(Small):
    def forward(self, x):
        return self.last(self.fc(self.node(-self.bn(self.conv(x)).relu()).flatten(2)))


class Detour(Small):
    def forward(self, x):
        y = self.conv(x)
        y = y + 1 if x.mean() > 5 else y
        return self.last(self.fc(self.node(self.bn(y)).flatten(2)))


class Shortcut(Small):
    def forward(self, x):
        y = self.conv(x)
        return self.last(self.fc(self.node(y if x.mean() > 5 else self.bn(y)).flatten(2)))


class Keeps(Small):
    def forward(self, x):
        self.feature = self.conv(x)
        return self.last(self.fc(self.node(self.bn(self.feature)).flatten(2)))


class Regularised(Keeps):
    def forward(self, x):
        y = super().forward(x)
        self.loss = self.feature.square().mean()
        return y


class Repeats(Small):
    T = 4

    def forward(self, x):
        return super().forward(x.expand(self.T, *x.shape))


@pytest.mark.parametrize(("kind", "reason"), [(Silent, "node fires in 0 % of its outputs, which proves nothing: pass")])
def test_unproved_blocks_fall_back_to_nodes_with_a_warning(kind, reason, caplog):
    torch.manual_seed(0)
    net, x = kind(), frames(2, 6, 6)
    with caplog.at_level(logging.WARNING):
        converted = pl.from_spikingjelly(net, x)
    (record,) = (one for one in caplog.records if one.name == "plif_lightning.convert.spikingjelly")  # no compiler's
    assert f"{kind.__name__}: its nodes are replaced, but no blocks are formed: {reason}" in record.message
    assert converted.conversion.alone == ["node", "last"]
    assert "no blocks: " in str(converted.conversion)


@pytest.mark.parametrize("kind", [Tapped, Unbounded, Regularised])
def test_a_block_whose_layers_are_read_stays_apart_and_others_are_formed(kind, caplog):
    """Read in training, in an evaluation alone, or for a regulariser that is no output."""
    torch.manual_seed(0)
    net, x = kind(), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x)
    assert (converted.conversion.blocks, converted.conversion.alone) == (["last"], ["node"])
    assert converted.conversion.compared
    assert not caplog.records
    require_equal(net, converted, x)
    if kind is Regularised:
        torch.testing.assert_close(converted.net.loss, net.loss)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Detour, "an output between the layers of the block that begins with conv is read"),
        (Shortcut, "took another way behind conv than on the example"),
    ],
)
def test_forward_with_another_path_than_the_example_is_refused(kind, message):
    converted = pl.from_spikingjelly(kind(), frames(2, 6, 6))
    with pytest.raises(UserError, match=message):
        converted(frames(2, 6, 6) + 10)


READS = {
    "an operator": lambda y: y + 1,
    "its reverse": lambda y: torch.ones(()) * y,
    "in place": lambda y: y.__iadd__(1) if hasattr(type(y), "__iadd__") else y + 1,
    "a function": lambda y: torch.relu(y),
    "a method": lambda y: y.mean(),
    "an index": lambda y: y[0],
    "a comparison": lambda y: y == 0,
    "a layer": lambda y: nn.Conv2d(4, 1, 1)(y),
    "a list of them": lambda y: torch.cat([y]),
}


@pytest.mark.parametrize("how", READS)
def test_values_between_the_layers_of_a_block_cannot_be_read(how):
    """They are kept by the forward, or seen by a hook: the block's spikes in their place would be wrong."""
    converted = pl.from_spikingjelly(Keeps(), frames(2, 6, 6))
    assert converted.conversion.blocks == ["node", "last"]
    seen = []
    converted.net.bn.register_forward_hook(lambda module, inputs, y: seen.append(y))
    converted(frames(2, 6, 6))
    for value in (converted.net.feature, *seen):
        with pytest.raises((UserError, TypeError), match=r"BlockOutput|between the layers of the block"):
            READS[how](value)


def test_single_steps_are_asked_for_multi_step_mode():
    net = Small()
    functional.set_step_mode(net, "s")
    for example in ([], [frames(2, 6, 6)]):
        with pytest.raises(UserError, match=r"node is in single-step mode: call functional\.set_step_mode\(net, 'm'\)"):
            pl.from_spikingjelly(net, *example)


def test_shared_node_without_an_example_is_refused_when_called():
    class Twice(Small):
        def forward(self, x):
            y = super().forward(x)
            return y + self.last(y)

    with pytest.raises(UserError, match="last is called twice in a forward"):
        pl.from_spikingjelly(Twice())(frames(2, 6, 6))


def test_unknown_nodes_are_kept_with_a_reason():
    net = Small()
    net.node = Doubled(step_mode="m", v_threshold=0.5)
    net.last.register_forward_hook(lambda module, x, y: 0.5 * y)
    net.other = neuron.KLIFNode(scale_reset=True, step_mode="m")
    net.third = neuron.LIFNode(surrogate_function=surrogate.DeterministicPass(), step_mode="m")
    net.fourth = neuron.LIFNode(step_mode="m")
    net.double()
    converted = pl.from_spikingjelly(net)
    said = str(converted.conversion)
    assert said.startswith("0 nodes in blocks, 1 alone, 4 kept")
    assert f"node is kept: LIFNode ({Path(__file__).with_name('spikingjelly_nets.py')}:" in said
    kept = "last is kept: it has hooks", "other is kept: scale_reset=True", "third is kept: surrogate Determin"
    for line in kept:
        assert line in said
    x = frames(2, 6, 6)
    require_equal(net, converted, x)
    with pytest.raises(UserError, match="node, last, other, third keep states of their own"):
        pl.step(converted, x[0])


class LIFSpike(nn.Module):
    """TET's (Deng et al. 2022): x [N, T, *]."""

    def __init__(self, thresh=1.0, tau=0.5, gama=1.0):
        super().__init__()
        self.thresh, self.tau, self.gama = thresh, tau, gama

    def forward(self, x):
        mem, spikes = 0, []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t]
            spike = surrogate.PiecewiseQuadratic(1 / self.gama)(mem - self.thresh)
            mem = (1 - spike) * mem
            spikes.append(spike)
        return torch.stack(spikes, 1)


class TimeSecond(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self, x):
        return self.neuron(x.transpose(0, 1)).transpose(0, 1)


class OfTET(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), LIFSpike(), nn.Linear(64, 3)
        excited(self.double())

    def forward(self, x):
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.fc(self.act(y).flatten(2))


def of_lifspike(module):
    return TimeSecond(
        UndecayedLIF(
            init_tau=1 / (1 - module.tau), v_threshold=module.thresh, surrogate="triangle", surrogate_width=module.gama,
            detach_reset=False,
        )
    )  # fmt: skip


def test_user_defined_lif_is_mapped_and_proved():
    torch.manual_seed(0)
    net, x = OfTET(), 2 * torch.rand(3, 4, 2, 6, 6, dtype=torch.float64)
    with pytest.raises(UserError, match=rf"OfTET has no node that can be replaced \(act: LIFSpike \({__file__}:\d+\)"):
        pl.from_spikingjelly(net, x)
    converted = pl.from_spikingjelly(net, x, nodes={LIFSpike: of_lifspike})
    assert str(converted.conversion) == "0 nodes in blocks, 1 alone, 0 kept; equal on the example"
    require_equal(net, converted, x)
    with pytest.raises(UserError, match="OfTET cannot be converted: output 0 differs in training"):
        pl.from_spikingjelly(net, x, nodes={LIFSpike: lambda module: TimeSecond(UndecayedLIF(init_tau=3.0))})


class Shared(OfTET):
    """Its node, which keeps no state, is called twice; it changes its input in place; a layer has two names."""

    def __init__(self):
        super().__init__()
        self.same = self.bn

    def forward(self, x):
        y = super().forward(x.squeeze_(-1)).unsqueeze(-1).unsqueeze(-1)
        return self.act(2 * y).flatten(2)


def test_stateless_user_defined_node_may_be_shared():
    torch.manual_seed(0)
    net, x = Shared(), 2 * torch.rand(3, 4, 2, 6, 6, 1, dtype=torch.float64)
    converted = pl.from_spikingjelly(net, x, nodes={LIFSpike: of_lifspike})
    assert str(converted.conversion) == "0 nodes in blocks, 1 alone, 0 kept; equal on the example"
    assert torch.equal(converted(x.clone()), net(x.clone()))
    converted.load_state_dict(net.state_dict())
    assert pl.to_spikingjelly_state_dict(converted).keys() == net.state_dict().keys()


def test_a_forward_that_asks_for_float32_is_proved_in_float64_without_an_edit():
    class Single(OfTET):
        def forward(self, x):
            offset = torch.zeros(1) + torch.tensor(0.25, dtype=torch.float32, device=x.device)
            return super().forward(x.float() + offset.type(torch.float32)).to(torch.float32)

    torch.manual_seed(0)
    net, x = Single().float(), 2 * torch.rand(3, 4, 2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = pl.from_spikingjelly(net, x, nodes={LIFSpike: of_lifspike})
    assert str(converted.conversion).endswith("equal on the example")
    assert torch.get_default_dtype() == converted(x).dtype == torch.float32
    assert torch.zeros(1).float().dtype == torch.float32


def test_network_without_float64_support_is_named():
    class Single(OfTET):
        def forward(self, x):
            return super().forward(torch.from_numpy(x.detach().numpy().astype("float32")))

    with pytest.raises(UserError, match=r"Single runs the example, but not in float64"):
        pl.from_spikingjelly(Single().float(), torch.rand(3, 4, 2, 6, 6), nodes={LIFSpike: of_lifspike})
    assert torch.get_default_dtype() == torch.float32


def test_an_example_of_the_wrong_shape_is_named_with_the_networks_error():
    with pytest.raises(
        UserError, match=r"the example, \[4, 3, 5, 6, 6\] for .* does not run through Small: .*5 channels"
    ):
        pl.from_spikingjelly(Small().float(), torch.rand(4, 3, 5, 6, 6))


class OverLines(nn.Module):
    """Sequences of lines, [T, N, C, L]."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.node = layer.Conv1d(2, 4, 3, padding=1), layer.BatchNorm1d(4), neuron.LIFNode()
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.node(self.bn(self.conv(x)))


@pytest.mark.parametrize(("steps", "samples"), [(2, 5), (3, 5), (4, 5), (9, 5), (4, 2), (4, 3)])
def test_sequences_of_lines_are_no_images(steps, samples):
    torch.manual_seed(0)
    net, x = OverLines(), 2 * torch.rand(steps, samples, 2, 7)
    converted = pl.from_spikingjelly(net, x)
    assert converted.takes_sequences
    assert converted.conversion.compared
    assert converted(x).shape == (steps, samples, 4, 7)
    images = pl.from_spikingjelly(Repeats(), torch.rand(5, 2, 6, 6).double())
    assert not images.takes_sequences


class Summed(Small):
    """`out += identity` behind a node, whose pool is no part of its block then."""

    def __init__(self):
        super().__init__()
        self.pool = layer.MaxPool2d(1, step_mode="m")

    def forward(self, x):
        y = self.node(self.bn(self.conv(x)))
        y += 0.5
        return self.last(self.fc(self.pool(y).flatten(2)))


def test_layers_behind_a_sum_in_place_are_no_part_of_the_block():
    torch.manual_seed(0)
    net, x = Summed(), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x)
    assert converted.conversion.blocks == ["node", "last"]
    require_equal(net, converted, x)


def test_a_neuron_alone_gives_its_spikes_step_by_step_in_memory():
    net = Small().float()
    converted = pl.from_spikingjelly(net)
    y = converted.net.node(torch.rand(3, 5, 4, 6, 6).transpose(0, 1))
    assert y.is_contiguous()


def test_weights_convert_strictly_in_both_directions(tmp_path):
    torch.manual_seed(0)
    old, new = stack(neuron.ParametricLIFNode), stack(neuron.ParametricLIFNode, init_tau=8.0)
    fixed = stack(neuron.LIFNode)
    x = frames(2, 6, 6).float()
    assert pl.from_spikingjelly(fixed).load_state_dict(fixed.state_dict()) is not None  # tau is no weight
    expected = pl.from_spikingjelly(old).eval()(x)
    state = old.state_dict()
    for given in (state, {"net": state, "epoch": 3}, {f"module.{name}": value for name, value in state.items()}):
        converted = pl.from_spikingjelly(new)
        converted.load_state_dict(given)
        assert torch.equal(converted.eval()(x), expected)
    back = pl.to_spikingjelly_state_dict(converted)
    new.load_state_dict(back)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        converted.load_state_dict({name: value for name, value in state.items() if name != "0.weight"})
    pl.save_pretrained(converted, tmp_path)
    again = pl.from_pretrained(tmp_path, pl.from_spikingjelly(new))
    assert torch.equal(copy.deepcopy(again).eval()(x), expected)


def test_a_converted_network_trains_in_a_task_as_a_structure_does():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Flatten(), layer.Linear(64, 12), neuron.LIFNode(), layer.VotingLayer(4))
    functional.set_step_mode(net, "m")
    task = pl.SpikingClassifier(
        (1, 8, 8), 3, 4, network=pl.from_spikingjelly(excited(net)), loss="cross_entropy", label_smoothing=0.1,
        early_time_steps={2: 1},
    )  # fmt: skip
    task.log = lambda *of, **settings: None
    x, label = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    functional.reset_net(net)
    loss = task.training_step((x, label), 0)
    votes = net(x.expand(2, *x.shape))
    assert votes.unique().numel() > 1
    torch.testing.assert_close(loss, F.cross_entropy(10 * votes.mean(0), label, label_smoothing=0.1))
    assert task(x).shape == (4, 5, 3)


def test_forward_that_repeats_images_accepts_images():
    torch.manual_seed(0)
    net, images = Repeats(), frames(2, 6, 6)[0]
    converted = pl.from_spikingjelly(net, images)
    assert converted.conversion.blocks == ["node", "last"]
    require_equal(net, converted, images)
    task = pl.SpikingClassifier((2, 6, 6), 3, 4, network=converted)
    assert task(images).shape == (4, 3, 3)


def test_single_step_needs_per_step_statistics():
    net = stack(neuron.LIFNode).double()
    net[1] = layer.BatchNorm2d(5, track_running_stats=False, step_mode="m").double()
    converted, x = pl.from_spikingjelly(net).eval(), frames(2, 6, 6)
    with pytest.raises(UserError, match="takes all time-steps at once"):
        pl.step(converted, x[0])
    usual, state = pl.from_spikingjelly(stack(neuron.LIFNode).double()).eval(), None
    found = []
    for frame in x:
        y, state = pl.step(usual, frame, state)
        found.append(y)
    torch.testing.assert_close(torch.stack(found), usual(x))


def decided(rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof.Proof, "difference", lambda self, converted: "node differs" if rank == 1 else "")
        return len(pl.from_spikingjelly(Small(), frames(2, 6, 6)).conversion.blocks)


def test_all_processes_build_the_proved_network(tmp_path):
    assert on_two_processes(decided, tmp_path) == [2, 2]


def test_a_converted_network_is_copied_and_left_alone():
    net, x = Small(), frames(2, 6, 6)
    before = copy.deepcopy(net.state_dict())
    converted = pl.from_spikingjelly(net, x)
    assert isinstance(converted, Converted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in converted.parameters()}
    require_equal(net, copy.deepcopy(converted), x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"surrogate_function": 1}, "mean surrogate"),
        ({"tau": 2.0}, "mean init_tau"),
        ({"v_reset": None}, "reset='soft'"),
    ],
)
def test_its_arguments_lead_to_ours(given, message):
    with pytest.raises(UserError, match=message):
        pl.LIF(**given)


@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_of_every_surrogate_are_spikingjellys(name):
    theirs = getattr(surrogate, name)()
    ours, width = SURROGATES[name](theirs)
    u = torch.linspace(-2.2, 2.1, 83, dtype=torch.float64, requires_grad=True)
    theirs(u).sum().backward()
    torch.testing.assert_close(pl.Surrogate(ours, width).derivative(u.detach()), u.grad)
    node = neuron.LIFNode(surrogate_function=theirs, step_mode="m", detach_reset=True)
    converted = pl.from_spikingjelly(nn.Sequential(layer.Linear(6, 5, step_mode="m"), node), 4 * torch.rand(7, 3, 6))
    assert str(converted.conversion).startswith("1 nodes in blocks, 0 alone, 0 kept; equal on the example")


OTHERS = [
    *(surrogate.S2NN(beta=2.0), surrogate.LeakyKReLU(leak=0.1), surrogate.DeterministicPass()),
    surrogate.MultiLevelSpikeCount(2),
]


@pytest.mark.parametrize("theirs", OTHERS)
def test_nodes_with_other_surrogates_are_kept(theirs):
    nodes = [neuron.LIFNode(surrogate_function=theirs, step_mode="m"), neuron.LIFNode(v_threshold=0.2, step_mode="m")]
    converted = pl.from_spikingjelly(nn.Sequential(*nodes))
    assert converted.conversion.kept == {"0": f"surrogate {type(theirs).__name__}"}


def test_what_the_network_within_has_is_set_there():
    converted = pl.from_spikingjelly(Small())
    with pytest.raises(AttributeError, match=r"fc is of the network within: set net\.net\.fc"):
        converted.fc = nn.Linear(6, 3)
    converted.time_steps = 8


@pytest.mark.parametrize("with_example", [False, True])
def test_blocks_know_which_of_their_inputs_are_spikes(with_example):
    """Those behind neurons, also through a pool or a flattening; not the first, nor one behind an average."""
    m = {"step_mode": "m"}
    parts = [layer.Conv2d(3, 4, 3, padding=1, **m), neuron.LIFNode(v_threshold=0.3, **m)]
    parts += [layer.MaxPool2d(2, **m), layer.Conv2d(4, 4, 3, padding=1, **m), neuron.LIFNode(v_threshold=0.1, **m)]
    parts += [
        layer.AvgPool2d(2, **m),
        layer.Flatten(**m),
        layer.Linear(16, 6, **m),
        neuron.LIFNode(v_threshold=0.1, **m),
    ]
    parts += [layer.Linear(6, 3, **m)]
    net, x = nn.Sequential(*parts), 4 * torch.rand(4, 2, 3, 8, 8)
    converted = pl.from_spikingjelly(net, *[x] * with_example)
    of_spikes = {
        name: module.of_spikes for name, module in converted.net.named_children() if hasattr(module, "of_spikes")
    }
    assert of_spikes == {"0": False, "3": True, "7": False, "9": True}


@pytest.mark.parametrize("with_example", [False, True])
def test_a_norm_and_the_neurons_behind_it_are_a_block(with_example):
    net = nn.Sequential(layer.BatchNorm2d(3, step_mode="m"), neuron.LIFNode(v_threshold=0.3, step_mode="m")).double()
    x = 4 * torch.rand(4, 2, 3, 4, 4).double()
    converted = pl.from_spikingjelly(net, *[x] * with_example)
    assert str(converted.conversion).startswith("1 nodes in blocks, 0 alone")
    require_equal(net, converted, x)


def a_node():
    return neuron.LIFNode(v_threshold=0.4, step_mode="m", detach_reset=True)


class Frames(nn.Module):
    """Layers over [T N, *] and a node over [T, N, *], as transformers write them; `reshape` puts T in between."""

    def __init__(self, layer_of_frames, norm, reshape):
        super().__init__()
        self.layer, self.norm, self.node, self.reshape = layer_of_frames, norm, a_node(), reshape

    def forward(self, x):
        y = self.norm(self.layer(x.flatten(0, 1)))
        return self.node(self.reshape(y, x.shape[:2]))


RESHAPES = {
    "view": lambda y, size: y.view(*size, *y.shape[1:]),
    "reshape": lambda y, size: y.reshape(*size, -1, *y.size()[2:]).contiguous(),
    "unflatten": lambda y, size: y.unflatten(0, size),
    "a function": lambda y, size: torch.reshape(y, (*size, *y.shape[1:])),
    "flat": lambda y, size: y.flatten(2).view(*size, y.shape[1], -1) if y.dim() == 4 else y.view(*size, *y.shape[1:]),
}


class OfFrames(nn.Module):
    """Conv2d, Conv1d and Linear with BN, over frames; and two nodes that blocks cannot hold."""

    def __init__(self, reshape):
        super().__init__()
        self.first = Frames(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), reshape)
        self.tokens = Frames(nn.Conv1d(4, 6, 1, bias=False), nn.BatchNorm1d(6), reshape)
        self.rows = Frames(nn.Linear(6, 5), nn.BatchNorm1d(5), reshape)
        self.turned = Frames(
            nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), lambda y, size: y.mT.contiguous().view(*size, -1, 6)
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        y = self.first(x).flatten(3)
        y = self.tokens(y) + self.turned(y).mT
        return self.head(self.rows(y.mean(3)))


@pytest.mark.parametrize("how", RESHAPES)
def test_layers_over_frames_and_nodes_over_time_are_blocks(how, caplog):
    torch.manual_seed(0)
    net, x = excited(OfFrames(RESHAPES[how]).double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x)
    assert (converted.conversion.blocks, converted.conversion.alone) == (
        ["first.node", "rows.node"],
        ["tokens.node", "turned.node"],  # of lines: BN1d is no block, see `grouping._is_of_lines`
    )
    assert converted.conversion.compared
    assert not caplog.records
    require_equal(net, converted, x)
    longer = frames(2, 6, 6, steps=7)  # T is that of the call, not of the example
    functional.reset_net(net)
    torch.testing.assert_close(converted.eval()(longer), net.eval()(longer))


class Before(nn.Module):
    """MS-ResNet's: a node, then a convolution and BN over frames, whose sum with the input no node sees."""

    def __init__(self, channels):
        super().__init__()
        self.node, self.norm = a_node(), nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.norm(self.conv(self.node(x).flatten(0, 1))).view(x.shape)


class Turned(nn.Module):
    """Spikformer's: BN1d of an FC layer's turned output, which has C innermost in memory."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.fc, self.norm, self.node = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), a_node()

    def forward(self, x):
        y = self.norm(self.fc(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        return self.node(y.reshape(*x.shape[:3], -1).contiguous())


def test_bn_over_frames_without_a_node_is_a_block_and_maps_keep_their_layout():
    torch.manual_seed(0)
    first = Frames(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), RESHAPES["view"])
    net, x = excited(nn.Sequential(first, Before(4), Before(4)).double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x)
    assert (converted.conversion.blocks, converted.conversion.compared) == (["0.node"], True)
    blocks = [module for module in converted.modules() if isinstance(module, ConvBlock)]
    assert [block.neuron is None for block in blocks] == [False, True, True]
    require_equal(net, converted, x)
    strides = []
    for layer_of_neurons in (converted.net[1].node, converted.net[2].node):
        layer_of_neurons.register_forward_hook(lambda layer, inputs, spikes: strides.append(spikes.stride(2)))
    converted(x)
    assert strides == [1, 1]  # C innermost, as the first block gives it
    state = None
    for frame, expected in zip(x, converted.eval()(x), strict=True):
        y, state = pl.step(converted, frame, state)
        torch.testing.assert_close(y, expected)


def test_bn_of_lines_is_a_block_where_c_is_innermost():
    torch.manual_seed(0)
    net, x = excited(Turned(6, 5).double()), 4 * torch.rand(4, 3, 7, 6).double()
    converted = pl.from_spikingjelly(net, x)
    assert isinstance(converted.net.norm.layer, NormBlock)
    assert converted.conversion.compared
    require_equal(net, converted, x)
    lines = pl.from_spikingjelly(excited(OfFrames(RESHAPES["view"]).double()), frames(2, 6, 6)).net
    assert isinstance(lines.tokens.norm, nn.BatchNorm1d)  # [T N, C, L] in this order


class WrittenBetween(Frames):
    """BN's output is changed in place, then reshaped: the node's input is no longer that output."""

    def forward(self, x):
        y = self.norm(self.layer(x.flatten(0, 1)))
        z = self.reshape(y, x.shape[:2])
        y += 0.1
        return self.node(z)


def test_an_output_that_is_written_between_the_layers_stays_apart():
    torch.manual_seed(0)
    net = WrittenBetween(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), RESHAPES["view"])
    net, x = excited(net.double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x)
    assert converted.conversion.blocks == []
    require_equal(net, converted, x)


def test_a_converted_network_of_frames_goes_step_by_step():
    torch.manual_seed(0)
    net, x = excited(OfFrames(RESHAPES["view"]).double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x).eval()
    state = None
    for frame, expected in zip(x, converted(x), strict=True):
        y, state = pl.step(converted, frame, state)
        torch.testing.assert_close(y, expected)


class Grey(nn.Module):
    """BN of a single channel over frames, alone or behind a convolution."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.node = nn.Sequential(*layers), a_node()

    def forward(self, x):
        y = self.layers(x.flatten(0, 1))
        return self.node(y.view(*x.shape[:2], *y.shape[1:]))


@pytest.mark.parametrize("layers", [(), (nn.Conv2d(1, 1, 3, padding=1),)], ids=["BN", "convolution"])
def test_a_single_sample_of_a_single_channel_is_no_sequence(layers):
    """Frames [T, 1, H, W] of one channel look like [T, N = 1, *]."""
    torch.manual_seed(0)
    net, x = excited(Grey(*layers, nn.BatchNorm2d(1)).double()), 2 * torch.rand(4, 2, 1, 6, 6).double()
    for example in (x, x[:, :1]):
        converted = pl.from_spikingjelly(net, example)
        assert converted.conversion.blocks == ["node"]
        require_equal(net, converted, x[:, :1])


class Heads(nn.Module):
    """FC layers whose outputs become heads, behind dropout; and rows of tokens, which no block can hold."""

    def __init__(self):
        super().__init__()
        self.drop, self.fc, self.node = layer.Dropout(0.2, step_mode="m"), layer.Linear(6, 8, step_mode="m"), a_node()
        self.rows, self.other = nn.Linear(4, 5), a_node()

    def forward(self, x):
        y = self.node(self.fc(self.drop(x)).reshape(*x.shape[:2], 2, 4))
        return self.other(self.rows(y.flatten(0, 2)).view(*y.shape[:3], 5))


def test_a_reshape_that_no_block_can_run_leaves_the_others():
    torch.manual_seed(0)
    net, x = excited(Heads().double()), 2 * torch.rand(4, 3, 6).double()
    converted = pl.from_spikingjelly(net, x)
    assert (converted.conversion.blocks, converted.conversion.alone) == (["node"], ["other"])
    require_equal(net, converted, x)


class Hybrid(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.fc, self.node = nn.GRU(4, 8), nn.Linear(8, 6), neuron.LIFNode(step_mode="m")

    def forward(self, x):
        y, _ = self.gru(x)
        return self.node(self.fc(y))


def test_a_layer_with_several_outputs_stays_as_it_is():
    torch.manual_seed(0)
    net = excited(Hybrid().double())
    converted = pl.from_spikingjelly(net, frames(4))
    assert len(converted.conversion.blocks) == 1
    require_equal(net, converted, frames(4))


class Numbers(Grey):
    def forward(self, x):
        y = super().forward(x)
        if x.shape[0] == 3:
            raise KeyError("three")
        return y, float(y.mean()), "text"


def test_a_node_may_be_called_alone_as_often_as_one_likes():
    converted = pl.from_spikingjelly(excited(Grey(nn.BatchNorm2d(1)).double()))
    (node,) = (
        part for part in converted.modules() if isinstance(part, Replacement) and part.calls and not part.followed
    )
    x = 2 * torch.rand(4, 2, 1, 6, 6).double()
    assert torch.equal(node(x), node(x))


def test_numbers_beside_tensors_are_passed_on_and_errors_leave_no_trace(monkeypatch):
    net, x = excited(Numbers(nn.BatchNorm2d(1)).double()), 2 * torch.rand(4, 2, 1, 6, 6).double()
    converted = pl.from_spikingjelly(net, x)
    assert converted(x)[2] == "text"
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match="does not run through Numbers"):
        pl.from_spikingjelly(net, x[:3])
    monkeypatch.setattr("plif_lightning.convert.proof._difference", lambda *outputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pl.from_spikingjelly(net, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.zeros(1).float().dtype == torch.float32


class Frozen(OfFrames):
    """BN is frozen as users do: by its name, and by its class."""

    def train(self, mode=True):
        super().train(mode)
        self.first.norm.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


def test_frozen_norms_stay_frozen():
    torch.manual_seed(0)
    net, x = excited(Frozen(RESHAPES["view"]).double()), frames(2, 6, 6)
    converted = pl.from_spikingjelly(net, x)
    assert converted.conversion.blocks == ["first.node", "rows.node"]
    assert all(module.training for module in converted.modules())  # as the network was, whose `train` was never called
    net.train()
    converted.train()
    functional.reset_net(net)
    torch.testing.assert_close(converted(x), net(x))
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(converted.get_buffer(converted.names[name][0]), buffer)


class Stem(Grey):
    """Layers without gradients, if asked for."""

    trains = True

    def forward(self, x):
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()):
            y = self.layers(x.flatten(0, 1))
        return self.node(y.view(x.shape))


def test_layers_that_lose_their_gradients_later_are_not_trained():
    net, x = excited(Stem(nn.BatchNorm2d(1)).double()), 2 * torch.rand(4, 2, 1, 6, 6).double()
    converted = pl.from_spikingjelly(net, x)
    assert converted.conversion.blocks == ["node"]
    converted.net.trains = False
    with torch.no_grad():
        converted(x)
    with pytest.raises(UserError, match="took another way behind"):
        converted(x)
