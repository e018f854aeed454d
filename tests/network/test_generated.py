"""Random structures: the kernels against the reference, single time-steps, folded and deployed networks."""

import pytest
import torch

import plif_lightning as pl
from plif_lightning.deploy import deployed, fold
from tests.network.generated import TRANSCENDENTAL, input_of, network_of, structures, votes_and_gradients

DRAWN = dict(structures(40))
SEEDS = [seed if number < 24 else pytest.param(seed, marks=pytest.mark.slow) for number, seed in enumerate(DRAWN)]
drawn = pytest.mark.parametrize("seed", SEEDS)
# Without functions that libraries round differently.
exact = pytest.mark.parametrize(
    "seed", [seed for seed, one in DRAWN.items() if not any(name in one.structure for name in TRANSCENDENTAL)]
)


def steps_of(net, x):
    state, votes = None, []
    for frame in x:
        y, state = pl.step(net, frame, state)
        votes.append(y)
    return torch.stack(votes)


def evaluated(seed, **settings):
    """A network in evaluation mode, and its input as frames."""
    one = DRAWN[seed]
    net, x = network_of(one, seed, **settings).eval(), input_of(one, seed, torch.float32)
    return net, x.expand(net.time_steps, *x.shape) if one.static else x


def outputs_of(net, x):
    """The output of each block, in its fastest form."""
    found, y = [], net.inputs(x)
    for room in (net.encoder, net.classifier):
        y = y if room is net.encoder else y.flatten(2)
        for block in room:
            y = block(y)
            found.append(y)
    return found


def heard(net, x):
    """The spikes of each layer of neurons, before any pool."""
    found = {}
    with net.record_spikes(found.__setitem__):
        net(x)
    return found


@drawn
def test_votes_and_gradients_in_float64_are_the_references(seed):
    expected = votes_and_gradients(DRAWN[seed], seed, backend="reference")
    for sparse in ("auto", "always"):
        found = votes_and_gradients(DRAWN[seed], seed, backend="cpu", sparse=sparse)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= 1e-12 * value.abs().max().clamp(min=1), name


@exact
@torch.no_grad()
def test_spikes_in_float32_are_the_references_to_the_bit(seed):
    reference, x = evaluated(seed, backend="reference")
    blocks, spikes, votes = outputs_of(reference, x), heard(reference, x), reference(x)
    for sparse in ("auto", "always"):
        net, _ = evaluated(seed, backend="cpu", sparse=sparse)
        found = heard(net, x)
        assert found.keys() == spikes.keys()
        assert all(torch.equal(value, spikes[name]) for name, value in found.items())
        for value, expected in zip([*outputs_of(net, x), net(x)], [*blocks, votes], strict=True):
            # Sums of a block without neurons, and of a readout, are rounded in another order.
            rounding = 0.0 if ((expected == 0) | (expected == 1)).all() else 1e-5
            torch.testing.assert_close(value, expected, rtol=rounding, atol=rounding)


@drawn
@torch.no_grad()
def test_steps_folded_and_deployed_networks_agree(seed):
    net, x = evaluated(seed)
    net = net.double()
    votes = net(x.double())
    torch.testing.assert_close(steps_of(net, x.double()), votes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fold(net)(x.double()), votes, rtol=1e-9, atol=1e-9)
    net, x = evaluated(seed)
    torch.testing.assert_close(deployed(net)(x), net(x))
