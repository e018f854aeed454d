"""Event-driven convolutions and FC layers, against PyTorch's and float64."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from plif_lightning.errors import UserError
from plif_lightning.kernels import (
    Backend,
    conv_of_spikes,
    conv_of_table,
    cpu,
    layout,
    linear_of_spikes,
    linear_of_table,
    policy,
    sparse,
    table_of,
)
from plif_lightning.kernels.bits import pack, share_of_spikes, unpack
from plif_lightning.kernels.policy import Op, candidates, choose
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


def results(function, x, weight, **options):
    """Output, and gradients of input and weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight, **options)
    y.backward(values(*y.shape, seed=2).to(y.dtype))
    return y.detach(), x.grad, weight.grad


def close(ours, function, dtype, *given):
    """Equal within the rounding error, which is proportional to the sum of absolute terms."""
    exact, all_added = function(*given), function(*(x.abs() for x in given))
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert ((ours.double() - exact).abs() <= bound * all_added + 1e-12).all()


@pytest.mark.parametrize("dtype", TYPES)
@settings(deadline=None)
@given(
    n=st.integers(1, 5), channels=st.integers(1, 140), outputs=st.integers(1, 140), height=st.integers(1, 9),
    width=st.integers(1, 9), share=SHARES, at_a_time=st.sampled_from([1, 3000, 3 * 2**15]),
)  # fmt: skip
def test_a_convolution_is_that_of_the_library(dtype, n, channels, outputs, height, width, share, at_a_time):
    x = maps(n, channels, height, width, share=share).to(dtype)
    weight = values(outputs, channels, 3, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "_GRAD_AT_A_TIME", at_a_time)  # bands of one row, of several rows, several images
        y, grad_x, grad_weight = results(conv_of_spikes, x, weight, sparse="always")
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
    dense = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), padding=1)
    ours = conv_of_spikes(x, weight, "always")
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(ours, dense)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@settings(deadline=None)
@given(
    rows=st.integers(1, 20), inputs=st.integers(1, 300), outputs=st.integers(1, 600), share=SHARES,
    value=st.sampled_from([1.0, 2.0, 1.25]),
)  # fmt: skip
def test_an_fc_layer_is_that_of_the_library(dtype, rows, inputs, outputs, share, value):
    x = (spikes(rows, inputs, share=share) * value).to(dtype)
    weight = values(outputs, inputs)
    y, grad_x, grad_weight = results(linear_of_spikes, x, weight, value=value, sparse="always")
    wide, rounded = x.double(), weight.to(dtype).double()
    grad = values(*y.shape, seed=2).to(dtype).double()
    close(y, lambda a, w: a @ w.T, dtype, wide, rounded)
    close(grad_x, lambda w, g: g @ w, dtype, rounded, grad)
    close(grad_weight, lambda a, g: g.T @ a, dtype, wide, grad)


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
            conv = results(conv_of_spikes, x, weight, sparse="always")
            linear = results(linear_of_spikes, rows, fc, sparse="always")
            found.append([conv[0], conv[2], linear[0], linear[2]])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_the_share_of_spikes_is_seen_from_a_sample(share):
    x = spikes(2**14, 70, share=share)
    assert share_of_spikes(x) == pytest.approx(share, abs=0.01)
    assert share_of_spikes(x[:10]) == pytest.approx(x[:10].mean().item())
    assert share_of_spikes(x.bfloat16()) == share_of_spikes(x)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("share", "pays"), [(0.02, True), (0.07, None), (0.3, False)])
def test_an_operator_is_asked_where_forward_or_gradient_may_pay(trained, share, pays, monkeypatch):
    monkeypatch.setattr(policy, "break_even", lambda op: 0.1 if op.name.endswith("_weight") else 0.05)
    fc, conv = values(1000, 1000).requires_grad_(trained), values(64, 64, 3, 3).requires_grad_(trained)
    expected = trained if pays is None else pays
    assert Backend().skips_silence(spikes(100, 1000, share=share), fc) == expected
    assert Backend().skips_silence(maps(4, 64, 20, 20, share=share), conv) == expected
    with torch.no_grad():
        assert not Backend().skips_silence(spikes(100, 1000, share=0.07), fc)


def test_bits_are_the_spikes_and_come_back():
    x = spikes(7, 200, share=0.3)
    bits, count = pack(x)
    assert bits.shape == (7, 4)
    assert count == int(x.sum())
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(unpack(bits, 200, dtype), x.to(dtype))
        assert torch.equal(pack(x.to(dtype))[0], bits)


def test_only_what_is_worth_it_is_asked(monkeypatch):
    def fails(*arguments):
        raise AssertionError(arguments)

    monkeypatch.setattr(policy, "break_even", fails)
    few, weight = torch.zeros(2**10, 1), torch.zeros(2**13, 1)
    assert not Backend().skips_silence(few, weight)
    assert Backend(sparse="always").skips_silence(few, weight)
    for other in (Backend(sparse="never"), Backend("reference", "always")):
        assert not other.skips_silence(few, weight)
    assert not Backend(sparse="always").skips_silence(few.double(), weight)
    with pytest.raises(AssertionError, match="name='linear'"):
        Backend().skips_silence(few, torch.zeros(2**14, 1))
    results(conv_of_spikes, maps(2, 3, 4, 4), values(2, 3, 3, 3), sparse="never")


@pytest.mark.parametrize("limit", [0.0, 0.05, 0.2, 1.0])
def test_auto_takes_the_form_that_the_limit_says(limit, monkeypatch):
    monkeypatch.setattr(policy, "break_even", lambda op: limit)
    taken = []
    for name in ("conv_events", "_conv_weight_events", "_linear_events", "_linear_weight_events"):
        form = getattr(sparse, name)
        monkeypatch.setattr(sparse, name, lambda *of, f=form, name=name, **by: (taken.append(name), f(*of, **by))[1])
    results(conv_of_spikes, maps(4, 20, 8, 8, share=0.1), values(4, 20, 3, 3))
    results(linear_of_spikes, spikes(10, 100, share=0.1), values(4, 100))
    assert len(taken) == (4 if limit > 0.1 else 0)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A temporary cache of break-even densities, all measured as 0.125, and the list of measurements."""
    calls = []
    monkeypatch.setattr(policy, "_file", lambda: tmp_path / "sparse_limits.json")
    monkeypatch.setattr(policy, "_measured", lambda *of: (calls.append(of), 0.125)[1])
    policy._break_even.cache_clear()
    yield tmp_path / "sparse_limits.json", calls
    policy._break_even.cache_clear()


def test_a_limit_is_measured_once_for_a_machine_and_layer(kept):
    file, calls = kept
    op = Op("conv", torch.float32, 128 * 196, 128, 128, (14, 14))
    for _ in range(2):
        assert policy.break_even(op) == 0.125
        policy._break_even.cache_clear()  # as in a new process
    assert policy.break_even(op._replace(rows=200 * 196)) == 0.125  # more images share the measurement
    assert calls == [(op._replace(rows=20 * 196),)]
    (machine,) = json.loads(file.read_text()).values()
    assert list(machine.values()) == [0.125]
    policy.break_even(Op("linear", torch.float32, 8, 100, 20))
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "NaN", "-5.0", "7.0", '"0.1"'])
def test_a_damaged_file_of_limits_is_measured_anew(kept, content):
    file, calls = kept
    if content in ("NaN", "-5.0", "7.0", '"0.1"'):
        policy.break_even(Op("linear", torch.float32, 8, 100, 20))
        content = file.read_text().replace("0.125", content)
        policy._break_even.cache_clear()
        calls.clear()
    file.write_text(content)
    assert policy.break_even(Op("linear", torch.float32, 8, 100, 20)) == 0.125
    assert len(calls) == 1
    assert json.loads(file.read_text())


def test_where_nothing_can_be_kept_nothing_is_measured(kept, monkeypatch):
    _, calls = kept
    monkeypatch.setattr(policy, "_file", lambda: None)
    assert policy.break_even(Op("linear", torch.float32, 8, 100, 20)) == policy._UNMEASURED
    assert not calls


def test_a_limit_comes_from_both_forms_on_this_machine():
    for name, *shape in (("conv", 64, 8, 8, (8, 8)), ("conv_weight", 64, 8, 8, (8, 8)), ("linear", 8, 64, 32)):
        for dtype in TYPES:
            events, dense = candidates(Op(name, dtype, *shape), 0.1)
            torch.testing.assert_close(events().to(dtype), dense().to(dtype), rtol=2e-2, atol=1e-2)
        policy._measured(Op(name, torch.float32, *shape))  # any result will do


@pytest.mark.parametrize(
    ("events", "dense", "expected"),
    [
        ((1.0, 2.0), 1.575, 0.04 + 0.5 * 0.12),  # halfway, with the margin of five percent
        ((1.0, 2.0), 0.5, 0.0),
        ((1.0, 1.1), 9.0, policy._MOST),  # extrapolation is limited
        ((1.0, 1.0), 9.0, policy._UNMEASURED),  # times do not grow with the density
    ],
)
def test_a_limit_is_where_the_lines_meet(events, dense, expected, monkeypatch):
    monkeypatch.setattr(policy, "least_seconds", lambda *forms: [form() for form in forms])
    forms = lambda op, density: (lambda: events[density != policy._DENSITIES[0]], lambda: dense)  # noqa: E731
    monkeypatch.setattr(policy, "candidates", forms)
    assert policy._measured(Op("conv", torch.float32, 1, 1, 1)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar10dvs"])
def test_ten_steps_with_silent_inputs_skipped_are_those_without(name):
    small = {"channels": 6, "fc_features": 20}
    curves = [losses(name, "cpu", torch.float32, sparse=s, **small) for s in ("always", "never")]
    assert curves[0][:3] == pytest.approx(curves[1][:3], rel=1e-6)  # afterwards a spike may flip
    assert curves[0] == pytest.approx(curves[1], rel=0.05)


def network(sparse="always", **changes):
    torch.manual_seed(0)
    net = SpikingNetwork((1, 12, 12), 3, 4, channels=16, fc_features=40, **{"dropout": 0.3, "sparse": sparse} | changes)
    for block in net.encoder:
        torch.nn.init.constant_(block.norm.bn.bias, 0.7)
    return net


def taken_in(net, x, monkeypatch):
    taken = []
    for name in ("conv_events", "_linear_events"):
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
        (lambda net: None, ["conv_events", "_linear_events", "_linear_events"]),
        (lambda net: use_backend(net, "cpu", "never"), []),
        (lambda net: use_backend(net, "reference", "always"), []),
        (lambda net: net.encoder.conv1.register_forward_hook(halve), ["_linear_events"] * 2),
        (lambda net: net.encoder.register_forward_hook(halve), ["conv_events", "_linear_events"]),
        (lambda net: net.encoder.conv2.register_forward_pre_hook(halve_input), ["_linear_events"]),
        (lambda net: net.classifier.register_forward_pre_hook(halve_input), ["conv_events", "_linear_events"]),
        (lambda net: net.classifier.fc1.register_forward_pre_hook(halve_input), ["conv_events"]),
        (lambda net: net.classifier.fc1.fc.register_forward_hook(halve), ["conv_events", "_linear_events"]),
        (lambda net: net.classifier.fc1.dropout.register_forward_hook(halve), ["conv_events", "_linear_events"]),
        (lambda net: net.classifier.fc1.neuron.register_forward_hook(halve), ["conv_events", "_linear_events"]),
        (lambda net: setattr(net, "classifier", torch.nn.Sequential(*net.classifier)), ["conv_events"]),
    ],
)
def test_layers_skip_what_is_silent_where_their_input_is_spikes(change, expected, monkeypatch):
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


def test_a_module_in_place_of_neurons_gives_no_spikes(monkeypatch):
    net = network()
    net.classifier.fc1.neuron = torch.nn.Sigmoid()
    assert taken_in(net, values(2, 1, 12, 12), monkeypatch)[0] == ["conv_events", "_linear_events"]


def test_an_average_pool_gives_no_spikes(monkeypatch):
    assert taken_in(network(pooling="avg"), values(2, 1, 12, 12), monkeypatch)[0] == ["_linear_events"]


def test_an_unknown_choice_is_refused():
    with pytest.raises(UserError, match="sparse must be one of auto, never, always, got 'often'"):
        SpikingNetwork((1, 8, 8), 2, 2, sparse="often")


def compiles_without_a_break(net, x):
    """Votes and gradients of a compiled step equal those of the network."""
    results = []
    for forward in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        votes = forward(x)
        (1 - votes).square().sum().backward()
        results.append([votes.detach(), *(p.grad.clone() for p in net.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_it_compiles_without_a_break():
    compiles_without_a_break(network(dropout=0.0, pool_ties="first"), values(2, 1, 12, 12))


@pytest.mark.parametrize("layer", ["conv", "linear"])
@pytest.mark.parametrize("of", ["", "_weight"])
def test_the_operators_keep_pytorchs_rules(layer, of):
    name = f"{layer}_of_spikes{of}"
    x, rows = maps(2, 5, 4, 3), spikes(3, 70)
    bits, of_rows = pack(x.permute(0, 2, 3, 1).reshape(-1, 5))[0], pack(rows)[0]
    grad = values(2, 6, 4, 3).contiguous(memory_format=torch.channels_last)
    arguments = {
        "conv_of_spikes": (x, values(6, 5, 3, 3), 1, "always"),
        "conv_of_spikes_weight": (bits, grad, [5, 4, 3, 3, 1], "always"),
        "linear_of_spikes": (rows, values(4, 70), 1.0, "always"),
        "linear_of_spikes_weight": (of_rows, values(3, 4), 70, 1.0, "always"),
    }[name]
    torch.library.opcheck(getattr(torch.ops.plif, name), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("sparse_", ["always", "auto"])
def test_an_input_of_another_size_is_refused(sparse_):
    for x, weight in ((maps(2, 64, 16, 16), values(64, 32, 3, 3)), (maps(2, 4, 4, 4), values(2, 4, 7, 7))):
        with pytest.raises(UserError, match="does not fit a weight of shape"):
            conv_of_spikes(x, weight, sparse_)
    with pytest.raises(UserError, match="does not fit a weight of shape"):
        linear_of_spikes(spikes(4, 20), values(8, 12), sparse=sparse_)
    for function, x, table in (
        (conv_of_table, maps(2, 4, 4, 4), values(35, 2)),
        (linear_of_table, spikes(4, 20), values(12, 8)),
    ):
        with pytest.raises(UserError, match="does not fit a table"):
            function(x, table)
    assert not Backend().skips_silence(spikes(4096, 20), values(4096, 12))


def test_a_network_whose_layers_do_not_fit_says_what_pytorch_says():
    net = network()
    net.classifier.fc1.fc = torch.nn.Linear(10, 40, bias=False)
    with pytest.raises((RuntimeError, UserError)):
        net(values(2, 1, 12, 12))


def test_tables_in_any_layout_give_the_layers():
    x, weight, rows, fc = maps(3, 5, 6, 7), values(20, 5, 3, 3), spikes(4, 70), values(33, 70)
    torch.testing.assert_close(conv_of_table(x, table_of(weight).t().contiguous().t()), F.conv2d(x, weight, padding=1))
    torch.testing.assert_close(linear_of_table(rows, fc.t()), rows @ fc.T)
    torch.testing.assert_close(linear_of_table(rows, table_of(fc)), rows @ fc.T)


def test_pytorchs_default_type_changes_nothing():
    x, weight, rows, fc = maps(3, 8, 6, 7), values(20, 8, 3, 3), spikes(8, 128), values(64, 128)
    plain = [
        *results(conv_of_spikes, x, weight, sparse="always"),
        *results(linear_of_spikes, rows, fc, sparse="always"),
    ]
    torch.set_default_dtype(torch.float64)
    try:
        wide = [
            *results(conv_of_spikes, x, weight, sparse="always"), *results(linear_of_spikes, rows, fc, sparse="always")
        ]  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain, wide, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b)


def test_no_images_and_no_rows_are_no_error():
    for function, x, weight in (
        (conv_of_spikes, maps(0, 5, 6, 7), values(20, 5, 3, 3)), (linear_of_spikes, spikes(0, 128), values(64, 128))
    ):  # fmt: skip
        y, _, grad = results(function, x, weight, sparse="always")
        assert len(y) == 0
        assert not grad.any()


def test_a_zero_with_a_sign_is_no_spike():
    zeros = torch.full((1, 40), -0.0)
    for dtype in (*TYPES, torch.float64):
        assert pack(zeros.to(dtype))[1] == 0
        assert share_of_spikes(zeros.to(dtype)) == 0


def test_a_sample_is_of_all_rows_whatever_their_number():
    x = torch.zeros(2 * 7919, 128)
    x[::7919] = 1
    assert share_of_spikes(x) < 0.01


def test_a_spike_is_what_dropout_leaves_of_it_in_its_type():
    x = spikes(4, 70).bfloat16() * torch.tensor(1 / 0.7).bfloat16()
    fc = values(33, 70)
    a, b = (results(linear_of_spikes, x, fc, value=1 / 0.7, sparse=s)[2] for s in ("always", "never"))
    wide = values(4, 33, seed=2).bfloat16().double().T @ x.double()
    for grad in (a, b):
        assert ((grad.double() - wide).abs() <= 0.01 * (wide.abs() + 1)).all()


@pytest.mark.parametrize("sparse_", ["always", "never"])
def test_float16_is_left_to_the_reference(sparse_):
    net, x = network(sparse_).eval(), values(2, 1, 12, 12)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        assert net(x).shape == (4, 2, 3)


def test_limits_are_those_of_about_as_many_rows():
    for rows, like in ((1, 1), (15, 15), (17, 18), (40, 40), (121, 128), (1000, 128)):
        assert policy._representative(Op("linear", torch.float32, rows, 8, 8)).rows == like
    maps_of_few = Op("conv", torch.float32, 5 * 36, 2, 4, (6, 6))
    assert policy._representative(maps_of_few) == maps_of_few


def test_only_the_density_and_what_was_asked_for_choose(monkeypatch):
    monkeypatch.setattr(policy, "break_even", lambda op: 0.1)
    op = Op("linear", torch.float32, 8, 100, 20)
    assert [choose(op, density) for density in (0.0, 0.1, 0.11)] == [True, True, False]
    assert choose(op, 1.0, "always")
    assert not choose(op, 0.0, "never")
    assert not choose(op._replace(dtype=torch.float64), 0.0, "always")
    assert not choose(op._replace(rows=0), 0.0, "always")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int32, np.float64])
def test_blocks_begin_with_a_line_of_the_cache(dtype):
    for size in (0, 1, 1000, 10**6):
        block = cpu.aligned(size, dtype)
        assert (block.size, block.dtype, block.ctypes.data % 64) == (size, dtype, 0)
