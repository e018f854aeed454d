"""Event-driven convolution, neurons and pool in one pass, against the same parts run one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plif_lightning.dynamics.firing import Firing
from plif_lightning.dynamics.leaky import leaky
from plif_lightning.errors import UserError
from plif_lightning.kernels import (
    EventBlock,
    PatchMoments,
    SparseMaps,
    bits,
    block,
    conv_fire_pool,
    layout,
    linear_of_bits,
    linear_of_table,
    norm_fire_pool,
    policy,
    table_of,
)
from plif_lightning.kernels.dense import conv2d
from plif_lightning.kernels.layout import POOLS, rows_of
from plif_lightning.kernels.policy import Op, candidates
from plif_lightning.kernels.sparse import conv_events
from plif_lightning.network import SpikingNetwork
from tests.kernels.test_conv_block import block as block_of
from tests.kernels.test_conv_block import events, run
from tests.kernels.test_network import losses
from tests.kernels.test_sparse import SHARES, TYPES, compiles_without_a_break, maps, values

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


def one_after_another(x, table, scale, bias, k, firing, pool, steps, v=None):
    dtype = torch.bfloat16 if table.dtype == torch.bfloat16 else torch.float32
    y = conv_events(x, table, dtype, scale).unflatten(0, (steps, -1))
    one = torch.ones(1, table.shape[1])
    neurons = leaky(k, firing)
    learned, key = rows_of(neurons, one), neurons.key
    return torch.ops.plif.fire(y, one, bias[None], learned, v, steps, POOLS[pool], key, v is not None)


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 11), st.integers(1, 11)),
    channels=st.integers(1, 130), share=SHARES, pool=st.sampled_from(SPIKING),
    kind=st.sampled_from([*TYPES, torch.int8, torch.int16]), firing=st.sampled_from(FIRINGS),
    leak=st.sampled_from([None, "scalar", "channel"]), at_a_time=st.sampled_from([1, 700, 2**12]),
)  # fmt: skip
def test_spikes_are_those_of_the_parts_to_the_bit(size, channels, share, pool, kind, firing, leak, at_a_time):
    steps, n, height, width = size
    outputs = 40
    x = SparseMaps.of(maps(steps * n, channels, height, width, share=share), binary=True)
    table, scale = of_table(kind, outputs, channels)
    k = {None: None, "scalar": torch.tensor(0.4), "channel": torch.linspace(0.1, 0.9, outputs)}[leak]
    bias = values(outputs, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "_AT_A_TIME", at_a_time)
        ours = EventBlock.of_neurons(table, scale, bias, leaky(k, firing), pool)(x, steps)
    theirs, _ = one_after_another(x, table, scale, bias, k, firing, pool, steps)
    assert torch.equal(ours.images(theirs.dtype), theirs.flatten(0, 1))
    again = SparseMaps.of(theirs.flatten(0, 1), binary=True)
    assert torch.equal(ours.bits, again.bits)
    assert ours.shape == again.shape


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("outputs", [16, 21, 130])
def test_values_are_added_up_as_the_library_does(dtype, outputs):
    x = events(6, 2, 2, 9, 7).flatten(0, 1).to(dtype)
    weight = values(outputs, 2, 3, 3).to(dtype)
    sums = conv_events(SparseMaps.of(x, binary=False), table_of(weight), dtype)
    exact = torch.conv2d(x.double(), weight.double(), padding=1)
    bound = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(sums.double(), exact, rtol=bound, atol=bound)
    ours = EventBlock.of_neurons(table_of(weight), None, None, leaky(torch.tensor(0.5), Firing()), "max_first")
    theirs, _ = one_after_another(
        SparseMaps.of(x, binary=False), table_of(weight), None, torch.zeros(outputs), torch.tensor(0.5), Firing(),
        "max_first", 6,
    )  # fmt: skip
    assert torch.equal(ours(SparseMaps.of(x, binary=False), 6).images(dtype), theirs.flatten(0, 1))


@pytest.mark.parametrize("outputs", [33, 64, 128])  # also words of bits that are full
@pytest.mark.parametrize("pool", SPIKING)
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_steps_one_after_another_are_the_whole(pool, size, outputs):
    x = maps(4 * 3, 20, *size)
    table, bias, k = table_of(values(outputs, 20, 3, 3)), values(outputs), torch.tensor(0.5)
    made = EventBlock.of_neurons(table, None, bias, leaky(k, FIRINGS[2]), pool)
    whole = made(SparseMaps.of(x, binary=True), 4).images(torch.float32).unflatten(0, (4, 3))
    v = None
    for step, expected in zip(x.unflatten(0, (4, 3)), whole, strict=True):
        spikes, v = made.step(SparseMaps.of(step.contiguous(memory_format=torch.channels_last), binary=True), v)
        assert torch.equal(spikes.images(torch.float32), expected)
    sums, first = (SparseMaps.of(x, binary=True), table, None, bias, k, FIRINGS[2]), FIRINGS[2].v_reset
    spikes, _ = one_after_another(*sums, pool, 4)
    assert torch.equal(spikes, whole)
    _, last = one_after_another(*sums, "none", 4, torch.full((1, 3, outputs, *size), first))
    assert torch.equal(v.permute(0, 1, 4, 2, 3), last)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 130), st.integers(1, 9), st.integers(1, 9)), share=SHARES,
    kind=st.sampled_from([torch.float32, torch.int8]),
)  # fmt: skip
def test_bits_of_maps_are_those_of_rows(shape, share, kind):
    x = maps(*shape, share=share)
    flat = SparseMaps.of(x, binary=True).flattened()
    assert torch.equal(flat, bits.pack(x.flatten(1))[0])
    inputs = x[0].numel() if len(x) else shape[1] * shape[2] * shape[3]
    table = (values(inputs, 70) * 40).to(kind)
    scale = None if kind == torch.float32 else torch.rand(70)
    assert torch.equal(linear_of_bits(flat, inputs, table, scale), linear_of_table(x.flatten(1), table, scale))
    with pytest.raises(UserError, match="does not fit"):
        linear_of_bits(flat, inputs + 1, table, scale)


def test_the_number_of_threads_changes_no_spike(monkeypatch):
    monkeypatch.setattr(layout, "WORTH_THREADS", 1)
    x = SparseMaps.of(maps(8, 30, 9, 9), binary=True)
    made = EventBlock.of_neurons(table_of(values(48, 30, 3, 3)), None, None, leaky(None, Firing()), "max_first")
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(made(x, 4).bits)
    finally:
        torch.set_num_threads(threads)
    assert found[0].any()
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparse", ["never", "always"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (5, 1), (3, 2)])
def test_inference_of_spikes_is_that_of_the_map(dtype, sparse, kernel, stride):
    x = maps(6, 20, 7, 8).to(dtype).unflatten(0, (3, 2))
    weight, statistics = (
        values(17, 20, kernel, kernel).to(dtype),
        (values(17), values(17, seed=2), values(1, 17), torch.rand(1, 17)),
    )
    y = conv2d(x.flatten(0, 1), weight, stride=stride, padding=kernel // 2).unflatten(0, (3, 2))
    neurons = leaky(torch.tensor(0.3), Firing())
    expected = norm_fire_pool(y, *statistics, neurons, batch_statistics=False, pool="max_first")
    settings = {"binary": True, "pool": "max_first", "sparse": sparse, "stride": stride}
    with torch.no_grad():
        ours = conv_fire_pool(x, weight, *statistics, neurons, **settings)
    assert ours.shape == expected.shape
    assert ours.dtype == dtype
    assert ours.stride() == expected.stride()
    assert (ours != expected).float().mean() < (0.001 if dtype == torch.float32 else 0.02)


def test_a_weight_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not fit"):
        conv_fire_pool(
            torch.ones(2, 1, 3, 5, 5), torch.ones(4, 2, 3, 3), *[torch.ones(4)] * 2, *[torch.ones(1, 4)] * 2,
            leaky(None, Firing()),
        )  # fmt: skip


@pytest.mark.parametrize("pool", SPIKING)
@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "channels"), [((3, 2, 1, 5, 7), 5), ((4, 3, 2, 12, 10), 16), ((1, 2, 2, 6, 6), 35)])
def test_a_first_block_that_skips_silence_is_the_one_that_does_not(pool, statistics, training, shape, channels):
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


@pytest.mark.parametrize(("sparse", "share"), [("always", 0.5), ("auto", 0.1), ("auto", 1)])
def test_moments_of_patches_of_events_are_those_of_all(sparse, share):
    x = events(3, 2, 2, 6, 5).float() * (torch.rand(3, 2, 2, 6, 5) < share)
    for ours, dense in zip(PatchMoments.of(x, sparse), PatchMoments.of(x), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "of_weight", "dense"),
    [
        (0.01, 0.1, []),
        (0.1, 0.05, ["_back_in_bands"]),
        (0.1, 0.4, []),
        (0.3, 0.4, ["_in_bands"]),
        (0.5, 0.4, ["_in_bands", "_back_in_bands"]),
    ],
)
def test_auto_skips_silence_up_to_the_limit(share, of_weight, dense, monkeypatch):
    monkeypatch.setattr(policy, "break_even", lambda op: {"events": 0.2, "events_weight": of_weight}[op.name])
    x = torch.rand(4, 1, 2, 64, 64).lt(share).float().contiguous()
    made = block_of("cpu", x, "max_first", channels=64)
    taken = []
    for name in ("_in_bands", "_back_in_bands"):
        form = getattr(block, name)
        monkeypatch.setattr(block, name, lambda *of, name=name, form=form: (taken.append(name), form(*of))[1])
    run(made, x)
    assert taken == dense


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


def test_what_is_measured_are_both_forms():
    op = Op("events", torch.float32, 2 * 36, 2, 20, (6, 6))
    for name in ("events", "events_weight"):
        ours, dense = (form() for form in candidates(op._replace(name=name), 0.2))
        for a, b in zip(*((of,) if name == "events" else of for of in (ours, dense)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert 0 <= policy._measured(op) <= policy._MOST


def test_ten_steps_of_an_event_network_are_those_without():
    small = {"channels": 6, "fc_features": 20}
    curves = [losses("nmnist", "cpu", torch.float32, sparse=s, **small) for s in ("always", "never")]
    assert curves[0][:3] == pytest.approx(curves[1][:3], rel=1e-6)  # afterwards a spike may flip
    assert curves[0] == pytest.approx(curves[1], rel=0.05)


@pytest.mark.filterwarnings("ignore:.*autograd.Function:DeprecationWarning")  # from PyTorch's compiler
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
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), votes)


@pytest.mark.parametrize("sparse", ["auto", "never", "always"])
@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("name", ["conv_fire_pool", "conv_fire_pool_backward", "patch_moments"])
def test_the_operators_keep_pytorchs_rules(name, pool, sparse):
    x = events(3, 2, 2, 6, 8).float().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    conv, one = values(20, 2, 3, 3), torch.ones(3, 20)
    neurons = leaky(torch.tensor(0.5), Firing())
    learned, key = rows_of(neurons, one), neurons.key
    grad = values(3, 2, 20, 3, 4) if pool else values(3, 2, 20, 6, 8)
    arguments = {
        "conv_fire_pool": (x, conv, one, one, learned, False, pool, key, sparse, 1),
        "conv_fire_pool_backward": (
            x, conv, one, one, one, learned, torch.tensor(0), grad, pool, key, sparse,
        ),
        "patch_moments": (x, sparse),
    }[name]  # fmt: skip
    torch.library.opcheck(getattr(torch.ops.plif, name), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_step_of_an_event_network_compiles_without_a_break():
    torch.manual_seed(0)
    net = SpikingNetwork(
        (2, 8, 8), 3, 4, channels=4, fc_features=8, dropout=0.0, pool_ties="first", sparse="always"
    )  # fmt: skip
    net = net.to(memory_format=torch.channels_last)
    compiles_without_a_break(net, events(4, 2, 2, 8, 8).float())
