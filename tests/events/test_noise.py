"""Background activity and hot pixels, against their definitions written out."""

import numpy as np
import pytest

from plif_lightning.data import EventFolder
from plif_lightning.deploy import StreamingNetwork
from plif_lightning.errors import UserError
from plif_lightning.events import Recording, Sensor, read_any
from plif_lightning.events.noise import BackgroundFilter, cleaned, hot_pixels, without_hot_pixels
from plif_lightning.events.recording import Noise, pack
from plif_lightning.network import SpikingNetwork
from tests import writers

SENSOR = Sensor(20, 30)
SOME = writers.events_of(2000, 7, *SENSOR, last=100_000)


def by_definition(recording, us):
    """Kept if a pixel around had an event at most `us` before."""
    keep, last = [], {}
    for t, x, y in zip(recording.t.tolist(), recording.x.tolist(), recording.y.tolist(), strict=True):
        around = [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]
        keep.append(any(t - last[place] <= us for place in around if place in last))
        last[x, y] = t
    return np.array(keep)


@pytest.mark.parametrize("us", [1, 100, 2000])
def test_background_activity_by_its_definition(us):
    keep = BackgroundFilter(SENSOR, us).kept(pack(SOME, SENSOR, "a"))
    expected = by_definition(SOME, us)
    assert np.array_equal(keep, expected)
    assert 0 < keep.sum() < len(keep)


def test_a_stream_is_filtered_as_a_whole_recording():
    whole = BackgroundFilter(SENSOR, 500).kept(pack(SOME, SENSOR, "a"))
    stream = BackgroundFilter(SENSOR, 500)
    found = []
    for begin in range(0, 2000, 171):
        piece = Recording(*(column[begin : begin + 171] for column in SOME))
        found.append(stream.kept(pack(piece, SENSOR, "a")))
    assert np.array_equal(np.concatenate(found), whole)


def with_hot_pixel(x, y, count=200):
    t = np.sort(np.concatenate([SOME.t, np.linspace(0, 99_999, count).astype(np.int64)]))
    hot = np.zeros(len(t), bool)
    hot[:: len(t) // count] = True
    mixed = [np.resize(column, len(t)) for column in SOME[1:]]
    return Recording(t, np.where(hot, x, mixed[0]), np.where(hot, y, mixed[1]), mixed[2])


@pytest.mark.parametrize("place", [(0, 0), (29, 19), (7, 11)])
def test_a_hot_pixel_is_found_and_an_edge_is_not(place):
    recording = with_hot_pixel(*place)
    found = hot_pixels(pack(recording, SENSOR, "a"), SENSOR, 5)
    assert [(x, y) for y, x in np.argwhere(found)] == [place]
    left = without_hot_pixels(recording, SENSOR, 5, "a")
    assert not ((left.x == place[0]) & (left.y == place[1])).any()
    row = recording._replace(
        y=np.full(len(recording.t), 4), x=np.arange(len(recording.t)) % 3
    )  # three pixels fire often
    assert not hot_pixels(pack(row, SENSOR, "a"), SENSOR, 5).any()


def test_times_count_from_the_first_event_that_stays():
    recording = Recording(
        np.array([10, 500, 505, 506]), np.array([3, 9, 10, 9]), np.array([3, 9, 9, 9]), np.zeros(4, int)
    )
    packed = cleaned(pack(recording, SENSOR, "a"), SENSOR, Noise(background_us=10))
    assert (packed.start, packed.time.tolist()) == (505, [0, 1])
    nothing = cleaned(pack(recording, SENSOR, "a"), SENSOR, Noise(background_us=1))
    assert len(nothing.time) == 1


@pytest.fixture
def root(tmp_path):
    for part in ("train", "test"):
        for i, name in enumerate(("left", "right")):
            content = writers.evt3_bytes(with_hot_pixel(3 + i, 5), *SENSOR)
            writers.write_file(tmp_path / "noisy" / part / name / "0.raw", content)
    return tmp_path / "noisy"


def test_a_data_set_without_noise(root):
    plain = EventFolder(root=str(root))
    plain.prepare_data()
    data = EventFolder(root=str(root), background_us=500, hot_pixels=5.0)
    data.prepare_data()
    store = data.event_store(train=True)
    recording = read_any(root / "train/left/0.raw")
    expected = cleaned(pack(recording, SENSOR, "a"), SENSOR, Noise(500, 5.0))
    address, time = store.events(0)
    assert np.array_equal(address, expected.address)
    assert np.array_equal(time, expected.time)
    assert len(address) < len(plain.event_store(train=True).events(0)[0])
    assert {path.name for path in (root / "events").glob("20x30-t*.json")} >= {
        "20x30-train.json",
        "20x30-train-background500us-hot5.json",
    }


def test_the_store_of_one_filter_is_not_deleted_with_that_of_another(root):
    """Found by a review: the name with hot_pixels=2 begins that with 2.5."""
    for factor, built in ((2.5, True), (2, True), (2.5, False), (2, False)):
        data = EventFolder(root=str(root), hot_pixels=factor)
        data.prepare_data()
        assert data.prepared == built


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"background_us": 0}, r"data.background_us must be from 1 to 10\^9, got 0"),
        ({"hot_pixels": 0.5}, r"data.hot_pixels must be from 1 to 10\^9, got 0.5"),
        ({"background_us": 5, "time_order": "as_recorded"}, "data.background_us needs times in order"),
    ],
)
def test_bad_arguments_are_named(root, arguments, message):
    with pytest.raises(UserError, match=message):
        EventFolder(root=str(root), **arguments)


def test_a_stream_drops_what_its_data_set_drops():
    net = SpikingNetwork((2, *SENSOR), 3, 4, channels=4, fc_features=8, n_down=1).eval()
    events = cleaned(pack(SOME, SENSOR, "a"), SENSOR, Noise(500))
    keep = BackgroundFilter(SENSOR, 500).kept(pack(SOME, SENSOR, "a"))
    kept = Recording(*(column[keep] for column in SOME))
    assert len(kept.t) == len(events.time)
    plain, filtering = (StreamingNetwork(net, events_per_step=50, background_us=us) for us in (None, 500))
    expected = plain.push(kept)
    half = [Recording(*(column[part] for column in SOME)) for part in (slice(900), slice(900, None))]
    first = filtering.push(half[0])
    assert np.array_equal(np.concatenate([first, filtering.push(half[1])]), expected)
    assert np.array_equal(
        list(StreamingNetwork(net, background_us=500).whole(SOME))[-1], list(plain_of(net).whole(kept))[-1]
    )


def plain_of(net):
    return StreamingNetwork(net)
