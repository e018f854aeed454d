"""Augmentation of events from given random numbers, pixel by pixel and event by event."""

import numpy as np
import pytest
import torch

from plif_lightning.data.event_augment import (
    EventChanges,
    EventDrop,
    EventFlip,
    EventMix,
    EventRotation,
    EventTranslation,
    PolarityFlip,
    TimeDrop,
)
from plif_lightning.data.mixes import mixture
from plif_lightning.errors import UserError
from plif_lightning.events import Sensor
from plif_lightning.events.integration import Pass, count_events, resize
from plif_lightning.runtime.randomness import hashed_uniform

SENSOR = Sensor(3, 4)


def maps(augment, *uniform, sensor=SENSOR):
    """Target pixel of each OFF pixel, as (x, y) or None, for one recording per row of numbers."""
    changes = EventChanges(len(uniform), sensor)
    augment(changes, np.array(uniform, np.float32))
    table = changes.maps()[:, : sensor.pixels]
    return [[None if a < 0 else (int(a) % sensor.width, int(a) // sensor.width) for a in row] for row in table]


HERE = [(x, y) for y in range(3) for x in range(4)]


def test_flip_mirrors_columns_with_its_probability():
    kept, flipped = maps(EventFlip(0.5), [0.5], [0.49])
    assert kept == HERE
    assert flipped == [(3 - x, y) for x, y in HERE]


def test_translation_drops_events_outside_the_sensor():
    # floor(u (2 * 1 + 1)) - 1: to the left, and down
    (moved,) = maps(EventTranslation(1), [0.0, 0.99])
    assert moved == [(x - 1, y + 1) if x >= 1 and y + 1 < 3 else None for x, y in HERE]
    (still,) = maps(EventTranslation(1), [0.5, 0.5])
    assert still == HERE


def test_rotation_by_a_right_angle():
    square = Sensor(3, 3)
    (turned,) = maps(EventRotation(90.0), [1.0], sensor=square)
    # about the centre (1, 1), x to y
    assert turned == [(2 - y, x) for y in range(3) for x in range(3)]
    (still,) = maps(EventRotation(90.0), [0.5], sensor=square)
    assert still == [(x, y) for y in range(3) for x in range(3)]


def test_polarity_flip_exchanges_the_halves_of_the_table():
    changes = EventChanges(2, SENSOR)
    PolarityFlip(0.5)(changes, np.array([[0.7], [0.2]], np.float32))
    n = SENSOR.pixels
    assert changes.maps().tolist() == [list(range(2 * n)), [*range(n, 2 * n), *range(n)]]


def test_drops_take_an_interval_inside_the_recording_and_a_share_of_the_events():
    changes = EventChanges(3, SENSOR)
    TimeDrop(0.5)(changes, np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.3]], np.float32))
    np.testing.assert_allclose(changes.drop_from, [0, 0.5, 0.3], atol=1e-6)
    np.testing.assert_allclose(changes.drop_to, [0.5, 1.0, 0.3], atol=1e-6)
    EventDrop(0.4)(changes, np.array([[0.0], [0.5], [1.0]], np.float32))
    np.testing.assert_allclose(changes.keep, [1.0, 0.8, 0.6])


def test_of_two_drops_an_event_survives_both():
    changes = EventChanges(1, SENSOR)
    for share, number in ((0.4, 0.5), (0.6, 0.5)):
        EventDrop(share)(changes, np.array([[number]], np.float32))
    np.testing.assert_allclose(changes.keep, [0.8 * 0.7])


def test_mix_divides_the_sensor_between_both():
    changes = EventChanges(1, SENSOR)
    # a share of a quarter: sides of half the size, about the centre (2, 1.5): columns 1-2, rows 1-1
    EventMix(1.0)(changes, np.array([[0.0, 0.25, 0.5, 0.5, 0.0]], np.float32))
    assert changes.box.tolist() == [[1, 1, 3, 2]]
    outside, inside = changes.maps() >= 0, changes.maps(within_box=True) >= 0
    assert (outside ^ inside).all()
    assert inside[0, : SENSOR.pixels].nonzero()[0].tolist() == [5, 6]
    EventMix(0.5)(changes, np.array([[0.5, 0.25, 0.5, 0.5, 0.0]], np.float32))
    assert changes.box.tolist() == [[0, 0, 0, 0]]


def test_mix_after_another_change_draws_separate_numbers():
    """Its partners and targets follow from the draws behind those of the change before it."""
    labels, sample, pool = torch.arange(20) % 4, torch.arange(6), torch.arange(10, 20)
    alone, behind = [EventMix(1.0)], [EventDrop(0.4), EventMix(1.0)]
    for augmentation, first in ((alone, 0), (behind, 1)):
        drawn = hashed_uniform(9, sample, first + 5).numpy()[:, first:]
        partner = 10 + (drawn[:, 4].astype(np.float64) * 10).astype(int)
        left, top, right, bottom = EventMix(1.0).boxes(drawn, 30, 40).T
        share = (right - left) * (bottom - top) / 1200
        samples, target = mixture(augmentation, 9, sample, pool, (30, 40), labels, 4)
        assert samples.tolist() == [*range(6), *partner]
        expected = np.zeros((6, 4))
        for i in range(6):
            expected[i, i % 4] += 1 - share[i]
            expected[i, partner[i] % 4] += share[i]
        np.testing.assert_allclose(target, expected, atol=1e-6)


def test_changes_are_applied_in_order():
    changes = EventChanges(1, SENSOR)
    EventTranslation(1)(changes, np.array([[0.99, 0.5]], np.float32))  # to the right ...
    EventFlip(1.0)(changes, np.array([[0.0]], np.float32))  # ... then mirrored
    x, _ = changes.coordinates()
    assert x[0, :4].tolist() == [2, 1, 0, -1]


@pytest.mark.parametrize(("size", "numbers"), [(48, {4, 6, 9}), (64, {4})])
def test_resizing_keeps_every_event_and_divides_evenly_where_it_can(size, numbers):
    table = resize(Sensor(128, 128), Sensor(size, size))
    x, y, p = 77, 100, 1
    assert table[(p * 128 + y) * 128 + x] == (p * size + y * size // 128) * size + x * size // 128
    assert set(np.bincount(table, minlength=2 * size * size).tolist()) == numbers


def test_an_argument_outside_its_range_is_refused():
    wrong = ((EventFlip, 1.5), (PolarityFlip, -0.1), (EventMix, 2.0), (TimeDrop, 1.1), (EventDrop, -0.1))
    for make, value in (*wrong, (EventTranslation, -1), (EventRotation, -1.0)):
        with pytest.raises(UserError, match=rf"must .*, got {value}"):
            make(value)


def splitmix64(state):
    """Next state and number, as in Steele et al. 2014 and Vigna's splitmix64.c."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return state, z ^ (z >> 31)


def test_events_are_left_out_by_the_numbers_of_splitmix64():
    state, numbers = 0, []
    for _ in range(2000):
        state, number = splitmix64(state)
        numbers.append(number)
    # Output of its author's program for seed 0.
    assert numbers[:3] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    address = np.arange(2000, dtype=np.uint16)
    no = np.zeros(1, np.int64)
    for keep in (2**31, 2**30, 2**32 // 10):
        passes = Pass(no, no - 1, no, no, no + keep, np.zeros(1, np.uint64))
        frames = count_events(address, np.array([[0, 2000]]), 2000, passes=passes)
        assert np.flatnonzero(frames).tolist() == [i for i, number in enumerate(numbers) if number >> 32 < keep]
