"""Inference engines: each layer in a dense, event-driven or integer form."""

import copy
import logging
import pickle
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plif_lightning.deploy import deployed, engine, fold, plain, weights
from plif_lightning.deploy.weights import Packed, Rows, quantised
from plif_lightning.errors import UserError
from plif_lightning.kernels import SparseMaps
from plif_lightning.network import step, use_backend
from plif_lightning.network.blocks import FCBlock
from plif_lightning.network.conv import ConvBlock
from plif_lightning.network.layers import Pool2d
from plif_lightning.neurons import PLIF
from tests.deploy.conftest import frames, trained


def by_modules(net, made):
    """The folded network with the same form in each layer as the deployed one."""
    folded = fold(net).requires_grad_(False)
    for form, block in zip(made.forms.values(), folded.blocks().values(), strict=True):
        use_backend(block, "cpu", "always" if "events" in form else "never")
    return folded


KINDS = [{}, {"n_conv": 2}, {"pooling": "avg"}, {"tau_per": "channel"}, {"channels": 70, "fc_features": 130}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_events_are_the_network_to_the_bit(kind):
    net = trained(**kind)
    x = frames(net)
    votes = use_backend(fold(net), "cpu", "always")(x)
    assert torch.equal(deployed(net, "events")(x), votes)
    torch.testing.assert_close(deployed(net, "auto", x)(x), votes)  # the fastest forms on this machine
    torch.testing.assert_close(deployed(net, "dense")(x), votes)
    torch.testing.assert_close(deployed(net, "events")(x[0]), fold(net)(x[0]))  # a static image


def test_frames_of_events_are_gone_over_where_something_happened(net):
    x = frames(net)
    assert deployed(net, "events").forms["conv1"] == "events"  # two channels
    assert deployed(net, "events", x).forms["conv1"] == "events"
    assert deployed(net, "events", x[0]).forms["conv1"] == "dense"  # a static image is dense
    assert deployed(trained(shape=(1, 12, 12)), "events").forms["conv1"] == "dense"
    net.encoder.conv1.register_forward_hook(lambda module, given, out: None)
    assert deployed(net, "events").forms["conv1"] == "dense"


@pytest.mark.parametrize("as_bits", [False, True])
def test_a_layer_is_timed_in_each_form(net, as_bits, monkeypatch):
    """Timing uses the actual input: bits if the previous layer produces them."""
    folded, timed = fold(net), []
    monkeypatch.setattr(engine, "least_seconds", lambda *runs: (timed.append([run() for run in runs]), range(2))[1])
    conv2, given = folded.encoder.conv2, engine.inputs_of(folded, frames(net))["conv2"]
    forms = {
        name: plain.ConvLayer("conv2", conv2, make()) for name, make in engine.forms_of(conv2, "int16", given).items()
    }
    before = plain.ConvLayer("conv1", folded.encoder.conv1, Rows(folded.encoder.conv1.conv.weight)) if as_bits else None
    assert engine._best(forms, given, before) == next(iter(forms))
    for spikes in timed[0]:
        spikes = spikes.images(torch.float32) if isinstance(spikes, SparseMaps) else spikes
        assert torch.equal(spikes, conv2(given).flatten(0, 1))


@pytest.fixture(params=["events", "dense"])
def form(request, monkeypatch):
    """Force this form for all integer layers that support it."""
    if request.param == "dense" and not weights._works():
        pytest.skip("PyTorch has no exact 8-bit operators here")
    monkeypatch.setattr(engine, "_fastest", lambda forms, *x: next(f for f in forms if f.endswith(request.param)))
    return request.param


@pytest.mark.parametrize("bits", ["int16", "int8", "int4"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_integers_are_the_network_with_rounded_weights(bits, kind, form):
    net = trained(**kind)
    largest = {"int16": 32639, "int8": 127, "int4": 7}[bits]
    rounded = fold(net)
    layers = [*(block.conv for block in rounded.encoder)][1:] + [block.fc for block in rounded.classifier]
    made = deployed(net, bits)
    assert made.forms["conv1"] == form  # its input is not binary
    assert made.forms["fc2"] == f"{bits} {form}"
    for layer, taken in zip(layers, list(made.forms.values())[1:], strict=True):
        if taken != "dense":  # layers after average pooling stay dense
            whole, scale = quantised(layer.weight, largest)
            assert whole.abs().amax() == largest
            layer.weight.data = whole.float() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    x = frames(net)
    torch.testing.assert_close(made(x), rounded(x))


needs_packed = pytest.mark.skipif(not weights._works(), reason="PyTorch has no exact 8-bit operators here")


@needs_packed
@settings(deadline=None)
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 130),
    outputs=st.integers(1, 40),
    largest=st.sampled_from([32639, 127, 7]),
    share=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_both_forms_of_integers_are_equal_to_the_bit(size, channels, outputs, largest, share):
    images, height, width = size
    torch.manual_seed(channels)
    x = torch.rand(images, channels, height, width).lt(share).float().contiguous(memory_format=torch.channels_last)
    whole, scale = quantised(torch.randn(outputs, channels, 3, 3), largest)
    packed = Packed(whole, scale, x.shape if images else None)
    assert torch.equal(packed.sums(x), Rows(whole, scale).sums(x))
    flat = x.flatten(1)
    whole, scale = quantised(torch.randn(outputs, flat.shape[-1]), largest)
    assert torch.equal(Packed(whole, scale).sums(flat), Rows(whole, scale).sums(flat))


PLAIN = [
    {}, {"n_conv": 2}, {"pooling": "avg"}, {"tau_per": "channel"}, {"neuron": "if"}, {"reset": "soft"},
    {"learn_threshold": True, "tau_per": "channel"}, {"v_reset": -0.5}, {"channels": 70}, {"shape": (1, 13, 11)},
    {"pool_ties": "random"},
]  # fmt: skip


@pytest.mark.parametrize("name", ["dense", "events"])
@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_plain_calls_give_what_the_modules_give(kind, name):
    net = trained(**kind)
    made = deployed(net, name)
    modules = by_modules(net, made)
    for samples in (3, 1, 7):
        for x in (frames(net, samples), frames(net, samples)[0]):
            votes = made(x)
            if x.dim() == 5 or name == "dense":
                assert torch.equal(votes, modules(x))
            torch.testing.assert_close(votes, modules(x))
            assert votes.shape == (4, samples, 3)
    assert votes.any()


@pytest.mark.parametrize("name", ["dense", "events"])
@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_steps_by_plain_calls_are_those_of_the_network(kind, name):
    net = trained(**kind)
    made = deployed(net, name)
    modules = by_modules(net, made)
    state = expected_state = None
    for i, frame in enumerate(frames(net)):
        votes, state = made.step(frame, state)
        expected, expected_state = step(modules, frame, expected_state)
        assert torch.equal(votes, expected)
        assert list(state) == list(expected_state)
        for v, of_network in zip(state.values(), expected_state.values(), strict=True):
            assert torch.equal(v, of_network)
        if i == 1:  # continue each from the potentials of the other
            state, expected_state = expected_state, state


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_steps_on_integers_are_the_sequence(kind, form):
    net = trained(**kind)
    made, x, state, votes = deployed(net, "int8"), frames(net), None, []
    for frame in x:
        y, state = made.step(frame, state)
        votes.append(y)
    assert torch.equal(torch.stack(votes), made(x))


def test_a_step_from_a_foreign_state_is_refused(net):
    made = deployed(net, "events")
    x = frames(net)
    _, state = made.step(x[0])
    with pytest.raises(UserError, match="state must hold the states"):
        made.step(x[1], {name: v for name, v in state.items() if "fc2" not in name})
    # The kernels would read past the end of a tensor that is too short.
    for foreign in ({name: v.double() for name, v in state.items()}, {name: v[:2] for name, v in state.items()}):
        with pytest.raises(UserError, match="v must have the shape of one step"):
            made.step(x[1], foreign)
    with pytest.raises(UserError, match="v must have the shape of one step"):
        made.step(x[1, :2], state)
    small, large = (deployed(trained(shape=(2, size, size)), "events") for size in (8, 12))
    _, state = small.step(torch.zeros(3, 2, 8, 8))
    with pytest.raises(UserError, match="v must have the shape of one step"):
        large.step(torch.zeros(3, 2, 12, 12), state)
    for other in (x, x[0, :, :1]):
        with pytest.raises(UserError, match="x must be one step"):
            made.step(other)


@pytest.mark.parametrize("kind", [{}, {"pooling": "avg"}, {"shape": (2, 13, 11)}, {"hooked": True}], ids=str)
@pytest.mark.parametrize("name", ["dense", "events"])
def test_who_listens_hears_every_layers_spikes(kind, name):
    net = trained(**{key: value for key, value in kind.items() if key != "hooked"})
    if "hooked" in kind:
        net.encoder.conv2.register_forward_hook(lambda module, given, out: None)
    made, x = deployed(net, name), frames(net)
    votes, (vote, _) = made(x), made.step(x[0])
    expected, heard, stepped, again = {}, {}, {}, {}
    with by_modules(net, made).listening(expected.__setitem__):
        pass
    with torch.no_grad(), net.listening(expected.__setitem__):
        net(x)
    with made.listening(heard.__setitem__):
        assert torch.equal(made(x), votes)
    with made.listening(stepped.__setitem__):
        assert torch.equal(made.step(x[0])[0], vote)
    assert list(heard) == list(stepped) == list(expected) == ["conv1", "conv2", "fc1", "fc2"]
    for layer, spikes in expected.items():
        assert heard[layer].shape == spikes.shape
        assert stepped[layer].shape == (1, *spikes.shape[1:])
        torch.testing.assert_close(heard[layer], spikes)
        torch.testing.assert_close(stepped[layer][0], spikes[0])
    with made.listening(again.__setitem__):
        pass
    made(x)
    assert not again


def test_it_does_not_change(net):
    made, x = deployed(net, "events"), frames(net)
    votes = made(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(made.double()(x), votes)
    assert not list(made.parameters())
    assert not list(made.children())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        made.load_state_dict(net.state_dict())


def test_inputs_of_any_type_are_taken_and_other_shapes_refused(net):
    made = deployed(net, "events")
    x = frames(net)
    for other in (x.to(torch.uint8), x.double()):
        assert torch.equal(made(other), made(x))
        assert torch.equal(made.step(other[0])[0], made.step(x[0])[0])
    for other in (x[:3], x[0, 0], x[..., :5]):
        with pytest.raises(UserError, match=r"x must be \[4, N, 2, 12, 12\], time first, or static images"):
            made(other)


@pytest.mark.parametrize("name", ["dense", "events"])
def test_a_large_batch_is_taken_in_parts(net, name, monkeypatch):
    made, x = deployed(net, name), frames(net, 7)
    votes = made(x)
    monkeypatch.setattr(plain, "at_a_time", lambda device: 3 * 4 * 8 * 12 * 12)
    sizes = []
    monkeypatch.setattr(made, "_votes", lambda part, votes=made._votes: (sizes.append(part.shape[1]), votes(part))[1])
    torch.testing.assert_close(made(x), votes)
    assert sizes == ([3, 3, 1] if name == "dense" else [7])  # events never store the feature map


@pytest.mark.parametrize("name", ["events", "int8"])
def test_counts_of_events_are_taken_where_no_layer_has_parameters(name):
    net = trained(neuron="if")
    x = (frames(net) > 0).to(torch.uint8)
    made = deployed(net, name)
    assert torch.equal(made(x), made(x.float()))
    assert torch.equal(made.step(x[0])[0], made(x)[0])


@pytest.mark.parametrize("name", ["dense", "events"])
def test_the_defaults_of_the_process_do_not_matter(net, name):
    made, x = deployed(net, name), frames(net)
    votes, (_, state) = made(x), made.step(x[0])
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        assert torch.equal(made(x), votes)
        for v, before in zip(made.step(x[0])[1].values(), state.values(), strict=True):
            assert torch.equal(v, before)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x), votes)


def test_of_many_shapes_some_are_kept(net):
    made = deployed(net, "dense")
    modules = by_modules(net, made)
    for samples in range(1, 20):
        x = frames(net, samples)
        assert torch.equal(made(x), modules(x))
    assert all(len(layer._fire._cached) <= 8 for layer in made._layers)


def test_one_sample_takes_the_librarys_same_algorithm_in_a_step():
    for seed in range(5):
        torch.manual_seed(seed)
        net = trained(n_conv=2, n_down=1, shape=(2, 9, 6))
        made, frame = deployed(net, "dense"), frames(net, 1)[0]
        states = made.step(frame)[1], step(by_modules(net, made), frame)[1]
        for v, of_modules in zip(*(state.values() for state in states), strict=True):
            assert torch.equal(v, of_modules)


def test_a_network_with_a_container_of_its_own_is_called_as_it_is(net):
    x, expected = frames(net), fold(net)(frames(net))
    net.classifier.register_forward_hook(lambda module, given, out: out * 0.5)
    made = deployed(net, "events")
    assert set(made.forms.values()) == {"dense"}
    torch.testing.assert_close(made(x), 0.5 * expected)
    votes, state = made.step(x[0])
    assert torch.equal(votes, step(fold(net), x[0])[0])
    assert torch.equal(made.step(x[1], state)[0], step(fold(net), x[1], state)[0])
    heard = {}
    with made.listening(heard.__setitem__):
        made(x)
    assert list(heard) == ["conv1", "conv2", "fc1", "fc2"]


@needs_packed
@pytest.mark.parametrize("bits", ["int16", "int8"])
def test_a_deployed_network_can_be_copied_and_sent_elsewhere(net, bits, monkeypatch):
    monkeypatch.setattr(engine, "_fastest", lambda forms, *x: next(f for f in forms if f.endswith("dense")))
    made = deployed(net, bits)
    x = frames(net)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(x), made(x))


def test_two_parts_of_eight_bits_are_sixteen():
    whole = torch.tensor([-32639, -32512, -129, -128, -1, 0, 1, 127, 128, 255, 32639], dtype=torch.int16)
    low, high = weights._parts(whole)
    assert low.dtype == high.dtype == torch.int8
    assert torch.equal(low.int() + 256 * high.int(), whole.int())


def test_without_exact_operators_only_events_are_left(net, monkeypatch):
    monkeypatch.setattr(weights, "_works", lambda: False)
    first, *others = deployed(net, "int8", frames(net)).forms.values()
    assert first in ("dense", "events")  # whichever is faster
    assert set(others) == {"int8 events"}


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN's 8-bit operators are x86's",
)
def test_on_x86_they_are_there_and_exact():
    assert weights._works()  # otherwise their tests would be silently skipped


def test_operators_that_are_missing_or_wrong_are_not_used(monkeypatch):
    for wrong in (
        lambda *a: (_ for _ in ()).throw(AttributeError("no operator")),
        lambda self, spikes, packed: torch.zeros(len(spikes), 2, *spikes.shape[2:]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Packed, "_sum", wrong)
            assert not weights._works.__wrapped__()


@needs_packed
def test_whether_the_operators_work_does_not_depend_on_who_asks():
    with torch.autocast("cpu", torch.bfloat16):
        assert weights._works.__wrapped__()
    torch.set_default_dtype(torch.float64)
    try:
        assert weights._works.__wrapped__()
    finally:
        torch.set_default_dtype(torch.float32)


def test_more_inputs_than_float32_can_add_up_are_left_to_events():
    assert not weights.can_be_packed(torch.zeros(1, 2**17 + 1, dtype=torch.int8))


def test_a_layer_that_hears_nothing_is_tried_on_random_spikes(net):
    folded, x = fold(net).requires_grad_(False), frames(net, 40)
    heard = engine.inputs_of(folded, x)
    assert heard["conv2"].shape[:2] == (4, 16)  # the first samples only
    assert torch.equal(heard["fc1"], folded.encoder(x[:, :16]).flatten(2).flatten(0, 1))
    folded.encoder.conv2.conv.bias.fill_(-1e6)
    assert 0.05 < engine.inputs_of(folded, x)["fc1"].mean() < 0.2
    for time_steps in (None, 1):
        spikes = engine.inputs_of(folded, None, time_steps)
        assert spikes["conv2"].shape == (time_steps or 4, 1, 8, 6, 6)
        assert 0.02 < spikes["conv2"].mean() < 0.2
        assert spikes["conv1"].mean() < 0.05


@pytest.mark.parametrize("encoder", ["poisson", "latency"])
def test_encoded_images_are_computed_on_integers(encoder, form):
    net = trained(input_encoder=encoder, shape=(1, 12, 12))
    state = torch.random.get_rng_state()
    made = deployed(net, "int8")
    assert made.forms["conv1"] == f"int8 {form}"  # its input is binary
    x = torch.rand(3, 1, 12, 12, dtype=torch.float64)
    torch.random.set_rng_state(state)
    deployed(net, "int8", x)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random state is unchanged
    assert made(x.float()).shape == (4, 3, 3)


def test_sixteen_bits_change_no_vote(net, form):
    x = frames(net, 8)
    assert torch.equal(deployed(net, "int16")(x), deployed(net, "events")(x))


def test_rounding_keeps_what_is_zero_and_what_is_largest():
    weight = torch.tensor([[0.0, 0.0], [0.1, -0.2], [3.0, 1e-9]])
    integers, scale = quantised(weight, 127)
    assert integers.dtype == torch.int8
    assert integers.tolist() == [[0, 0], [64, -127], [127, 0]]
    assert scale[1].item() == pytest.approx(0.2 / 127)


def test_an_average_pool_gives_no_spikes_to_the_layer_after_it():
    assert deployed(trained(pooling="avg"), "events").forms == {
        "conv1": "events", "conv2": "dense", "fc1": "dense", "fc2": "events",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["dense", "events", "int8", "int16"])
def test_no_samples_have_no_votes(net, name, form):
    assert deployed(net, name)(torch.zeros(4, 0, 2, 12, 12)).shape == (4, 0, 3)
    for sparse in ("never", "always"):
        assert use_backend(net, "cpu", sparse)(torch.zeros(4, 0, 2, 12, 12)).shape == (4, 0, 3)


def test_the_caller_keeps_its_network_and_hears_what_was_taken(net, caplog):
    caplog.set_level(logging.INFO)
    made = deployed(net, "auto", frames(net))
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in made.parameters())
    assert f"deployed: conv1 {made.forms['conv1']}, conv2 {made.forms['conv2']}" in caplog.text
    assert not made(frames(net)).requires_grad


class Half(PLIF):
    def forward(self, x, time_steps=None):
        return super().forward(x, time_steps) / 2


class Halved(ConvBlock):
    def forward(self, x, binary=False):
        return super().forward(x, binary) / 2


class HalvedRows(FCBlock):
    def forward(self, x, binary=False):
        return super().forward(x, binary) / 2


class HalvedPool(Pool2d):
    def forward(self, x):
        return super().forward(x) / 2


def as_class(name, kind):
    return lambda net: setattr(net.get_submodule(name), "__class__", kind)


def patched(name, factor=0.5):
    """A forward that is set on a module, as timers and offloaders do."""

    def change(net):
        module = net.get_submodule(name)
        before = module.forward
        module.forward = lambda *given, **named: before(*given, **named) * factor

    return change


def with_other_conv(**changes):
    def change(net):
        net.encoder.conv2.conv = torch.nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, "bias": False} | changes)

    return change


def with_bias(net):
    net.classifier.fc1.fc = torch.nn.Linear(72, 20)
    torch.nn.init.constant_(net.classifier.fc1.fc.bias, 2.0)


CHANGES = {
    "7x7": (with_other_conv(kernel_size=7, padding=3), "conv2"),
    "groups": (with_other_conv(groups=2), "conv2"),
    "reflected": (with_other_conv(padding_mode="reflect"), "conv2"),
    "bias": (with_bias, "fc1"),
    "own neuron": (lambda net: setattr(net.classifier.fc1, "neuron", Half()), "fc2"),
    "hook": (lambda net: net.encoder.conv2.register_forward_hook(lambda m, a, o: o * 0.5), "fc1"),
    "own block": (as_class("encoder.conv1", Halved), "conv2"),
    "own FC block": (as_class("classifier.fc1", HalvedRows), "fc2"),
    "own pool": (as_class("encoder.conv1.pool", HalvedPool), "conv2"),
    "patched block": (patched("encoder.conv1"), "conv2"),
    "patched FC": (patched("classifier.fc1.fc", 3.0), "fc1"),
    "pre-hook": (lambda net: net.encoder.conv2.register_forward_pre_hook(lambda m, a: (a[0] * 0.5, *a[1:])), "conv2"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_layer_of_another_kind_stays_as_it_is(net, kind):
    change, layer = CHANGES[kind]
    change(net)
    x = frames(net)
    made = deployed(net, "events")
    assert made.forms[layer] == "dense"
    assert set(made.forms.values()) == {"dense", "events"}
    torch.testing.assert_close(made(x), net(x))
    torch.testing.assert_close(use_backend(net, "reference")(x), made(x))  # the kernels see it as well


def test_a_patched_convolution_runs_as_it_is_and_is_not_folded(net):
    """Found by a review: the kernels ran the convolution without what had been set on it."""
    patched("encoder.conv2.conv", 3.0)(net)
    assert torch.equal(net(frames(net)), use_backend(net, "reference")(frames(net)))
    with pytest.raises(UserError, match="conv2 is not a plain convolution with BN and neurons, or it has hooks"):
        deployed(net, "dense")


def test_a_network_in_bfloat16_is_folded_in_float32(net):
    net.bfloat16()
    x = frames(net)
    assert torch.equal(deployed(net, "dense")(x), deployed(copy.deepcopy(net).float(), "dense")(x))


def test_what_is_wrong_is_said(net):
    with pytest.raises(UserError, match="engine must be one of auto, dense, events, int16, int8, int4, got 'fast'"):
        deployed(net, "fast")
    for x in (None, torch.zeros(4, 0, 2, 12, 12)):
        with pytest.raises(UserError, match="pass x"):
            deployed(net, x=x)
