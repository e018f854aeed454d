"""Networks on streams of events and frames."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plif_lightning.deploy import StreamingNetwork, deployed, fold
from plif_lightning.errors import UserError
from plif_lightning.events import Recording, Sensor, integrate
from plif_lightning.events.integration import BackgroundFilter
from plif_lightning.events.recording import pack_events
from plif_lightning.network import use_backend
from tests.deploy.conftest import frames, trained
from tests.writers import events_of

NET = trained()


def recording(n=1000, seed=0):
    return events_of(n, seed, 12, 12, last=100_000)


def part(of, first, last):
    return Recording(*(column[first:last] for column in of))


def whole(net=NET):
    """The network with the summation order of the stream."""
    return use_backend(fold(net), "cpu", "always")


def test_streamed_frames_give_the_votes_of_the_sequence(net):
    x = frames(net)
    stream = StreamingNetwork(net)
    found = torch.stack([stream.step(frame) for frame in x])
    votes = whole(net)(x).double()
    running = votes.cumsum(0) / torch.arange(1, len(x) + 1).view(-1, 1, 1)
    torch.testing.assert_close(found, running)
    assert torch.equal(found[-1], stream.votes)
    alone = StreamingNetwork(net)
    for frame in x[:, 1]:
        alone.step(frame.numpy())
    assert torch.equal(alone.votes, stream.votes[1])


@given(cuts=st.lists(st.integers(0, 1000), max_size=6), by_time=st.booleans())
def test_a_recording_cut_anywhere_gives_the_same_bits(cuts, by_time):
    way = {"us_per_step": 21_000} if by_time else {"events_per_step": 170}
    events, stream, pieces = recording(), StreamingNetwork(NET, **way), StreamingNetwork(NET, **way)
    expected = stream.push(events)
    bounds = [0, *sorted(cuts), 1000]
    found = [pieces.push(part(events, a, b)) for a, b in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat(found), expected)
    assert pieces.waiting_events == stream.waiting_events
    assert len(expected) == (4 if by_time else 5)


def test_steps_by_count_are_the_frames_of_training():
    events = recording(1000)
    x = torch.from_numpy(integrate(events, Sensor(12, 12), 4).astype(np.float32))[:, None]
    stream = StreamingNetwork(NET, events_per_step=250)
    stream.push(events)
    assert torch.equal(stream.votes, whole()(x)[:, 0].double().mean(0))


def test_silence_is_time_too():
    stream = StreamingNetwork(NET, us_per_step=1000)
    assert len(stream.push([0], [0], [500], [1])) == 0
    assert len(stream.push([0], [0], [5600], [1])) == 5  # 500 to 1500, and four empty steps


def test_an_event_at_the_end_of_a_step_completes_it_and_belongs_to_the_next():
    stream = StreamingNetwork(NET, us_per_step=1000)
    assert len(stream.push([0, 1], [0, 1], [500, 1500], [1, 1])) == 1
    assert stream.waiting_events == 1


@pytest.mark.parametrize("last", [None, 3])
def test_a_stream_that_is_reset_begins_at_rest(last):
    events = recording()
    stream = StreamingNetwork(NET, events_per_step=90, last=last)
    expected = stream.push(events)
    stream.reset()
    assert stream.steps == stream.waiting_events == 0
    assert torch.equal(stream.push(events), expected)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (([12], [0], [200_000], [1]), r"x = 12, but a sensor of 12x12 pixels"),
        (([0], [0], [3], [1]), "time jumps back from .* to 3 us. If the camera's clock was reset, call reset"),
        (([0, 0], [0, 0], [200_001, 200_000], [1, 1]), "time runs backwards at event 1"),
        (([0], [0], [200_000], [2]), "polarity = 2"),
        (([0], [0], [0.5], [1]), "t must be whole numbers"),
    ],
)
@pytest.mark.parametrize("way", [{"us_per_step": 9_000}, {"events_per_step": 90}])
def test_events_that_cannot_be_leave_the_stream_as_it_was(events, message, way):
    stream, undisturbed = StreamingNetwork(NET, **way), StreamingNetwork(NET, **way)
    for one in (stream, undisturbed):
        one.push(part(recording(), 0, 500))
    with pytest.raises(UserError, match=message):
        stream.push(*events)
    assert torch.equal(stream.push(part(recording(), 500, 1000)), undisturbed.push(part(recording(), 500, 1000)))


def test_time_may_not_jump_back_however_the_stream_was_cut():
    stream = StreamingNetwork(NET, events_per_step=2)
    assert len(stream.push([0, 1], [0, 1], [1000, 2000], [1, 1])) == 1  # nothing is pending
    with pytest.raises(UserError, match="time jumps back from 2000 to 5 us"):
        stream.push([0, 1], [0, 1], [5, 6], [1, 1])
    assert stream.steps == 1
    stream.reset()
    assert len(stream.push([0, 1], [0, 1], [5, 6], [1, 1])) == 1


def test_a_stream_runs_in_8_bits_and_in_other_types(net):
    x, made = frames(net), deployed(net, "int8")
    stream = StreamingNetwork(net, engine="int8")
    for frame in x:
        stream.step(frame)
    torch.testing.assert_close(stream.votes, made(x).double().mean(0))
    wide = StreamingNetwork(trained().double())
    wide.step(x[0])
    assert wide.states["encoder.conv1.neuron"].dtype == torch.float64


def test_the_network_of_the_caller_stays_as_it_was(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    StreamingNetwork(net).step(frames(net)[0])
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_votes_of_the_last_steps_alone():
    net = trained((2, 12, 12), 3, 4, channels=4, fc_features=10, votes_per_class=2, n_down=1)
    events = events_of(1000, 0, 12, 12)
    every = StreamingNetwork(net, events_per_step=50)
    steps = list(every.push(events))
    alone = [steps[0], *(steps[i] * (i + 1) - steps[i - 1] * i for i in range(1, len(steps)))]
    recent = StreamingNetwork(net, events_per_step=50, last=4)
    first = recent.push(Recording(*(column[:620] for column in events)))
    found = [*first, *recent.push(Recording(*(column[620:] for column in events)))]
    assert len(found) == 20
    for i, votes in enumerate(found):
        torch.testing.assert_close(votes, torch.stack(alone[max(0, i - 3) : i + 1]).mean(0))
    with pytest.raises(UserError, match="last must be a whole number, at least 1, got 0"):
        StreamingNetwork(net, last=0)


def test_a_stream_drops_the_noise_that_its_data_set_drops():
    events, us = recording(2000), 3_000
    keep = BackgroundFilter(Sensor(12, 12), us).keep_mask(pack_events(events, Sensor(12, 12), "a"))
    kept = Recording(*(column[keep] for column in events))
    assert 100 < len(kept.t) < 1900
    plain, filtering = (StreamingNetwork(NET, events_per_step=50, background_us=of) for of in (None, us))
    expected = plain.push(kept)
    found = [filtering.push(part(events, *bounds)) for bounds in itertools.pairwise((0, 600, 611, 2000))]
    assert torch.equal(torch.cat(found), expected)
    filtering.reset()
    assert torch.equal(filtering.push(events), expected)
    whole_of = [
        [*StreamingNetwork(NET, background_us=of).run_recording(given)][-1]
        for of, given in ((us, events), (None, kept))
    ]
    assert torch.equal(*whole_of)


def test_a_clock_closes_time_steps_that_no_event_closes(net):
    """With the same votes as events would: silence is a frame of zeros."""
    on_clock, by_events = (StreamingNetwork(net, us_per_step=1000) for _ in range(2))
    x, y, t, p = [1, 2, 3], [0, 5, 7], [100, 1500, 1600], [1, 0, 1]
    found = [on_clock.push(x[:1], y[:1], t[:1], p[:1]), on_clock.advance(1100), on_clock.advance(1400)]
    found += [on_clock.push(x[1:], y[1:], t[1:], p[1:]), on_clock.advance(5050)]
    assert [len(votes) for votes in found] == [0, 1, 0, 0, 3]
    expected = by_events.push([*x, 0], [*y, 0], [*t, 5050], [*p, 0])
    torch.testing.assert_close(torch.cat(found), expected)
    with pytest.raises(UserError, match="time jumps back from 5050 to 5000 us"):
        on_clock.push([0], [0], [5000], [0])
    with pytest.raises(UserError, match="t must not lie before the last event at 5050 us, got 5049"):
        on_clock.advance(5049)
    with pytest.raises(UserError, match="pass us_per_step"):
        StreamingNetwork(net, events_per_step=5).advance(3)


def test_a_silent_stream_decides_on_the_clock_from_its_beginning(net):
    stream = StreamingNetwork(net, us_per_step=1000)
    assert len(stream.advance(7000)) == 0
    assert len(stream.advance(10_500)) == 3
    assert len(stream.push([1], [1], [12_000], [0])) == 2
