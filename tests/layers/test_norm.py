import itertools

import pytest
import torch
from torch import nn

from plif_lightning.errors import UserError
from plif_lightning.kernels import Backend
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.plan import run_norm
from plif_lightning.network import SpikingNetwork, step
from plif_lightning.signals.signal import Signal

SHAPE = (5, 3, 4, 6, 7)  # T, N, C, H, W


def state(bn):
    return [bn.running_mean, bn.running_var, bn.num_batches_tracked]


def trained(norm, x, grad, **kwargs):
    x = x.clone().requires_grad_()
    y = norm(x, **kwargs)
    (y * grad).sum().backward()
    bn = getattr(norm, "bn", norm)
    return [y.detach(), x.grad, bn.weight.grad, bn.bias.grad, *state(bn)]


def close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    steps = torch.arange(1.0, SHAPE[0] + 1).view(-1, 1, 1, 1, 1)
    x = torch.randn(SHAPE, generator=g) * steps + steps  # the steps' statistics differ
    return x, torch.randn(SHAPE, generator=g)


class StepByStep(nn.Module):
    """Algorithm S1: the network, including BN, runs once per time-step."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(SHAPE[2])

    def forward(self, x):
        out = []
        for t in range(len(x)):
            out.append(self.bn(x[t]))
        return torch.stack(out)


def test_per_step_equals_a_plain_loop_over_time(data):
    loop = StepByStep()
    expected = trained(loop, *data)
    close(trained(TimeBatchNorm(SHAPE[2]), *data), expected)
    assert expected[-1] == SHAPE[0]


def test_all_steps_equals_bn_of_the_merged_batch(data):
    merged = nn.BatchNorm2d(SHAPE[2])
    expected = trained(merged, data[0].flatten(0, 1), data[1].flatten(0, 1))
    actual = trained(TimeBatchNorm(SHAPE[2], "all_steps"), *data)
    actual[:2] = [t.flatten(0, 1) for t in actual[:2]]
    close(actual, expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_bn_behind_an_fc_layer_is_pytorchs_batchnorm1d(data, statistics, backend):
    torch.manual_seed(0)
    settings = {"norm_statistics": statistics, "backend": backend, "structure": "FC6-BN-PLIF-FC2"}
    net, x = SpikingNetwork((4,), 2, SHAPE[0], **settings).double(), data[0][..., 0, 0].double()
    first, bn = net.classifier.fc1, nn.BatchNorm1d(6).double()
    expected = first.fc(x)
    expected = torch.stack([bn(y) for y in expected]) if statistics == "per_step" else bn(expected.flatten(0, 1))
    expected = first.neuron(expected.view(*x.shape[:2], 6))
    weight = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weight).sum().backward()
    gradient, first.fc.weight.grad = first.fc.weight.grad, None
    spikes = first(x)
    (spikes * weight).sum().backward()
    assert torch.equal(spikes, expected)
    assert 0 < spikes.mean() < 1
    close([first.fc.weight.grad, *state(first.norm.bn)], [gradient, *state(bn)])


@pytest.mark.parametrize("held", ["every_step", "once"])
@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
@pytest.mark.parametrize("structure", ["FC6-BN-PLIF-FC3-BN", "RFC6-BN-PLIF-FC3", "DP(0.0)-FC6b-BN-LIF-FC3-BN-LI"])
def test_bn_behind_the_first_fc_layer_of_a_static_sample_is_the_references(structure, statistics, held):
    found = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        settings = {"norm_statistics": statistics, "norm_held": held, "backend": backend, "structure": structure}
        net = SpikingNetwork((1, 4, 4), 3, 5, **settings).double()
        x = torch.rand(7, 1, 4, 4, dtype=torch.float64) * 3
        votes = net(x)
        votes.square().sum().backward()
        gradients = [p.grad for p in net.parameters()]
        buffers = [b.clone() for b in net.buffers()]
        found.append(
            [votes.detach(), *gradients, *buffers, net.eval()(x).detach(), net(x.expand(5, *x.shape)).detach()]
        )
    close(found[1], found[0])
    assert found[0][0].shape == (5, 7, 3)


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_held_step_equals_its_repetition_with_running_statistics(statistics, data):
    x, grad = data[0][:1], data[1]
    time_steps = SHAPE[0]
    repeated = TimeBatchNorm(SHAPE[2], statistics)
    inputs = x.clone().requires_grad_()
    y = repeated(inputs.expand(time_steps, -1, -1, -1, -1))
    (y * grad).sum().backward()
    expected = [y.detach()[:1], inputs.grad, repeated.bn.weight.grad, repeated.bn.bias.grad, *state(repeated.bn)]
    # A held input is used T times: its gradient is the sum over the steps.
    actual = trained(TimeBatchNorm(SHAPE[2], statistics), x, grad.sum(0, keepdim=True), time_steps=time_steps)
    close(actual, expected)


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_running_statistics_of_a_held_bfloat16_step_are_float32(statistics, data):
    norms = [TimeBatchNorm(SHAPE[2], statistics) for _ in range(2)]
    x = (data[0][:1] + 3).bfloat16()
    norms[0](x, time_steps=8)
    norms[1](x.float(), time_steps=8)
    torch.testing.assert_close(state(norms[0].bn), state(norms[1].bn), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_evaluation_uses_and_keeps_the_running_statistics(statistics, data):
    norm = TimeBatchNorm(SHAPE[2], statistics)
    norm(data[0])
    before = [t.clone() for t in state(norm.bn)]
    norm.eval()
    torch.testing.assert_close(norm(data[0])[2], norm.bn(data[0][2]))
    norm(data[0][:1], time_steps=4)
    close(state(norm.bn), before)


def innermost(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6, 7), (4, 3, 5, 6), (4, 3, 5), (1, 3, 5, 6, 7), (4, 1, 5, 6, 7)])
@pytest.mark.parametrize("layouts", [*itertools.product([torch.clone, innermost], repeat=2)])
def test_bn_alone_is_the_references_in_a_pass_of_the_kernels(statistics, shape, layouts):
    """Values, gradients and statistics, for any layout of the input and of the gradient; of a held input, too."""
    runs = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        norm = TimeBatchNorm(5, statistics, of_maps=len(shape) == 5).double()
        nn.init.uniform_(norm.bn.weight, 0.5, 2.0)
        x = layouts[0](3 * torch.randn(shape).double() + 1).requires_grad_()
        y = run_norm(norm, None, Signal(x, 4), Backend(backend))
        y.backward(layouts[1](torch.randn(shape).double()))
        assert ("Normalise" in str([y.grad_fn, *y.grad_fn.next_functions])) == (backend == "cpu")
        runs.append([y.detach(), x.grad, norm.bn.weight.grad, norm.bn.bias.grad, *state(norm.bn)])
    close(runs[1], runs[0])


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_bn_alone_is_as_exact_as_its_type_on_large_maps(offset):
    """PyTorch's, with C innermost, is 200 times as far from float64 here (torch 2.13)."""
    torch.manual_seed(0)
    x, grad = innermost(torch.randn(1, 32, 8, 64, 64) + offset), innermost(torch.rand(1, 32, 8, 64, 64))
    norm, runs = TimeBatchNorm(8), []
    for dtype in (torch.float64, torch.float32):
        leaf = x.to(dtype).requires_grad_()
        y = run_norm(norm.to(dtype), None, Signal(leaf, 1), Backend("cpu"))
        y.backward(grad.to(dtype))
        runs.append([y.detach(), leaf.grad])
    for expected, found in zip(*runs, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


def test_unknown_statistics_are_refused():
    with pytest.raises(UserError, match="norm_statistics must be one of per_step, all_steps"):
        TimeBatchNorm(3, "batch")


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_held_input_can_update_statistics_once(data, statistics):
    """The authors' code: convolution and BN of a static image run once a batch."""
    x, grad = data[0][:1], data[1][:1]
    plain = nn.BatchNorm2d(SHAPE[2])
    expected = trained(plain, x[0], grad[0])
    actual = trained(TimeBatchNorm(SHAPE[2], statistics, "once"), x, grad, time_steps=SHAPE[0])
    close([actual[0][0], actual[1][0], *actual[2:]], expected)
    assert actual[-1] == 1
    often = trained(TimeBatchNorm(SHAPE[2], statistics), x, grad, time_steps=SHAPE[0])
    assert not torch.allclose(often[5], actual[5])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_only_a_static_first_block_moves_once(backend):
    settings = {"channels": 4, "fc_features": 8, "backend": backend, "norm_held": "once"}
    net = SpikingNetwork((1, 8, 8), 3, 5, **settings).train()
    net(torch.rand(2, 1, 8, 8))
    assert [block.norm.bn.num_batches_tracked.item() for block in net.encoder] == [1, 5]
    net(torch.rand(5, 2, 1, 8, 8))
    assert [block.norm.bn.num_batches_tracked.item() for block in net.encoder] == [6, 10]
    with pytest.raises(UserError, match="norm_held must be one of every_step, once, got 'twice'"):
        SpikingNetwork((1, 8, 8), 3, 5, norm_held="twice")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by PyTorch's own decompositions
def test_a_single_image_has_derivatives_forward():
    norm, x = TimeBatchNorm(3).double(), torch.rand(1, 1, 3, 4, 4, dtype=torch.float64)
    tangent = torch.rand_like(x)
    _, found = torch.func.jvp(norm.eval(), (x,), (tangent,))
    torch.testing.assert_close(found, tangent / (1 + norm.bn.eps) ** 0.5)


@pytest.mark.parametrize(
    "text",
    [
        *("c6k3s1-BN-FC3b", "c6k1s2-BN-AP-FC3", "c6k3s1-BN-PLIF-ADD(c6k3s1-BN)-FC3"),
        *("c3k3s1-BN-c3k3s1-BN-PLIF-FC3", "c3k3s1-BN-ADD(c3k3s1-BN)-PLIF-FC3"),
    ],
)
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("training", [True, False])
def test_bn_without_neurons_has_the_references_gradient_for_a_single_image(text, steps, training):
    """PyTorch's gradient of BN is wrong for a single image whose own stride, or its gradient's, is not its size."""
    grads = []
    for backend in ("reference", "cpu"):
        torch.manual_seed(0)
        net = SpikingNetwork((2, 8, 6), 3, steps, structure=text, backend=backend).double().train(training)
        x = torch.rand(1, 2, 8, 6, dtype=torch.float64) * 2
        weights = torch.randn(steps, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (net(x) * weights).sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_two_forwards_may_come_before_a_backward():
    for backend in ("reference", "auto"):
        net = SpikingNetwork((1, 8, 8), 3, 4, structure="c4k3s1-BN-c4k3s1-BN-PLIF-FC3", backend=backend).double()
        x = torch.rand(5, 1, 8, 8).double()
        (net(x).sum() + net(x).sum()).backward()
        assert net.encoder.conv1.norm.bn.num_batches_tracked == 8


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_bn_without_running_statistics_uses_the_batch_in_evaluation(statistics):
    net = SpikingNetwork((1, 8, 8), 3, 4, structure="c4k3s1-BN-PLIF-FC3", norm_statistics=statistics)
    net.encoder.conv1.norm.bn = torch.nn.BatchNorm2d(4, track_running_stats=False)
    x, held, votes = torch.rand(4, 5, 1, 8, 8), None, []
    expected = net(x)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), expected)
        if statistics == "per_step":
            for frame in x:
                y, held = step(net, frame, held)
                votes.append(y)
            torch.testing.assert_close(torch.stack(votes), expected)
