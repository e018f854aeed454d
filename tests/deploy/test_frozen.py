"""Networks frozen for inference: float32 and 8 bits, sequences and steps."""

import pytest
import torch

from plif_lightning.deploy import deployed, fold, frozen
from plif_lightning.deploy.frozen import quantize
from plif_lightning.errors import UserError
from plif_lightning.layers.plan import FCBlock
from plif_lightning.network import SpikingNetwork, step, use_backend
from tests.deploy.conftest import STRUCTURES, frames, trained

ENGINES = ["float32", "int8"]
KINDS = [
    {}, {"n_conv": 2}, {"pooling": "avg"}, {"tau_per": "channel"}, {"neuron": "if"}, {"reset": "soft"},
    {"learn_threshold": True, "tau_per": "channel"}, {"v_reset": -0.5}, {"channels": 70, "fc_features": 130},
    {"shape": (1, 13, 11)}, *({"structure": text} for text in STRUCTURES.values()),
]  # fmt: skip


def rounded(net, made):
    """The folded network with the weights in 8 bits of those layers that the deployed one has so."""
    folded = fold(net).requires_grad_(False)
    for name, form in made.forms.items():
        if form.endswith("int8"):
            block = folded.blocks()[name]
            layer = block.fc if isinstance(block, FCBlock) else block.conv
            whole, scale = quantize(layer.weight)
            layer.weight.copy_(whole.float() * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    return use_backend(folded, "cpu", "always")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_deployed_votes_equal_evaluation_mode(kind):
    net = trained(**kind)
    made = deployed(net)
    always = rounded(net, made)
    for samples in (3, 1):
        x = frames(net, samples)
        with torch.no_grad():
            expected = net(x), net(x[0])
        assert expected[0].any()
        torch.testing.assert_close(made(x), expected[0])
        torch.testing.assert_close(made(x[0]), expected[1])  # a static image
        torch.testing.assert_close(made(x), always(x))
        if not any(name.startswith("fc") and form == "as it is" for name, form in made.forms.items()):
            # PyTorch's own sums may differ in another layout.
            assert torch.equal(made(x), always(x))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_eight_bits_are_the_network_with_rounded_weights(kind):
    net = trained(**kind)
    made, x = deployed(net, "int8"), frames(net)
    assert any(form.endswith("int8") for form in made.forms.values()) or "structure" in kind
    torch.testing.assert_close(made(x), rounded(net, made)(x))


def test_quantisation_keeps_zero_and_the_maximum():
    weight = torch.tensor([[0.0, 0.0], [0.1, -0.2], [3.0, 1e-9]])
    integers, scale = quantize(weight)
    assert integers.dtype == torch.int8
    assert integers.tolist() == [[0, 0], [64, -127], [127, 0]]
    assert scale[1].item() == pytest.approx(0.2 / 127)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [*KINDS[:8], *KINDS[-7:]], ids=str)
def test_deployed_steps_equal_the_sequence_and_its_states(kind, engine):
    net = trained(**kind)
    made, x = deployed(net, engine), frames(net)
    always = rounded(net, made)
    state = expected_state = None
    votes = []
    for i, frame in enumerate(x):
        y, state = made.step(frame, state)
        votes.append(y)
        _, expected_state = step(always, frame, expected_state)
        assert list(state) == list(expected_state)
        torch.testing.assert_close(state, expected_state)
        if i == 1 and engine == "float32":  # continue each from the states of the other
            state, expected_state = expected_state, state
    torch.testing.assert_close(torch.stack(votes), made(x))


def test_layers_of_spikes_and_frames_of_events_are_event_driven():
    events, int8 = "event-driven", "event-driven, int8"
    assert deployed(trained()).forms == dict.fromkeys(["conv1", "conv2", "fc1", "fc2"], events)
    # The counts of the first layer are no spikes, and an average pool gives none.
    assert list(deployed(trained(), "int8").forms.values()) == [events, int8, int8, int8]
    assert deployed(trained(pooling="avg")).forms == {
        "conv1": events, "conv2": "dense", "fc1": "as it is", "fc2": events,
    }  # fmt: skip
    assert deployed(trained(shape=(1, 12, 12))).forms["conv1"] == "dense"


def test_eight_bits_that_change_no_layer_are_named(caplog):
    made = deployed(SpikingNetwork((6,), 3, 4, structure="RFC8-PLIF-RFC4-PLIF-FC3"), "int8")
    assert set(made.forms.values()) == {"as it is"}
    assert "int8: no layer has weights in 8 bits" in caplog.text


@pytest.mark.parametrize("encoder", ["poisson", "latency"])
def test_encoded_images_are_spikes(encoder):
    net = trained(input_encoder=encoder, shape=(1, 12, 12))
    made = deployed(net, "int8")
    assert made.forms["conv1"] == "event-driven, int8"
    x = torch.rand(3, 1, 12, 12)
    torch.manual_seed(1)
    votes = made(x)
    torch.manual_seed(1)
    torch.testing.assert_close(votes, rounded(net, made)(x))


def test_a_step_from_a_foreign_state_or_frame_is_refused(net):
    made, x = deployed(net), frames(net)
    _, state = made.step(x[0])
    lacking = {name: v for name, v in state.items() if "fc2" not in name}
    with pytest.raises(UserError, match=r"state must hold the states of encoder.conv1.neuron, .*classifier.fc2.neuron"):
        made.step(x[1], lacking)
    for frame, given in ((x[1, :2], state), (x, None), (x[0, :, :1], None)):
        with pytest.raises(UserError, match=r"a step takes a frame \[N, 2, 12, 12\] and the state that"):
            made.step(frame, given)
    reordered = dict(reversed(state.items()))
    assert torch.equal(made.step(x[1], reordered)[0], made.step(x[1], state)[0])
    with_two_states = deployed(trained(neuron="alif"))
    _, state = with_two_states.step(x[0])
    with pytest.raises(UserError, match="for as many samples"):
        with_two_states.step(x[1, :2], state)


@pytest.mark.parametrize("kind", [{}, {"pooling": "avg"}, {"shape": (2, 13, 11)}], ids=str)
def test_record_spikes_sees_every_layer(kind):
    net = trained(**kind)
    made, x = deployed(net), frames(net)
    votes, (vote, _) = made(x), made.step(x[0])
    expected, heard, stepped, again = {}, {}, {}, {}
    with torch.no_grad(), net.record_spikes(expected.__setitem__):
        net(x)
    with made.record_spikes(heard.__setitem__):
        assert torch.equal(made(x), votes)
    with made.record_spikes(stepped.__setitem__):
        assert torch.equal(made.step(x[0])[0], vote)
    assert list(heard) == list(stepped) == list(expected) == ["conv1", "conv2", "fc1", "fc2"]
    for layer, spikes in expected.items():
        torch.testing.assert_close(heard[layer], spikes)
        torch.testing.assert_close(stepped[layer], spikes[:1])
    with made.record_spikes(again.__setitem__):
        pass
    made(x)
    assert not again


def test_it_does_not_change_and_leaves_the_callers_network_alone(net):
    made, x = deployed(net), frames(net)
    assert made.forms == dict.fromkeys(("conv1", "conv2", "fc1", "fc2"), "event-driven")
    votes = made(x)
    assert not votes.requires_grad
    assert all(p.requires_grad for p in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(made.double()(x), votes)
    assert not [*made.parameters(), *made.children()]


def test_inputs_of_any_type_are_taken_and_other_shapes_refused(net):
    made = deployed(net)
    x = frames(net)
    for other in (x.to(torch.uint8), x.double()):
        assert torch.equal(made(other), made(x))
        assert torch.equal(made.step(other[0])[0], made.step(x[0])[0])
    for other in (x[:3], x[0, 0], x[..., :5]):
        with pytest.raises(UserError, match=r"x must be \[4, N, 2, 12, 12\], time first, or static images"):
            made(other)
    assert made(torch.zeros(4, 0, 2, 12, 12)).shape == (4, 0, 3)


@pytest.mark.parametrize(("channels", "sizes"), [(1, [3, 3, 1]), (2, [7])])
def test_large_batches_are_split(channels, sizes, monkeypatch):
    """An event-driven first layer, as of events, never stores its sums."""
    net = trained(shape=(channels, 12, 12))
    made, x = deployed(net), frames(net, 7)
    votes, seen = made(x), []
    monkeypatch.setattr(frozen, "at_a_time", lambda device: 3 * 4 * 8 * 12 * 12)
    run = made._run
    monkeypatch.setattr(made, "_run", lambda part, *of: (seen.append(part.values.shape[1]), run(part, *of))[1])
    torch.testing.assert_close(made(x), votes)
    assert seen == sizes
    heard = []
    with made.record_spikes(lambda layer, spikes: heard.append((layer, spikes.shape[1]))):
        torch.testing.assert_close(made(x), votes)
    assert heard == [(layer, 7) for layer in ("conv1", "conv2", "fc1", "fc2")]


def patched(name, factor=0.5):
    """A forward that is set on a module, as timers and offloaders do."""

    def change(net):
        module = net.get_submodule(name)
        before = module.forward
        module.forward = lambda *given, **named: before(*given, **named) * factor

    return change


HOOKS = {
    "hook": lambda net: net.encoder.conv2.register_forward_hook(lambda m, a, o: o * 0.5),
    "pre-hook": lambda net: net.encoder.conv1.register_forward_pre_hook(lambda m, a: a[0] * 0.5),
    "patched block": patched("encoder.conv1"),
    "patched FC": patched("classifier.fc1.fc", 3.0),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_would_be_lost_and_are_refused(net, kind):
    HOOKS[kind](net)
    with pytest.raises(UserError, match=r"(encoder|classifier)\.\w+(\.fc)? has hooks, which would be lost"):
        deployed(net)


def test_other_engines_and_user_defined_networks_are_refused(net):
    with pytest.raises(UserError, match="engine must be one of float32, int8, got 'events'"):
        deployed(net, "events")
    with pytest.raises(UserError, match="need a network from a structure, got a Sequential"):
        deployed(torch.nn.Sequential(torch.nn.Linear(3, 3)))


@pytest.mark.parametrize("channels", [1, 2])
def test_record_spikes_of_an_image_sees_all_steps(channels):
    net = trained(shape=(channels, 12, 12))
    made, image, heard = deployed(net), frames(net)[0], {}
    made.step(image)
    with made.record_spikes(heard.__setitem__):
        votes = made(image)
    assert torch.equal(votes, deployed(net)(image))
    assert heard["conv1"].shape == (4, 3, 8, 12, 12)


def test_image_reaching_fc_layers_without_neurons_counts_at_all_steps():
    net = trained(structure="c4k3s1-BN-AP-FC6-PLIF-APk2s2", shape=(1, 12, 12))
    x = torch.rand(3, 1, 12, 12)
    with torch.no_grad():
        expected = net(x)
    assert len(expected.unique(dim=0)) > 1  # steps differ, as potentials do
    torch.testing.assert_close(deployed(net)(x), expected)
