"""Events in memory: accepted column types and refused input."""

import numpy as np
import pytest
import torch

import plif_lightning as pl
from plif_lightning.errors import UserError
from plif_lightning.events import Recording, Sensor, integrate

RNG = np.random.default_rng(0)
N = 500
X, Y = RNG.integers(0, 7, N), RNG.integers(0, 5, N)
T, P = np.sort(RNG.integers(0, 10**6, N)), RNG.integers(0, 2, N)
SENSOR = (5, 7)


def structured(polarity="p"):
    events = np.zeros(N, dtype=[("x", np.int16), ("y", np.int16), ("t", np.int64), (polarity, bool)])
    events["x"], events["y"], events["t"], events[polarity] = X, Y, T, P
    return events


@pytest.mark.parametrize("slicing", ["by_count", "by_time"])
def test_frames_are_the_same_from_every_kind_of_column(slicing):
    expected = integrate(Recording(T, X, Y, P), Sensor(*SENSOR), 4, slicing)
    assert expected.sum() == N
    for columns in (
        (X, Y, T, P),
        tuple(column.tolist() for column in (X, Y, T, P)),
        tuple(map(torch.from_numpy, (X, Y, T, P))),
        (X.astype(np.uint8), Y, T.astype(np.float64), P.astype(bool)),
        (X, Y, T, 2 * P - 1),
        (structured(),),
        (structured("polarity"),),
    ):
        frames = pl.events.frames_of(*columns, sensor=SENSOR, time_steps=4, slicing=slicing)
        assert np.array_equal(frames, expected)


def test_frames_of_tonics_events_are_tonics_frames():
    transforms = pytest.importorskip("tonic.transforms")
    theirs = transforms.ToFrame(sensor_size=(7, 5, 2), n_event_bins=5)(structured())
    assert np.array_equal(pl.events.frames_of(structured(), sensor=SENSOR, time_steps=5), theirs)


def frames(x=X, y=Y, t=T, p=P, sensor=SENSOR, time_steps=4, slicing="by_time"):
    return pl.events.frames_of(x, y, t, p, sensor=sensor, time_steps=time_steps, slicing=slicing)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frames(t=T / 1e6), "t must be whole numbers.*are these seconds.*multiply them by 1e6"),
        (lambda: integrate(Recording(T / 1e6, X, Y, P), Sensor(*SENSOR), 4, "by_time"), "are these seconds"),
        (lambda: integrate(Recording(T, X, Y, P), Sensor(*SENSOR), 4, "by-count"), "slicing must be one of"),
        (lambda: frames(x=X + 0.5), "x must be whole numbers, got float64"),
        (lambda: frames(p=P - 2), "polarity = -"),
        (lambda: frames(x=X + 1), "has x = 7, but a sensor of 7 x 5 pixels has x in 0..6"),
        (lambda: frames(t=T[::-1]), "time runs backwards at event .*sort the events by time"),
        (lambda: frames(y=Y[1:]), "every event needs x, y, t and p, got 500 of t, 500 of x, 499 of y, 500 of p"),
        (lambda: frames(y=None), "y must be one number per event, got object"),
        (lambda: frames(x=[[1, 2], [3, 4]]), r"x must be one number per event, got int64 \[2, 2\]"),
        (lambda: frames(sensor=(7, 5, 2)), "tonic's sensor_size is .width, height, polarities"),
        (lambda: frames(sensor=(0, 5)), "at least 1 pixel"),
        (lambda: frames(time_steps=0), "time_steps must be a whole number, at least 1, got 0"),
        (lambda: frames(time_steps=2.0), "time_steps must be a whole number, at least 1, got 2.0"),
        (lambda: frames(sensor=(1.9, 2)), "sensor must be"),
        (lambda: frames(sensor=(float("inf"), 2)), "sensor must be"),
        (lambda: frames(x=[[0], [0, 1]]), "x must be one number per event"),
        (lambda: frames(t=np.linspace(0, 1e30, 500)), r"t must lie below 2\^63, got 0 to 1e\+30"),
        (lambda: frames(t=np.full(500, 2**63, np.uint64)), r"t must lie below 2\^63"),
        (lambda: frames(slicing="time"), "slicing must be one of by_count, by_time, got 'time'"),
        (
            lambda: pl.events.frames_of(structured()[["x", "y"]], sensor=SENSOR, time_steps=2),
            "but lacks t, p",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
