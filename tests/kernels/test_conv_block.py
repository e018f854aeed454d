"""The first block, whose convolution is computed per band and never stored, against the reference."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from plif_lightning.kernels import PatchMoments, layout, moments_over_processes, ops
from plif_lightning.layers.norm import TimeBatchNorm
from plif_lightning.layers.plan import ConvBlock
from plif_lightning.layers.pooling import Pool2d
from plif_lightning.network import use_backend
from plif_lightning.neurons import IF, PLIF
from tests.kernels.test_fused import POOLS, assert_equal_runs, fill_with_nan
from tests.processes import on_two_processes


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch):
    monkeypatch.setitem(layout.BAND, "cpu", 1)  # two rows, the minimum


def block(backend, x, pool="none", channels=5, statistics="per_step", training=True, neuron=None) -> ConvBlock:
    torch.manual_seed(3)
    conv = nn.Conv2d(x.shape[2], channels, 3, padding=1, bias=False)
    norm = TimeBatchNorm(channels, statistics)
    nn.init.uniform_(norm.bn.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bn.bias, -0.5, 1.0)
    norm.bn.running_mean.uniform_(-0.5, 0.5)
    norm.bn.running_var.uniform_(0.5, 1.5)
    pool = None if POOLS[pool] is None else Pool2d(POOLS[pool])
    made = ConvBlock(conv, norm, neuron or PLIF(), pool).to(x.dtype).train(training)
    return use_backend(made, backend)


def run(made: ConvBlock, x: torch.Tensor) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    torch.manual_seed(7)
    spikes = made(x)
    weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spikes.backward(weight.to(spikes.dtype))
    return (
        spikes.detach(),
        {name: p.grad for name, p in made.named_parameters()},
        {name: b.clone() for name, b in made.named_buffers()},
    )


def equal(x: torch.Tensor, pool: str, tolerance: float = 1e-8, **arguments: Any) -> None:
    ours = block("cpu", x, pool, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        if pool == "max_random":  # each band draws its own ties
            patch.setitem(layout.BAND, "cpu", 2**23)
        found = run(ours, x)
    assert ours.choice.form == "one pass"
    assert_equal_runs(found, run(block("reference", x, pool, **arguments), x), tolerance)


def events(*shape: int) -> torch.Tensor:
    return torch.poisson(torch.full(shape, 0.4, dtype=torch.float64), torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 2, 4, 4), (3, 2, 1, 5, 7), (8, 1, 3, 9, 6)])
def test_the_first_block_is_the_reference(pool, statistics, training, shape):
    equal(events(*shape), pool, statistics=statistics, training=training)


@pytest.mark.parametrize(
    "neuron",
    [
        lambda: IF(),
        lambda: PLIF(tau_per="channel", channels=5),
        lambda: PLIF(learn_threshold=True),
        lambda: IF("channel", 5, True, reset="soft"),
        lambda: PLIF(v_reset=-0.4, detach_reset=False, v_threshold=0.7, surrogate="triangle"),
    ],
)
def test_the_first_block_of_every_neuron_is_the_reference(neuron):
    x = events(4, 2, 2, 6, 6)
    equal(x, "max_random", neuron=neuron())


@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(1, 4), st.integers(2, 9), st.integers(2, 9)),
    pool=st.sampled_from(list(POOLS)),
    statistics=st.sampled_from(["per_step", "all_steps"]),
    band=st.sampled_from([1, 700, 2**23]),
)
def test_first_blocks_of_any_shape_are_the_reference(shape, pool, statistics, band):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layout.BAND, "cpu", band)
        equal(events(*shape) - 0.3, pool, statistics=statistics)


@pytest.mark.parametrize("pool", ["none", "max_first", "avg"])
def test_the_width_of_bands_changes_no_gradient(monkeypatch, pool):
    x = events(4, 3, 2, 12, 10)
    narrow = run(block("cpu", x, pool), x)
    monkeypatch.setitem(layout.BAND, "cpu", 2**23)
    wide = run(block("cpu", x, pool), x)
    for name in wide[1]:
        torch.testing.assert_close(narrow[1][name], wide[1][name])


def test_banded_backward_gives_each_window_a_single_winner():
    """A surrogate that is the same everywhere makes the gradient of BN's bias that of all windows, whoever fired."""
    x = events(3, 2, 2, 12, 10)
    same = {"surrogate": "rectangle", "surrogate_width": 1e3, "through_time": False}
    ours, theirs = (run(block(b, x, "max_random", neuron=IF(**same)), x) for b in ("cpu", "reference"))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1]["norm.bn.bias"], theirs[1]["norm.bn.bias"])
    assert not torch.equal(ours[1]["conv.weight"], theirs[1]["conv.weight"])  # other neurons of the ties


def test_nothing_is_read_that_was_not_written(monkeypatch):
    x = events(3, 2, 2, 7, 5)
    expected = run(block("cpu", x, "max_random"), x)
    fill_with_nan(monkeypatch)
    ours = run(block("cpu", x, "max_random"), x)
    assert torch.equal(ours[0], expected[0])
    for name in ours[1]:
        assert torch.equal(ours[1][name], expected[1][name])


def test_under_autocast_the_convolution_is_bfloat16_and_the_neuron_float32():
    x = events(6, 4, 2, 8, 8).float()
    results = []
    for backend in ("cpu", "reference"):
        made = block(backend, x, "max_first")
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(made, x))
        assert made.conv.weight.grad.dtype == torch.float32
    assert results[0][0].dtype == results[1][0].dtype == torch.bfloat16
    assert (results[0][0] != results[1][0]).float().mean() < 0.01
    exact = run(block("reference", x.double(), "max_first"), x.double())[1]["conv.weight"]
    errors = [(r[1]["conv.weight"] - exact).norm() / exact.norm() for r in results]
    assert errors[0] < max(0.05, 1.2 * errors[1])


def test_patch_moments_give_the_convolutions_moments():
    x = (1000 + events(3, 2, 2, 6, 5)).float()
    weight = torch.randn(4, 2, 3, 3)
    mean, var = PatchMoments.of(x).of_convolution(weight)
    y = torch.conv2d(x.flatten(0, 1).double(), weight.double(), padding=1).unflatten(0, (3, 2))
    torch.testing.assert_close(mean, y.mean((1, 3, 4)).float())
    torch.testing.assert_close(var, y.var((1, 3, 4), correction=0).float(), rtol=1e-4, atol=0)


def test_an_input_with_a_gradient_gets_it():
    x = events(3, 2, 2, 6, 6)
    grads = []
    for backend in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        run(block(backend, x, "max_first"), leaf)
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "change",
    [
        lambda made: setattr(made, "conv", nn.Conv2d(2, 5, 3, padding=1, bias=True, dtype=torch.float64)),
        lambda made: setattr(made, "conv", nn.Conv2d(2, 5, 5, padding=2, bias=False, dtype=torch.float64)),
        lambda made: setattr(
            made, "conv", nn.Conv2d(2, 5, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
        ),
        lambda made: nn.utils.parametrizations.weight_norm(made.conv),
        lambda made: made.conv.register_forward_hook(lambda *a: None),
    ],
)
def test_another_convolution_is_called_as_it_is(change):
    x = events(3, 2, 2, 6, 6)
    spikes = []
    for backend in ("cpu", "reference"):
        made = block(backend, x)
        torch.manual_seed(0)
        change(made)
        spikes.append(made(x))
    assert torch.equal(*spikes)


STATISTICS = ["per_step", "all_steps"]


def halves_of_a_batch(rank):
    return {statistics: half_of_a_batch(rank, statistics) for statistics in STATISTICS}


def half_of_a_batch(rank, statistics):
    x = events(4, 4, 2, 6, 6)
    made = block("cpu", x, "max_first", statistics=statistics)
    made.norm.bn = nn.SyncBatchNorm.convert_sync_batchnorm(made.norm.bn)
    spikes = made(x[:, 2 * rank : 2 * rank + 2])
    weight = torch.randn(4, 4, 5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spikes.backward(weight[:, 2 * rank : 2 * rank + 2])
    return spikes.detach(), [p.grad for p in made.parameters()]


def moments_far_from_zero(rank):
    x = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(rank)) * (rank + 1) + 1000
    found = moments_over_processes(x.mean(1), x.var(1, correction=0), 50)
    return [value.double() for value in found], x


def test_moments_of_all_processes_do_not_cancel(tmp_path):
    """A variance of 1 at a mean of 1,000 was 0.875 in float32."""
    halves = on_two_processes(moments_far_from_zero, tmp_path)
    whole = torch.cat([x for _, x in halves], 1).double()
    for (mean, var, n), _ in halves:
        torch.testing.assert_close(mean, whole.mean(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(var, whole.var(1, correction=0), rtol=1e-4, atol=0)
        assert n.unique().tolist() == [100]


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """Results of each of two processes on its half of the batch, in every case."""
    return on_two_processes(halves_of_a_batch, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_sync_batchnorm_on_two_processes_equals_the_full_batch(on_two, statistics):
    halves = [half[statistics] for half in on_two]
    x = events(4, 4, 2, 6, 6)
    whole = run(block("cpu", x, "max_first", statistics=statistics), x)
    assert torch.equal(torch.cat([half[0] for half in halves], 1), whole[0])
    for ours, *theirs in zip(whole[1].values(), *(half[1] for half in halves), strict=True):
        torch.testing.assert_close(sum(theirs), ours)


def test_each_band_draws_other_ties(monkeypatch):
    seeds = []
    backward = ops.fire_backward
    monkeypatch.setattr(ops, "fire_backward", lambda *of: (seeds.append(int(of[6])), backward(*of))[1])
    x = events(3, 2, 2, 12, 10)
    run(block("cpu", x, "max_random"), x)
    assert len(seeds) == 6
    assert len(set(seeds)) == 6


@pytest.mark.parametrize("pool", ["max_first", "avg"])
def test_no_band_ends_within_a_window(monkeypatch, pool):
    x = events(4, 3, 2, 12, 10)
    monkeypatch.setitem(layout.BAND, "cpu", 3 * 4 * 3 * 10 * 5)  # room for three rows of 5 channels
    equal(x, pool)
