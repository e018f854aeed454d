"""The network against a step-by-step implementation, Table S1, and its documented properties."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, load_network, step, use_backend
from plif_lightning.network.storage.fingerprint import fingerprint
from tests.dynamics import oracle

SMALL = {
    "input_shape": (2, 9, 10),
    "num_classes": 3,
    "time_steps": 4,
    "channels": 5,
    "fc_features": 7,
    "votes_per_class": 2,
}


def small(**kwargs):
    torch.manual_seed(0)
    network = SpikingNetwork(**{**SMALL, **kwargs})
    # with default initial weights such a small network is almost silent
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(4).add_(0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.uniform_(0, 1)
    return network


def inputs(time_steps=4, n=3, seed=1):
    return torch.randn(time_steps, n, 2, 9, 10, generator=torch.Generator().manual_seed(seed))


def step_by_step(network, x, pooling):
    """The paper's network run once per time-step (Algorithm S1), with the oracle's neurons."""
    blocks = list(network.encoder.named_children()) + list(network.classifier.named_children())
    potentials, votes = {}, []
    for x_t in x:
        y = x_t
        for name, block in blocks:
            if name.startswith("conv"):
                y = block.norm.bn(functional.conv2d(y, block.conv.weight, padding=1))
            else:
                y = functional.linear(y.flatten(1), block.fc.weight)
            s, potentials[name] = oracle.run(y[None], torch.sigmoid(block.neuron.a), potentials.get(name))
            y = s[0]
            if getattr(block, "pool", None) is not None:
                y = functional.max_pool2d(y, 2) if pooling == "max" else functional.avg_pool2d(y, 2)
        votes.append(y.unflatten(-1, (-1, network.voting.votes_per_class)).mean(-1))
    return torch.stack(votes)


def gradients(network, votes):
    label = torch.arange(votes.shape[1]) % votes.shape[2]
    functional.cross_entropy(votes.mean(0), label).backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize("n_conv", [1, 2])
@pytest.mark.parametrize("static", [True, False])
def test_network_equals_step_by_step_execution(pooling, n_conv, static):
    ours = small(n_conv=n_conv, pooling=pooling, pool_ties="first", dropout=0.0)
    theirs = copy.deepcopy(ours)
    x = inputs()[0] if static else inputs()
    votes = ours(x)
    expected = step_by_step(theirs, x.expand(4, *x.shape[-4:]), pooling)
    assert 0.02 < expected.mean() < 0.98
    torch.testing.assert_close(votes, expected)
    for (name, grad), e in zip(gradients(ours, votes).items(), gradients(theirs, expected).values(), strict=True):
        torch.testing.assert_close(grad, e, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    for (name, buffer), e in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, e, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("statistics", ["per_step", "all_steps"])
def test_a_static_image_equals_its_repetition(statistics):
    held = small(norm_statistics=statistics, pool_ties="first", dropout=0.0)
    repeated = copy.deepcopy(held)
    x = inputs()[0]
    votes, expected = held(x), repeated(x.expand(4, -1, -1, -1, -1))
    torch.testing.assert_close(votes, expected)
    for grad, e in zip(gradients(held, votes).values(), gradients(repeated, expected).values(), strict=True):
        torch.testing.assert_close(grad, e, rtol=1e-4, atol=1e-6)
    for buffer, e in zip(held.buffers(), repeated.buffers(), strict=True):
        torch.testing.assert_close(buffer, e, rtol=1e-5, atol=1e-6)


def test_first_convolution_of_a_static_image_runs_once():
    network = small()
    shapes = []
    network.encoder.conv1.conv.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    network(inputs()[0])
    assert shapes == [(3, 5, 9, 10)]


def test_nothing_is_left_over_from_the_batch_before():
    network = small().eval()
    first, second = inputs(seed=1), inputs(seed=2)
    alone = copy.deepcopy(network)(second)
    network(first)
    assert torch.equal(network(second), alone)


def test_dropout_mask_is_the_same_at_every_step_and_scaled():
    torch.manual_seed(0)
    dropout = small(dropout=0.3).classifier.fc1.dropout
    x = torch.ones(6, 50, 40)
    y = dropout(x)
    assert torch.equal(y, y[:1].expand_as(y))  # constant over T
    assert not torch.equal(y[:, 0], y[:, 1])  # independent for each sample
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.7]))
    assert abs((y[0] == 0).float().mean() - 0.3) < 0.03
    assert torch.equal(dropout.eval()(x), x)


def test_spikes_are_binary_everywhere_before_voting():
    network = small()
    seen = []
    for module in network.modules():
        if type(module).__name__ in ("PLIF", "SpikeMaxPool2d"):
            module.register_forward_hook(lambda m, i, o: seen.append(o))
    votes = network(inputs())
    assert len(seen) == 6
    assert all(set(o.unique().tolist()) <= {0.0, 1.0} for o in seen)
    assert votes.shape == (4, 3, 3)
    assert set((votes * 2).unique().tolist()) <= {0.0, 1.0, 2.0}


def test_bf16_autocast_keeps_membranes_and_votes_in_float32():
    network = small()
    seen = []
    network.encoder.conv1.conv.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        votes = network(inputs())
    assert seen == [torch.bfloat16]
    assert votes.dtype == torch.float32
    votes.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"neuron": "lif"},
        {"neuron": "if"},
        {"tau_per": "channel"},
        {"surrogate": "sigmoid"},
        {"reset": "soft"},
        {"learn_threshold": True},
        {"neuron": "if", "learn_threshold": True, "tau_per": "channel"},
    ],
)
def test_every_kind_of_neuron_trains(kwargs):
    network = small(**kwargs)
    network(inputs()).sum().backward()
    learned = [name for name, p in network.named_parameters() if name.endswith(".a")]
    assert len(learned) == (4 if kwargs.get("neuron") is None else 0)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    thresholds = [p for name, p in network.named_parameters() if name.endswith("v_threshold_raw")]
    assert len(thresholds) == (4 if kwargs.get("learn_threshold") else 0)
    assert not thresholds or all(p.grad.abs().sum() > 0 for p in thresholds[:1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"time_steps": 0}, "time_steps must be a whole number, at least 1"),
        ({"time_steps": 2.0}, "time_steps must be a whole number, at least 1, got 2.0"),
        ({"input_shape": (2, 9, 0)}, "leaves nothing of a map of 9x0"),
        ({"n_conv": 0}, "n_conv must be at least 1"),
        ({"n_down": 4}, "leaves nothing of a map of 1x1, from an input of 9x10"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": [0.5]}, "n_fc = 2"),
        ({"pooling": "min"}, "pooling must be one of max, avg"),
        ({"neuron": "gru"}, "neuron must be one of plif, lif, if"),
        ({"input_encoder": "rate"}, "input_encoder must be one of"),
        ({"init_tau": 0.5}, "init_tau must be > 1"),
    ],
)
def test_a_wrong_argument_is_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        small(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "x", "message"),
    [
        ({}, torch.zeros(4, 1, 2, 9, 9), r"x must be \[4, N, 2, 9, 10\], time first, or static images \[N, 2, 9, 10\]"),
        ({}, torch.zeros(3, 1, 2, 9, 10), r"x must be \[4, N"),
        ({}, torch.zeros(1, 3, 2, 9, 10), r"got \[1, 3, 2, 9, 10\]"),
        ({}, torch.zeros(9, 10), r"got \[9, 10\]"),
        ({"input_encoder": "poisson"}, torch.full((1, 2, 9, 10), 1.5), "--data.normalize=false"),
        (
            {"input_encoder": "latency"},
            torch.zeros(4, 1, 2, 9, 10),
            "encodes an image for all T at once: frames need 'direct'",
        ),
    ],
)
def test_a_wrong_input_is_named(kwargs, x, message):
    with pytest.raises(UserError, match=message):
        small(**kwargs)(x)


def test_a_checkpoint_of_another_backend_is_loaded_and_its_mistakes_are_named(tmp_path):
    network = small()
    hyper = {**SMALL, "backend": "triton", "loss": "rate", "more": 1}
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    stored = {"hyper_parameters": hyper, "state_dict": state, "fingerprint": fingerprint(network)}
    torch.save(stored, tmp_path / "a.ckpt")
    loaded = load_network(tmp_path / "a.ckpt")
    assert torch.equal(loaded(inputs()), network.eval()(inputs()))
    torch.save({**stored, "hyper_parameters": {**hyper, "n_conv": 0}}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="n_conv must be at least 1"):
        load_network(tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"network\.ckpt does not exist"):
        load_network(tmp_path)


def test_in_float64_votes_and_gradients_have_all_its_digits():
    ours = small(pool_ties="first", dropout=0.0).double()
    theirs = copy.deepcopy(ours)
    x = inputs().double()
    votes, expected = ours(x), step_by_step(theirs, x, "max")
    assert votes.dtype == torch.float64
    pairs = zip(gradients(ours, votes).values(), gradients(theirs, expected).values(), strict=True)
    for found, grad in pairs:
        torch.testing.assert_close(found, grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
def test_an_input_of_any_type_is_taken(dtype):
    """Found by a review: NumPy's float64 was a traceback."""
    net = SpikingNetwork((1, 8, 8), 3, 2, channels=4, fc_features=10, v_threshold=0.1).eval()
    x = torch.randint(0, 3, (2, 3, 1, 8, 8)).to(dtype)
    assert torch.equal(net(x), net(x.float()))
    assert torch.equal(step(net, x[0])[0], net(x.float())[0])
    for backend in ("auto", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            assert use_backend(net, backend)(x).dtype == torch.float32
    assert net.double()(x).dtype == torch.float64
