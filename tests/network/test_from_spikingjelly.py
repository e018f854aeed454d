"""Networks of SpikingJelly, moved here: votes and gradients in float64, old weights, and what is refused."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plif_lightning as pl
from plif_lightning.errors import UserError

sj = pytest.importorskip("spikingjelly.activation_based", reason="test extra `bench`")
from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: E402
from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spiking_vgg  # noqa: E402

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


def outputs(net, x, label=0):
    """Votes and the gradient of each parameter by its name, of a network in training."""
    net.zero_grad()
    functional.reset_net(net)
    votes = net(x)
    F.cross_entropy(votes.mean(0), torch.full([x.shape[1]], label)).backward()
    return votes.detach(), {name: p.grad for name, p in net.named_parameters()}


def excited(net):
    """A network of SpikingJelly or PyTorch whose layers fire."""
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(part.weight, 2.0)
            nn.init.uniform_(part.bias, 0.0, 1.0)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 3 / part.in_features**0.5)
    return net


def require_equal(net, x, converted=None):
    """A network and what becomes of it give the same votes, gradients and running statistics."""
    if converted is None:
        net = excited(net.double())
        converted = pl.from_spikingjelly(net)
    votes, gradients = outputs(net, x.double())
    votes_here, gradients_here = outputs(converted, x.double())
    assert votes.unique().numel() > 1
    torch.testing.assert_close(votes_here, votes)
    after, largest = converted.state_dict(), max(gradient.abs().max().item() for gradient in gradients.values())
    for before, here in ((gradients, gradients_here), (net.state_dict(), after)):
        for name, value in before.items():
            found = here[converted.names[name.removeprefix("steps.")]].reshape(value.shape)
            torch.testing.assert_close(found, value, rtol=1e-7, atol=1e-10 * largest, msg=name)
    return converted


def stack(node, **settings):
    return nn.Sequential(
        layer.Conv2d(2, 5, 3, padding=1, bias=False), layer.BatchNorm2d(5), node(**settings), layer.MaxPool2d(2, 2),
        layer.Flatten(), layer.Linear(5 * 9, 12), node(**settings), layer.Linear(12, 3, bias=False),
    )  # fmt: skip


def frames(*shape, steps=5):
    return 2 * torch.rand(steps, 3, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_the_same_neuron(name):
    torch.manual_seed(0)
    kind, settings = NODES[name]
    net = stack(kind, **settings)
    functional.set_step_mode(net, "m")
    converted = require_equal(net, frames(2, 6, 6))
    assert [type(part).__name__ for part in converted.net.modules() if "Block" in type(part).__name__] == [
        *("ConvBlock", "FCBlock", "FCBlock"),
    ]


def test_a_network_of_single_steps_takes_all_of_them_at_once():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), neuron.LIFNode())
            self.fc, self.node, self.out = nn.Linear(5 * 9, 12), neuron.IFNode(), layer.Linear(12, 3)
            self.other = neuron.LIFNode(v_threshold=0.5)

        def forward(self, x):
            x = F.avg_pool2d(self.conv(x), 2)
            x = x.view(x.shape[0], -1)
            return self.out(self.node(self.fc(x)) + self.other(self.fc(x)))  # a layer with two kinds of neurons

    class Steps(nn.Module):
        """Its training loop over time."""

        def __init__(self, net):
            super().__init__()
            self.steps = net

        def forward(self, x):
            return torch.stack([self.steps(step) for step in x])

    net = Net().double()
    require_equal(Steps(net), frames(2, 6, 6), pl.from_spikingjelly(excited(net)))


def test_containers():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)),
        layer.MultiStepContainer(neuron.LIFNode(), nn.AdaptiveMaxPool2d(3)),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(5 * 9, 6)),
        neuron.LIFNode(step_mode="m"), layer.VotingLayer(2, step_mode="m"),
    )  # fmt: skip
    net[0][1].eval()  # frozen, while the others train
    require_equal(net, frames(2, 6, 6))


MODELS = {
    "spiking_vgg11_bn": (lambda **s: spiking_vgg.spiking_vgg11_bn(num_classes=4, **s), (3, 32, 32)),
    "sew_resnet18": (lambda **s: sew_resnet.sew_resnet18(cnf="ADD", num_classes=4, **s), (3, 32, 32)),
    "sew_resnet50 IAND": (lambda **s: sew_resnet.sew_resnet50(cnf="IAND", num_classes=4, **s), (3, 32, 32)),
    "MNIST": (lambda **s: parametric_lif_net.MNISTNet(8, **s), (1, 28, 28)),
    "FashionMNIST": (lambda **s: parametric_lif_net.FashionMNISTNet(8, **s), (1, 28, 28)),
    "CIFAR10": (lambda **s: parametric_lif_net.CIFAR10Net(8, **s), (3, 32, 32)),
    "NMNIST": (lambda **s: parametric_lif_net.NMNISTNet(8, **s), (2, 34, 34)),
    "CIFAR10DVS": (lambda **s: parametric_lif_net.CIFAR10DVSNet(8, **s), (2, 128, 128)),
    "DVSGesture": (lambda **s: parametric_lif_net.DVSGestureNet(8, **s), (2, 128, 128)),
}


LARGE = ("spiking_vgg11_bn", "sew_resnet50 IAND")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in MODELS]
)
def test_its_own_networks(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    net = make(spiking_neuron=neuron.ParametricLIFNode, surrogate_function=surrogate.ATan(), v_threshold=0.5)
    functional.set_step_mode(net, "m")
    for part in net.modules():
        if isinstance(part, layer.Dropout):
            part.p = 0.0  # each library draws masks of its own
    copies = frames(*shape, steps=1).expand(3, -1, -1, -1, -1).contiguous()  # of which the first block sees one
    require_equal(net, frames(*shape, steps=3) if shape[0] == 2 else copies)


def test_weights_of_an_old_checkpoint_are_loaded(tmp_path):
    torch.manual_seed(0)
    old, new = stack(neuron.ParametricLIFNode), stack(neuron.ParametricLIFNode, init_tau=8.0)
    for net in (old, new):
        functional.set_step_mode(net, "m")
    expected, converted, x = old(frames(2, 6, 6)), pl.from_spikingjelly(new), frames(2, 6, 6)
    converted.load_state_dict(old.state_dict())
    torch.testing.assert_close(converted.eval()(x), pl.from_spikingjelly(old).eval()(x))
    again = pl.from_spikingjelly(new)
    again.load_state_dict(converted.state_dict())
    assert torch.equal(again.eval()(x), converted(x))
    assert expected.shape == (5, 3, 3)
    pl.save_pretrained(again, tmp_path)
    task = pl.SpikingClassifier((2, 6, 6), 3, 5, network=pl.from_pretrained(tmp_path, pl.from_spikingjelly(new)))
    assert torch.equal(task(x[0]), again(x[:1].expand_as(x)))  # images are held
    assert len(again(x[:1])) == 1  # a single step after T copies


def test_what_cannot_be_expressed_is_refused_by_name_all_of_it_in_one_sentence():
    net = nn.Sequential(
        layer.Linear(3, 3), neuron.GatedLIFNode(T=4), neuron.LIFNode(surrogate_function=surrogate.Erf()),
        neuron.KLIFNode(scale_reset=True),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    with pytest.raises(UserError) as error:
        pl.from_spikingjelly(net)
    for part in ("1 (GatedLIFNode)", "2 (LIFNode with surrogate Erf)", "3 (KLIFNode with scale_reset=True)"):
        assert part in str(error.value)


class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.node = nn.Linear(4, 2), neuron.LIFNode()

    def forward(self, x):
        return sum(self.node(self.fc(x)) for _ in range(4))


class Branching(Looped):
    def forward(self, x):
        return self.node(self.fc(x)) if x.sum() > 0 else x


def test_a_loop_over_time_inside_of_a_forward_is_refused():
    with pytest.raises(UserError, match="node is called 4 times"):
        pl.from_spikingjelly(Looped())


def test_a_forward_that_depends_on_values_runs_as_it_is_over_all_steps_and_is_refused_over_single_ones(caplog):
    torch.manual_seed(0)
    net = Branching()
    with pytest.raises(UserError, match="the forward of Branching depends on values"):
        pl.from_spikingjelly(net)
    functional.set_step_mode(net, "m")
    with caplog.at_level(logging.WARNING):
        require_equal(net, torch.rand(5, 3, 4) + 0.5)
    assert "Branching runs its own forward, without blocks" in caplog.text


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
