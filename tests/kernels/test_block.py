"""Event-driven convolution, neurons and pool in one pass, against the same parts run one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.leaky import leaky
from plif_lightning.kernels import (
    NEVER,
    Backend,
    EventBlock,
    Norm,
    PatchMoments,
    Skip,
    SparseMaps,
    bits,
    block,
    conv_fire_pool,
    layout,
    linear_of_bits,
    norm_fire_pool,
    ops,
    table_of,
)
from plif_lightning.kernels.dense import conv2d
from plif_lightning.kernels.density import ALWAYS
from plif_lightning.kernels.layout import POOLS, rows_of
from plif_lightning.kernels.sparse import conv_events
from plif_lightning.network import SpikingNetwork
from tests.kernels.test_conv_block import block as block_of
from tests.kernels.test_conv_block import events, run
from tests.kernels.test_network import losses
from tests.kernels.test_sparse import SHARES, TYPES, maps, values

SPIKING = ["none", "max_first", "max_random"]
FIRINGS = [
    Firing(),
    Firing(reset="soft"),
    Firing(v_reset=-0.4, v_threshold=0.7),
    Firing(v_threshold=torch.linspace(0.4, 1.2, 40)),
]


def of_table(kind, outputs, channels):
    weight = values(outputs, channels, 3, 3)
    if kind in TYPES:
        return table_of(weight.to(kind)), None
    integers = (weight * 40).round().clamp(-127, 127).to(kind)
    return table_of(integers), torch.rand(outputs, generator=torch.Generator().manual_seed(3)) / 40


def event_block(table, scale, bias, neurons, pool):
    one = torch.ones(1, table.shape[1])
    rows = one if scale is None else scale[None], torch.zeros_like(one) if bias is None else bias[None]
    return EventBlock(table, *rows, rows_of(neurons, one), neurons.key, pool)


def one_after_another(x, table, scale, bias, k, firing, pool, steps, v=None):
    dtype = torch.bfloat16 if table.dtype == torch.bfloat16 else torch.float32
    y = conv_events(x, table, dtype, scale).unflatten(0, (steps, -1))
    one = torch.ones(1, table.shape[1])
    neurons = leaky(k, firing)
    return ops.fire(y, one, bias[None], rows_of(neurons, one), v, steps, POOLS[pool], neurons.key, v is not None)


@given(
    size=st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 11), st.integers(1, 11)),
    channels=st.integers(1, 130), share=SHARES, pool=st.sampled_from(SPIKING),
    kind=st.sampled_from([*TYPES, torch.int8]), firing=st.sampled_from(FIRINGS),
    leak=st.sampled_from([None, "scalar", "channel"]), at_a_time=st.sampled_from([1, 700, 2**12]),
)  # fmt: skip
def test_block_equals_its_layers_to_the_bit(size, channels, share, pool, kind, firing, leak, at_a_time):
    steps, n, height, width = size
    outputs = 40
    x = SparseMaps.of(maps(steps * n, channels, height, width, share=share))
    table, scale = of_table(kind, outputs, channels)
    k = {None: None, "scalar": torch.tensor(0.4), "channel": torch.linspace(0.1, 0.9, outputs)}[leak]
    bias = values(outputs, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "_AT_A_TIME", at_a_time)
        ours = event_block(table, scale, bias, leaky(k, firing), pool)(x, steps)[0]
    theirs, _ = one_after_another(x, table, scale, bias, k, firing, pool, steps)
    assert torch.equal(ours.images(theirs.dtype), theirs.flatten(0, 1))
    again = SparseMaps.of(theirs.flatten(0, 1))
    assert torch.equal(ours.bits, again.bits)
    assert ours.shape == again.shape


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("outputs", [16, 21, 130])
def test_values_are_added_up_as_the_library_does(dtype, outputs):
    x = events(6, 2, 2, 9, 7).flatten(0, 1).to(dtype)
    weight = values(outputs, 2, 3, 3).to(dtype)
    sums = conv_events(SparseMaps.of(x), table_of(weight), dtype)
    exact = torch.conv2d(x.double(), weight.double(), padding=1)
    bound = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(sums.double(), exact, rtol=bound, atol=bound)
    ours = event_block(table_of(weight), None, None, leaky(torch.tensor(0.5), Firing()), "max_first")
    theirs, _ = one_after_another(
        SparseMaps.of(x), table_of(weight), None, torch.zeros(outputs), torch.tensor(0.5), Firing(),
        "max_first", 6,
    )  # fmt: skip
    assert torch.equal(ours(SparseMaps.of(x), 6)[0].images(dtype), theirs.flatten(0, 1))


@pytest.mark.parametrize("outputs", [33, 64, 128])  # also words of bits that are full
@pytest.mark.parametrize("pool", SPIKING)
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (6, 5), (7, 8)])
def test_single_steps_equal_the_sequence(pool, size, outputs):
    x = maps(4 * 3, 20, *size)
    table, bias, k = table_of(values(outputs, 20, 3, 3)), values(outputs), torch.tensor(0.5)
    made = event_block(table, None, bias, leaky(k, FIRINGS[2]), pool)
    whole = made(SparseMaps.of(x), 4)[0].images(torch.float32).unflatten(0, (4, 3))
    v = None
    for step, expected in zip(x.unflatten(0, (4, 3)), whole, strict=True):
        spikes, v = made(SparseMaps.of(step.contiguous(memory_format=torch.channels_last)), 1, v, last=True)
        assert torch.equal(spikes.images(torch.float32), expected)
    sums, first = (SparseMaps.of(x), table, None, bias, k, FIRINGS[2]), FIRINGS[2].v_reset
    spikes, _ = one_after_another(*sums, pool, 4)
    assert torch.equal(spikes, whole)
    _, last = one_after_another(*sums, "none", 4, torch.full((1, 3, outputs, *size), first))
    assert torch.equal(v.permute(0, 1, 4, 2, 3), last)


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 130), st.integers(1, 9), st.integers(1, 9)), share=SHARES,
    kind=st.sampled_from([torch.float32, torch.int8]),
)  # fmt: skip
def test_bits_of_maps_equal_bits_of_rows(shape, share, kind):
    x = maps(*shape, share=share)
    flat = SparseMaps.of(x).flattened()
    assert torch.equal(flat, bits.pack_spikes(x.flatten(1)).words)
    inputs = shape[1] * shape[2] * shape[3]
    table = (values(inputs, 70) * 40).to(kind)
    scale = None if kind == torch.float32 else torch.rand(70)
    exact = x.flatten(1).double() @ table.double()
    rounding = 1e-6 * (x.flatten(1).double() @ table.double().abs()).amax(1).sum().item()  # of sums in float32
    torch.testing.assert_close(
        linear_of_bits(flat, inputs, table, scale), (exact if scale is None else exact * scale).float(),
        rtol=1e-5, atol=rounding,
    )  # fmt: skip


def test_the_number_of_threads_changes_no_spike(monkeypatch):
    monkeypatch.setattr(layout, "WORTH_THREADS", 1)
    x = SparseMaps.of(maps(8, 30, 9, 9))
    made = event_block(table_of(values(48, 30, 3, 3)), None, None, leaky(None, Firing()), "max_first")
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(made(x, 4)[0].bits)
    finally:
        torch.set_num_threads(threads)
    assert found[0].any()
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("kernel", "stride", "skip"), [(3, 1, NEVER), (3, 1, ALWAYS), (1, 1, ALWAYS), (5, 1, ALWAYS), (3, 2, ALWAYS)]
)
def test_inference_of_spikes_is_that_of_the_map(dtype, kernel, stride, skip):
    x = maps(6, 20, 7, 8).to(dtype).unflatten(0, (3, 2))
    weight = values(17, 20, kernel, kernel).to(dtype)
    norm = Norm(values(17), values(17, seed=2), values(1, 17), torch.rand(1, 17))
    y = conv2d(x.flatten(0, 1), weight, stride=stride, padding=kernel // 2).unflatten(0, (3, 2))
    neurons = leaky(torch.tensor(0.3), Firing())
    expected, _ = norm_fire_pool(y, norm, neurons, pool="max_first")
    with torch.no_grad():
        ours = conv_fire_pool(x, weight, norm, neurons, pool="max_first", skip=skip, stride=stride)
    assert ours.shape == expected.shape
    assert ours.dtype == dtype
    assert ours.stride() == expected.stride()
    assert (ours != expected).float().mean() < (0.001 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("pool", SPIKING)
@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "channels"), [((3, 2, 1, 5, 7), 5), ((4, 3, 2, 12, 10), 16), ((2, 2, 2, 6, 6), 35)])
def test_sparse_first_block_equals_the_dense_one(pool, statistics, training, shape, channels):
    x = (events(*shape) * (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3)).float()
    settings = {"channels": channels, "statistics": statistics, "training": training}
    exact = run(block_of("reference", x.double(), pool, **settings), x.double())
    found = {}
    for sparse in ("never", "always"):
        made = block_of("cpu", x, pool, **settings)
        made.backend.sparse = sparse
        found[sparse] = run(made, x)
    for name, gradient in exact[1].items():
        errors = {sparse: (of[1][name].double() - gradient).norm() for sparse, of in found.items()}
        # Sums whose terms cancel have a large relative error: compare with the largest gradient instead.
        largest = max(of.norm() for of in exact[1].values())
        assert errors["always"] <= max(2 * errors["never"], 2e-6 * largest), name
    assert (found["always"][0] != exact[0].float()).float().mean() < 0.002
    for name, buffer in exact[2].items():
        torch.testing.assert_close(found["always"][2][name], buffer.to(found["always"][2][name].dtype))


def test_under_autocast_it_is_bfloat16_too():
    x = events(6, 4, 2, 8, 8).float()
    found = []
    for sparse in ("never", "always"):
        made = block_of("cpu", x, "max_first", channels=32)
        made.backend.sparse = sparse
        with torch.autocast("cpu", torch.bfloat16):
            found.append(run(made, x))
    exact = run(block_of("reference", x.double(), "max_first", channels=32), x.double())[1]["conv.weight"]
    dense, ours = ((of[1]["conv.weight"] - exact).norm() / exact.norm() for of in found)
    assert found[1][0].dtype == torch.bfloat16
    assert ours < max(0.05, 1.2 * dense)


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_patch_moments_of_events_equal_dense_moments(share):
    x = events(3, 2, 2, 6, 5).float() * (torch.rand(3, 2, 2, 6, 5) < share)
    for ours, dense in zip(PatchMoments.of(x, events=True), PatchMoments.of(x), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skip", [Skip(a, b, 0.1) for a in (False, True) for b in (False, True)])
def test_forward_and_backward_follow_skip(skip, monkeypatch):
    monkeypatch.setattr(Backend, "skips", lambda *of, **by: skip)
    x = events(4, 1, 2, 6, 6).float()
    made = block_of("cpu", x, "max_first")
    taken = []
    for name in ("EventBlock", "_backward_of_events", "_backward_in_bands"):
        form = getattr(block, name)
        monkeypatch.setattr(block, name, lambda *of, name=name, form=form: (taken.append(name), form(*of))[1])
    run(made, x)
    backward = "_backward_of_events" if skip.gradient else "_backward_in_bands"
    assert taken == ["EventBlock"] * skip.output + [backward]


@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("pool", SPIKING)
def test_maps_without_a_window_give_no_spikes(size, pool):
    x = events(3, 2, 2, *size).float()
    found = []
    for sparse in ("never", "always"):
        made = block_of("cpu", x, pool)
        made.backend.sparse = sparse
        found.append(run(made, x))
    assert found[0][0].shape == found[1][0].shape
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-5)


def test_sparse_training_steps_equal_dense_ones():
    small = {"channels": 6, "fc_features": 20}
    curves = [losses("nmnist", "cpu", torch.float32, steps=3, sparse=s, **small) for s in ("always", "never")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)  # afterwards a spike may flip


@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_a_network_gives_the_same_votes_with_and_without_gradients(pooling):
    torch.manual_seed(0)
    net = SpikingNetwork((2, 12, 12), 3, 4, channels=16, fc_features=40, sparse="always", pooling=pooling).eval()
    for layer in net.encoder:
        torch.nn.init.constant_(layer.norm.bn.bias, 1.5)
        torch.nn.init.constant_(layer.norm.bn.weight, 2.0)
    for layer in net.classifier:
        torch.nn.init.uniform_(layer.fc.weight, -0.2, 0.4)
    x = events(4, 3, 2, 12, 12).float()
    votes = net(x)
    assert votes.any()
    with torch.no_grad():
        assert torch.equal(net(x), votes)
