"""Random networks of SpikingJelly for the tests of the conversion, ordinary and odd ones."""

import copy
import random

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn import functional as F

SURROGATES = (surrogate.ATan(), surrogate.Sigmoid(3.0), surrogate.SoftSign(), surrogate.PiecewiseQuadratic(0.7))
CHANNELS, SIDE, STEPS, SAMPLES, CLASSES = 3, 8, 4, 3, 4


class Doubled(neuron.LIFNode):
    """A subclass under another's name: its output is not that of its base."""

    def multi_step_forward(self, x_seq):
        return 2 * super().multi_step_forward(x_seq)


Doubled.__name__ = "LIFNode"


def random_node(rng, single=False, odd=False):
    given = {"surrogate_function": rng.choice(SURROGATES), "detach_reset": rng.random() < 0.5}
    given |= {"step_mode": "s" if single else "m", "v_threshold": rng.choice([0.4, 1.0])}
    makes = [
        lambda: neuron.IFNode(**given),
        lambda: neuron.LIFNode(tau=rng.choice([1.5, 3.0]), decay_input=rng.random() < 0.5, **given),
        lambda: neuron.LIFNode(v_reset=None, **given),
        lambda: neuron.ParametricLIFNode(init_tau=2.5, **given),
        lambda: neuron.KLIFNode(**given),
    ]
    if odd:
        makes = [
            lambda: Doubled(**given),
            lambda: neuron.LIFNode(**{**given, "surrogate_function": surrogate.Erf()}),
            lambda: neuron.KLIFNode(scale_reset=True, **given),
        ]
    node = rng.choice(makes)()
    if odd and rng.random() < 0.3 and not single:
        node = neuron.LIFNode(**given)
        node.register_forward_hook(lambda module, x, y: 0.5 * y)
    return node


def random_norm(rng, channels):
    kind = rng.choice(["usual", "usual", "usual", "no affine", "cumulative", "frozen", "untracked", "tdbn"])
    if kind == "tdbn":
        return layer.ThresholdDependentBatchNorm2d(1.0, 0.5, channels)
    norm = layer.BatchNorm2d(
        channels, affine=kind != "no affine", momentum=None if kind == "cumulative" else 0.1,
        track_running_stats=kind != "untracked", step_mode="m",
    )  # fmt: skip
    return norm.eval() if kind == "frozen" else norm


def random_pool(rng):
    return rng.choice([layer.MaxPool2d(2, 2, step_mode="m"), layer.AvgPool2d(2, 2, step_mode="m")])


class Stage(nn.Module):
    """Convolution, BN, node and pool in some order, under a forward of its own."""

    KINDS = (
        *("plain", "plain", "pool first", "residual", "twice", "dropout", "noise", "depth", "counts", "mode", "tapped"),
        *("hooked", "view", "bias", "container", "steps", "two nodes"),
    )

    def __init__(self, rng, inputs, outputs, odd):
        super().__init__()
        self.kind = rng.choice(self.KINDS if odd else ("plain", "residual", "pool first", "bias", "container"))
        kernel = rng.choice([1, 3, 5])
        self.conv = layer.Conv2d(
            inputs, outputs, kernel, padding=kernel // 2, bias=self.kind == "bias" or rng.random() < 0.3, step_mode="m"
        )
        self.norm, self.pool = random_norm(rng, outputs), random_pool(rng)
        self.node = random_node(rng, odd=odd and rng.random() < 0.3)
        self.other = random_node(rng)
        self.again = layer.Conv2d(outputs, outputs, 3, padding=1, bias=False, step_mode="m")
        self.calls = 0
        plain = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        if self.kind == "container":
            self.inner = layer.SeqToANNContainer(*plain)
        if self.kind == "steps":
            self.inner = layer.MultiStepContainer(*plain, random_node(rng, single=True))

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "pool first":
            return self.node(self.pool(self.norm(y)))
        z = self.norm(y)
        if self.kind == "noise":
            z = z + 0.1 * torch.randn_like(z)
        if self.kind == "mode":
            z = z + 0.2 if self.training else z
        if self.kind == "hooked":
            z = z * 1.0
        spikes = self.node(z)
        if self.kind == "residual":
            spikes = spikes + self.other(self.again(spikes))
        elif self.kind == "twice":
            spikes = spikes + self.node(self.again(spikes))
        elif self.kind == "two nodes":
            spikes = spikes + self.other(z)
        elif self.kind == "dropout":
            spikes = F.dropout(spikes, 0.3, self.training)
        elif self.kind == "depth":
            spikes = spikes if torch.rand(()) < 0.5 else spikes + self.other(self.again(spikes))
        elif self.kind == "counts":
            self.calls += 1
            spikes = spikes * self.calls
        elif self.kind == "tapped":
            spikes = spikes + 0.1 * y
        elif self.kind == "view":
            spikes = self.node.v.mean() * 0 + spikes
        elif self.kind in ("container", "steps"):
            spikes = spikes + self.other(self.inner(spikes)) if self.kind == "container" else self.inner(spikes)
        return self.pool(spikes)


class Net(nn.Module):
    def __init__(self, rng, odd):
        super().__init__()
        self.first, self.second = Stage(rng, CHANNELS, 5, odd), Stage(rng, 5, 6, odd)
        self.dropout, self.fc = (
            layer.Dropout(rng.choice([0.0, 0.4]), step_mode="m"),
            layer.Linear(6 * 4, 16, step_mode="m"),
        )
        self.node, self.out = random_node(rng), layer.Linear(16, CLASSES, step_mode="m")

    def forward(self, x):
        y = self.second(self.first(x)).flatten(2)
        return self.out(self.node(self.fc(self.dropout(y))))


def random_sequential(rng):
    parts, channels, pools = [], CHANNELS, 2
    for _ in range(rng.choice([2, 3])):
        outputs, pool = rng.choice([4, 6]), rng.choice([None, "before", "behind"]) if pools else None
        stage = [layer.Conv2d(channels, outputs, 3, padding=1, bias=rng.random() < 0.4, step_mode="m")]
        stage += [random_norm(rng, outputs)] if rng.random() < 0.8 else []
        stage += [random_pool(rng)] if pool == "before" else []
        stage += [random_node(rng, odd=rng.random() < 0.15)]
        stage += [random_pool(rng)] if pool == "behind" else []
        pools -= pool is not None
        parts += [nn.Sequential(*stage)] if rng.random() < 0.3 else stage
        channels = outputs
    if rng.random() < 0.2:
        parts.append(next((part for part in reversed(parts) if isinstance(part, neuron.BaseNode)), nn.Identity()))
    side = SIDE // 2 ** (2 - pools)
    parts += [layer.Flatten(step_mode="m"), layer.Dropout(0.3, step_mode="m")]
    parts += [layer.Linear(channels * side**2, 4 * CLASSES, step_mode="m"), random_node(rng)]
    return nn.Sequential(*parts, layer.VotingLayer(4, step_mode="m"))


def random_network(seed):
    """(network in multi-step mode and float64, whose layers mostly fire; example [T, N, C, H, W])."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    net = (random_sequential(rng) if seed % 3 == 0 else Net(rng, odd=seed % 3 == 1)).double()
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
            nn.init.uniform_(part.weight, 0.8, 2.0)
            nn.init.uniform_(part.bias, 0.0, 0.8)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 3 / part.in_features**0.5)
    x = 2 * torch.rand(STEPS, SAMPLES, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    for _ in range(8):  # an output of zeros would show nothing
        with torch.no_grad():
            if copy.deepcopy(net)(x).unique().numel() > 1:
                break
        for part in net.modules():
            if isinstance(part, neuron.BaseNode):
                part.v_threshold *= 0.5
    return net, x


def results_of(net, x, names=None):
    """Outputs, gradients and statistics of two steps in training, and the output of an evaluation, as they are."""
    found, masks = [], torch.Generator()
    for call, mode in enumerate((None, None, False)):
        modes = {part: part.training for part in net.modules()}
        if mode is False:
            net.eval()
        net.zero_grad()
        functional.reset_net(net)
        torch.manual_seed(call)
        given = (x * (1 + call)).requires_grad_()
        y = net(given)
        masks.manual_seed(call)
        weight = torch.randn(y.shape, generator=masks, dtype=y.dtype)
        results = {"output": y.detach(), "votes": y.mean(0).detach()}
        if mode is None:
            y.backward(weight)
            results["input"] = given.grad
            results |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
            results |= {f"{name} (buffer)": b.clone() for name, b in net.named_buffers()}
        found.append(results)
        for part, training in modes.items():
            part.training = training
    return found
