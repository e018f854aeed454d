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
FIRST = {"x": X[:2], "y": Y[:2], "p": P[:2]}


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
        (lambda: frames(t=T / 1e6), r"t must be whole numbers \[us\], got some such as 0\.002666"),
        (lambda: integrate(Recording(T / 1e6, X, Y, P), SENSOR, 4, "by_time"), r"t must be whole numbers \[us\]"),
        (lambda: frames(t=np.linspace(0, 1e30, N)), r"t must be whole numbers \[us\], got some such as 2\.004"),
        (lambda: frames(x=X + 0.5), r"x must be whole numbers, got some such as 5\.5"),
        (lambda: frames(p=P - 2), "polarity = -"),
        (
            lambda: frames(x=X + 1),
            r"has x = 7, but a sensor of 5x7 pixels \(height x width\) has x in 0\.\.6\. It is damaged or comes",
        ),
        (lambda: frames(y=Y - 1), r"has y = -1, but a sensor of 5x7 pixels \(height x width\) has y in 0\.\.4"),
        (lambda: frames(t=[5, 4], **FIRST), "recording: time runs backwards at event 1, from 5 to 4 us. It is damaged"),
        (lambda: frames(t=[0, 2**32], **FIRST), "its events span 72 minutes; at most 71 .* expected"),
        (lambda: frames(y=Y[1:]), "every event needs x, y, t and p, got 500 of t, 500 of x, 499 of y, 500 of p"),
        (lambda: frames(y=None), "y must be one number per event, got object"),
        (lambda: frames(x=[[1, 2], [3, 4]]), r"x must be one number per event, got int64 \[2, 2\]"),
        (lambda: pl.events.frames_of(structured()[["x", "y"]], sensor=SENSOR, time_steps=2), "but lacks t, p"),
        (lambda: frames(sensor=(7, 5, 2)), "tonic's sensor_size is .width, height, polarities"),
        (lambda: frames(sensor=(0, 5)), "at least 1 pixel"),
        (lambda: frames(sensor=(1.9, 2)), "sensor must be"),
        (lambda: frames(time_steps=0), "time_steps must be a whole number, at least 1, got 0"),
        (lambda: frames(time_steps=2.0), "time_steps must be a whole number, at least 1, got 2.0"),
        (lambda: frames(slicing="time"), "slicing must be one of by_count, by_time, got 'time'"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
