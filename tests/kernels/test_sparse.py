"""Event-driven convolutions and FC layers, against PyTorch's and float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from plif_lightning.kernels import (
    NEVER,
    Backend,
    Skip,
    SparseMaps,
    conv_of_spikes,
    cpu,
    dense,
    density,
    layout,
    linear_of_spikes,
    sparse,
)
from plif_lightning.kernels.bits import estimate_density, pack_spikes, unpack
from plif_lightning.kernels.density import ALWAYS, BREAK_EVEN
from plif_lightning.network import SpikingNetwork, use_backend
from tests.kernels.test_network import losses

SHARES = st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])
TYPES = [torch.float32, torch.bfloat16]


def spikes(*shape, share=0.1, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).lt(share).float()


def maps(*shape, **options):
    return spikes(*shape, **options).contiguous(memory_format=torch.channels_last)


def values(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def results(function, x, weight, skip=ALWAYS, **options):
    """Output, and gradients of input and weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight, skip, **options)
    y.backward(values(*y.shape, seed=2).to(y.dtype))
    return y.detach(), x.grad, weight.grad


def close(ours, function, dtype, *given):
    """Equal within the rounding error, which is proportional to the sum of absolute terms."""
    exact, all_added = function(*given), function(*(x.abs() for x in given))
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert ((ours.double() - exact).abs() <= bound * all_added + 1e-12).all()


@pytest.mark.parametrize("dtype", TYPES)
@given(
    n=st.integers(1, 5), channels=st.integers(1, 140), outputs=st.integers(1, 140), height=st.integers(1, 9),
    width=st.integers(1, 9), share=SHARES, at_a_time=st.sampled_from([1, 3000, 3 * 2**15]),
)  # fmt: skip
def test_a_convolution_is_that_of_the_library(dtype, n, channels, outputs, height, width, share, at_a_time):
    x = maps(n, channels, height, width, share=share).to(dtype)
    weight = values(outputs, channels, 3, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "_GRAD_AT_A_TIME", at_a_time)  # bands of one row, of several rows, several images
        y, grad_x, grad_weight = results(conv_of_spikes, x, weight)
    wide, rounded = x.double(), weight.to(dtype).double()
    grad = values(*y.shape, seed=2).to(dtype).double()
    close(y, lambda a, w: F.conv2d(a, w, padding=1), dtype, wide, rounded)
    close(grad_x, lambda w, g: conv2d_input(x.shape, w, g, padding=1), dtype, rounded, grad)
    close(grad_weight, lambda a, g: conv2d_weight(a, weight.shape, g, padding=1), torch.float32, wide, grad)
    assert grad_weight.dtype == torch.float32


@pytest.mark.parametrize(("channels", "size"), [(128, 14), (128, 17), (64, 8), (32, 9)])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.3])
def test_a_convolution_adds_in_the_order_of_the_library(channels, size, share):
    x, weight = maps(4, channels, size, size, share=share), values(channels, channels, 3, 3)
    theirs = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), padding=1)
    ours = conv_of_spikes(x, weight, ALWAYS)
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@given(
    rows=st.integers(1, 20), inputs=st.integers(1, 300), outputs=st.integers(1, 600), share=SHARES,
    value=st.sampled_from([1.0, 2.0, 1.25]),
)  # fmt: skip
def test_an_fc_layer_is_that_of_the_library(dtype, rows, inputs, outputs, share, value):
    x = (spikes(rows, inputs, share=share) * value).to(dtype)
    weight = values(outputs, inputs)
    y, grad_x, grad_weight = results(linear_of_spikes, x, weight, value=value)
    wide, rounded = x.double(), weight.to(dtype).double()
    grad = values(*y.shape, seed=2).to(dtype).double()
    close(y, lambda a, w: a @ w.T, dtype, wide, rounded)
    close(grad_x, lambda w, g: g @ w, dtype, rounded, grad)
    close(grad_weight, lambda a, g: g.T @ a, dtype, wide, grad)


def test_an_fc_layer_of_more_inputs_than_a_block_is_that_of_the_library():
    x, weight = spikes(9, 2100), values(70, 2100)
    y = linear_of_spikes(x, weight, Skip(True, True))
    close(y, lambda a, w: a @ w.T, torch.float32, x.double(), weight.double())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_number_of_threads_changes_no_bit(dtype, monkeypatch):
    monkeypatch.setattr(layout, "WORTH_THREADS", 1)
    x, weight = maps(6, 70, 9, 5).to(dtype), values(33, 70, 3, 3)
    rows, fc = spikes(9, 333).to(dtype), values(333, 333)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            conv = results(conv_of_spikes, x, weight)
            linear = results(linear_of_spikes, rows, fc)
            found.append([conv[0], conv[2], linear[0], linear[2]])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_the_share_of_spikes_is_seen_from_a_sample(share):
    x = spikes(2**14, 70, share=share)
    assert estimate_density(x, 1.0)[0] == pytest.approx(share, abs=0.01)
    assert estimate_density(x[:10], 1.0)[0] == pytest.approx(x[:10].mean().item())
    assert estimate_density(x.bfloat16(), 1.0) == estimate_density(x, 1.0)


# Shapes of inputs and weights: the narrowest layers that skip, on as many maps or rows as are looked at.
LAYERS = {
    "conv": ((2, 64, 16, 16), (64, 64, 3, 3)),
    "linear": ((32, 512), (1024, 512)),
    "events": ((2, 2, 128, 128), (64, 2, 3, 3)),
}
# Type, whether the processor has AMX and computes in bfloat16, and the column of `BREAK_EVEN`.
KINDS = {
    "float32": (torch.float32, False, True, 0),
    "float32 beside AMX": (torch.float32, True, True, 1),
    "bfloat16": (torch.bfloat16, False, True, 2),
    "bfloat16 with AMX": (torch.bfloat16, True, True, 3),
    "bfloat16 by way of float32": (torch.bfloat16, False, False, 0),
}


def first_ones(shape, number):
    """Spikes, all in the first of the inputs."""
    x = torch.zeros(shape)
    x.view(-1)[:number] = 1
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@pytest.mark.parametrize(
    ("name", "shape", "of_weight", "expected"),
    [
        ("conv", (2, 64, 8, 64), (64, 64, 3, 3), True),
        ("conv", (2, 64, 7, 80), (64, 64, 3, 3), False),  # low maps, with AMX
        ("conv", (2, 63, 16, 16), (64, 63, 3, 3), False),  # few inputs
        ("conv", (2, 64, 16, 16), (63, 64, 3, 3), False),  # few outputs
        ("conv", (1, 64, 16, 16), (64, 64, 3, 3), False),  # little work
        ("linear", (64, 512), (512, 512), True),
        ("linear", (2048, 64), (512, 64), True),
        ("linear", (2048, 63), (512, 63), False),
        ("linear", (2048, 512), (63, 512), False),
        ("linear", (63, 512), (512, 512), False),
    ],
)
def test_narrow_layers_and_small_maps_are_dense(name, shape, of_weight, expected, monkeypatch):
    monkeypatch.setattr(density, "_has_amx", lambda: True)
    found = Backend().skips(name, first_ones(shape, 1), torch.zeros(of_weight, requires_grad=True))
    assert (found.output, found.gradient) == (expected, expected)


@pytest.mark.parametrize(("share", "expected"), [(0.04, True), (0.07, False)])
def test_narrow_fc_layers_are_event_driven_at_low_densities(share, expected):
    x = (torch.rand(4096, 256, generator=torch.Generator().manual_seed(0)) < share).float()
    weight = torch.zeros(128, 256, requires_grad=True)
    assert Backend().skips("linear", x, weight).output == expected
    assert not Backend().skips("linear", x.bfloat16(), weight).output


@pytest.mark.parametrize("amx", [False, True])
def test_only_a_weight_that_learns_has_a_gradient_to_make_faster(amx, monkeypatch):
    monkeypatch.setattr(density, "_has_amx", lambda: amx)
    (output, gradient), (shape, of_weight) = BREAK_EVEN["conv"][amx], LAYERS["conv"]
    between = first_ones(shape, int((output + gradient) / 2 * torch.Size(shape).numel()))
    weight = torch.zeros(of_weight)
    assert not Backend().skips("conv", between, weight).any
    weight.requires_grad_()
    assert Backend().skips("conv", between, weight)[:2] == (False, True)
    with torch.no_grad():
        assert not Backend().skips("conv", between, weight).any


def test_requested_sparsity_is_used_where_supported():
    few, weight = torch.zeros(2**10, 1), torch.zeros(2**13, 1)
    assert not Backend().skips("linear", few, weight).any
    assert Backend(sparse="always").skips("linear", few, weight)[:3] == (True, True, 0.0)
    for other in (Backend(sparse="never"), Backend("reference", "always")):
        assert not other.skips("linear", few, weight).any
    for x in (few.double(), few.half(), few[:0], torch.zeros(2**10, 2)):
        assert not Backend(sparse="always").skips("linear", x, weight).any


def test_bits_are_the_spikes_and_come_back():
    x = spikes(7, 200, share=0.3)
    bits = pack_spikes(x)
    assert bits.words.shape == (7, 4)
    assert (bits.number, bits.only_spikes) == (int(x.sum()), True)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(unpack(bits.words, 200, dtype), x.to(dtype))
        assert torch.equal(pack_spikes(x.to(dtype)).words, bits.words)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("other", [0.5, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 130])  # in a whole vector of 16, and behind the last one
def test_declared_spikes_with_other_values_run_dense(dtype, other, place):
    x, fc, maps_, conv = spikes(5, 135), values(33, 135), maps(2, 135, 8, 8), values(7, 135, 3, 3)
    x[3, place] = maps_[1, place, 5, 2] = other
    x, maps_ = x.to(dtype), maps_.to(dtype)
    bits = pack_spikes(x)
    assert not bits.only_spikes
    assert bits.number == x.count_nonzero()
    assert SparseMaps.of(maps_).values is not None
    for name, signal, weight in (("linear", x, fc), ("conv", maps_, conv)):
        assert not Backend(sparse="always").skips(name, signal, weight).any
    found = [*results(linear_of_spikes, x, fc), *results(conv_of_spikes, maps_, conv)]
    expected = [
        *results(lambda a, w, skip: dense.linear(a, w.to(dtype), None), x, fc),
        *results(lambda a, w, skip: dense.conv2d(a, w.to(dtype), padding=1), maps_, conv),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("skip", [Skip(a, b) for a in (False, True) for b in (False, True)])
def test_each_product_follows_skip(skip, monkeypatch):
    taken = []
    for name in ("conv_events", "_conv_weight_events", "linear_of_events", "linear_weight_of_bits"):
        form = getattr(sparse, name)
        monkeypatch.setattr(sparse, name, lambda *of, f=form, name=name, **by: (taken.append(name), f(*of, **by))[1])
    results(conv_of_spikes, maps(4, 20, 8, 8, share=0.1), values(4, 20, 3, 3), skip)
    results(linear_of_spikes, spikes(10, 100, share=0.1), values(4, 100), skip)
    expected = ["conv_events", "linear_of_events"] * skip.output
    expected += ["_conv_weight_events", "linear_weight_of_bits"] * skip.gradient
    assert sorted(taken) == sorted(expected)


@pytest.mark.parametrize("name", ["mnist", "cifar10", pytest.param("cifar10dvs", marks=pytest.mark.slow)])
def test_skipping_silent_inputs_changes_no_step(name):
    small = {"channels": 6, "fc_features": 20}
    curves = [losses(name, "cpu", torch.float32, steps=3, sparse=s, **small) for s in ("always", "never")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)  # afterwards a spike may flip


def network(sparse="always", **changes):
    torch.manual_seed(0)
    net = SpikingNetwork((1, 12, 12), 3, 4, channels=16, fc_features=40, **{"dropout": 0.3, "sparse": sparse} | changes)
    for block in net.encoder:
        torch.nn.init.constant_(block.norm.bn.bias, 0.7)
    for block in net.classifier:
        block.fc.weight.data *= 4
    return net


def taken_in(net, x, monkeypatch):
    taken = []
    for name in ("conv_events", "linear_of_events"):
        form = getattr(sparse, name)
        monkeypatch.setattr(sparse, name, lambda *of, f=form, name=name, **by: (taken.append(name), f(*of, **by))[1])
    votes = net(x)
    monkeypatch.undo()
    return taken, votes


def halve(module, given, out):
    return out * 0.5


def halve_input(module, given):
    return (given[0] * 0.5, *given[1:])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda net: None, ["conv_events", "linear_of_events", "linear_of_events"]),
        (lambda net: use_backend(net, "cpu", "never"), []),
        (lambda net: use_backend(net, "reference", "always"), []),
        (lambda net: net.encoder.conv1.register_forward_hook(halve), ["linear_of_events"] * 2),
        (lambda net: net.encoder.register_forward_hook(halve), ["conv_events", "linear_of_events"]),
        (lambda net: net.encoder.conv2.register_forward_pre_hook(halve_input), ["linear_of_events"] * 2),
        (lambda net: net.classifier.register_forward_pre_hook(halve_input), ["conv_events", "linear_of_events"]),
        (lambda net: net.classifier.fc1.register_forward_pre_hook(halve_input), ["conv_events", "linear_of_events"]),
        (lambda net: net.classifier.fc1.fc.register_forward_hook(halve), ["conv_events", "linear_of_events"]),
        (lambda net: net.classifier.fc1.dropout.register_forward_hook(halve), ["conv_events", "linear_of_events"]),
        (lambda net: net.classifier.fc1.neuron.register_forward_hook(halve), ["conv_events", "linear_of_events"]),
        (
            lambda net: setattr(net, "classifier", torch.nn.Sequential(*net.classifier)),
            ["conv_events", "linear_of_events", "linear_of_events"],
        ),
    ],
)
def test_layers_skip_silent_spiking_inputs(change, expected, monkeypatch):
    net, plain = network(), network("never")
    change(net)
    change(plain)
    if expected:
        use_backend(plain, "cpu", "never")
    x = values(2, 1, 12, 12)
    torch.manual_seed(1)
    taken, votes = taken_in(net, x, monkeypatch)
    assert taken == expected
    torch.manual_seed(1)
    torch.testing.assert_close(votes, plain(x))


def test_replaced_neurons_do_not_count_as_spiking(monkeypatch):
    net = network()
    net.classifier.fc1.neuron = torch.nn.Sigmoid()
    assert taken_in(net, values(2, 1, 12, 12), monkeypatch)[0] == ["conv_events", "linear_of_events"]


def test_an_average_pool_gives_no_spikes(monkeypatch):
    assert taken_in(network(pooling="avg"), values(2, 1, 12, 12), monkeypatch)[0] == ["linear_of_events"]


def test_no_images_and_no_rows_are_no_error():
    for function, x, weight in (
        (conv_of_spikes, maps(0, 5, 6, 7), values(20, 5, 3, 3)), (linear_of_spikes, spikes(0, 128), values(64, 128))
    ):  # fmt: skip
        y, _, grad = results(function, x, weight)
        assert len(y) == 0
        assert not grad.any()


def test_a_zero_with_a_sign_is_no_spike():
    zeros = torch.full((1, 40), -0.0)
    for dtype in (torch.float32, torch.float64):
        bits = pack_spikes(zeros.to(dtype))
        assert (bits.number, bits.only_spikes, bits.words.any().item()) == (0, True, False)
        assert estimate_density(zeros.to(dtype), 1.0) == (0, True)
    # In bfloat16 it may count as another value, with which the layer is dense.
    assert not linear_of_spikes(zeros.bfloat16(), values(8, 40), ALWAYS).any()


def test_a_sample_is_of_all_rows_whatever_their_number():
    x = torch.zeros(2 * 7919, 128)
    x[::7919] = 1
    assert estimate_density(x, 1.0)[0] < 0.01


def test_spike_value_after_dropout_is_rounded_to_its_type():
    x = spikes(4, 70).bfloat16() * torch.tensor(1 / 0.7).bfloat16()
    fc = values(33, 70)
    a, b = (results(linear_of_spikes, x, fc, skip, value=1 / 0.7)[2] for skip in (ALWAYS, NEVER))
    wide = values(4, 33, seed=2).bfloat16().double().T @ x.double()
    for grad in (a, b):
        assert ((grad.double() - wide).abs() <= 0.01 * (wide.abs() + 1)).all()


@pytest.mark.parametrize("sparse_", ["always", "never"])
def test_float16_is_left_to_the_reference(sparse_):
    net, x = network(sparse_).eval(), values(2, 1, 12, 12)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert net(x).shape == (4, 2, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int32, np.float64])
def test_blocks_begin_with_a_line_of_the_cache(dtype):
    for size in (0, 1, 1000, 10**6):
        block = cpu.aligned_rows(size, dtype)
        assert (block.size, block.dtype, block.ctypes.data % 64) == (size, dtype, 0)
