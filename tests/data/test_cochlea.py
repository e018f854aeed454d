"""SHD and SSC, and lines of sensors: read, cut into steps, held out, and streamed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import plif_lightning as pl
from plif_lightning.data import SHD, SSC, EventFolder
from plif_lightning.deploy import StreamingNetwork
from plif_lightning.errors import DataNotFoundError, UserError
from tests import writers


@pytest.fixture
def root(tmp_path):
    writers.write_cochlea(tmp_path / "SHD/shd_train.h5", 40, 0)
    writers.write_cochlea(tmp_path / "SHD/shd_test.h5", 12, 1)
    return tmp_path


def made(data, stage=None):
    data.prepare_data()
    data.setup(stage)
    return data


def all_of(dataset):
    return next(iter(torch.utils.data.DataLoader(dataset, batch_size=len(dataset))))


def as_tonic_reads(path, i):
    """Times [us] and channels of a recording, by tonic's own reader."""
    hsd = pytest.importorskip("tonic.datasets.hsd", reason="needs tonic").HSD
    where = SimpleNamespace(
        location_on_system=str(path.parent), data_filename=path.name, transform=None, target_transform=None
    )
    where.dtype = hsd.dtype
    events, label = hsd.__getitem__(where, i)
    return events["t"], events["x"], int(label)


@pytest.mark.parametrize("size", [None, 20])
def test_recordings_are_tonics_in_steps_of_a_duration(root, size):
    data = made(SHD(root=str(root), channels=40, time_steps=10, step_ms=50.0, size=size))
    x, labels = all_of(data.test_set)
    assert data.input_shape == (size or 40,)
    assert x.shape == (12, 10, size or 40)
    assert data.class_names == ("null", "eins")
    for i in range(12):
        t, units, label = as_tonic_reads(root / "SHD/shd_test.h5", i)
        assert labels[i] == label
        step = t // 50_000
        expected = np.zeros((10, size or 40))
        kept = step < 10
        np.add.at(expected, (step[kept], units[kept] // (2 if size else 1)), 1)
        assert np.array_equal(x[i], expected)


def test_short_recordings_are_padded_and_long_ones_named(root, caplog):
    x, _ = all_of(made(SHD(root=str(root), channels=40, time_steps=100, step_ms=10.0)).test_set)
    assert x[:, :75].any()
    assert not x[:, 80:].any()
    assert x.sum() == 12 * 120
    made(SHD(root=str(root), channels=40, time_steps=50, step_ms=10.0))
    assert "of 12 of 12 test recordings, events after 50 steps of 10 ms are left out" in caplog.text


def test_the_last_speakers_are_held_out(root):
    data = made(SHD(root=str(root), channels=40, time_steps=4, holdout_fraction=0.3))
    speakers = np.arange(40) // 2 % 5
    assert {*speakers[data.val_set.indices]} == {3, 4}
    assert {*speakers[data.train_set.indices]} == {0, 1, 2}
    assert data.protocol == "B: best-on-validation epoch, the last speakers, with 30 % of the samples or more, held out"
    with pytest.raises(UserError, match=r"holdout_fraction 0\.9 leaves none of 5 groups"):
        made(SHD(root=str(root), channels=40, time_steps=4, holdout_fraction=0.9))


def test_files_without_speakers_hold_out_a_share_of_each_class(tmp_path):
    for name, number in (("train", 40), ("test", 12)):
        writers.write_cochlea(tmp_path / f"SHD/shd_{name}.h5", number, 0, speakers=False)
    data = made(SHD(root=str(tmp_path), channels=40, time_steps=4, holdout_fraction=0.1))
    assert data.val_set.labels().bincount().tolist() == [2, 2]
    assert data.protocol.startswith("B: best-on-validation epoch, 10% of each class held out")


def test_ssc_holds_out_its_published_validation_set(tmp_path):
    for name, number in (("train", 600), ("valid", 8), ("test", 12)):
        writers.write_cochlea(tmp_path / f"SSC/ssc_{name}.h5", number, number)
    data = made(SSC(root=str(tmp_path), channels=40, time_steps=8))
    assert data.sizes() == {"training": 600, "val": 8, "test": 12}
    _, units, label = as_tonic_reads(tmp_path / "SSC/ssc_valid.h5", 3)
    x, labels = all_of(data.val_set)
    assert labels[3] == label
    assert np.array_equal(x[3].sum(0), np.bincount(units, minlength=40))


def test_another_file_of_the_same_size_is_read_again(root):
    before, _ = all_of(made(SHD(root=str(root), channels=40, time_steps=4)).test_set)
    path = root / "SHD/shd_test.h5"
    size = path.stat().st_size
    writers.write_cochlea(path, 12, 7)
    assert path.stat().st_size == size
    after, _ = all_of(made(SHD(root=str(root), channels=40, time_steps=4)).test_set)
    assert not torch.equal(after, before)
    path.unlink()
    writers.write_cochlea(path, 12, 1)  # the first again
    assert torch.equal(all_of(made(SHD(root=str(root), channels=40, time_steps=4)).test_set)[0], before)


def test_what_was_cached_is_enough_but_for_the_speakers(root):
    before, _ = all_of(made(SHD(root=str(root), channels=40, time_steps=4)).test_set)
    for name in ("train", "test"):
        (root / f"SHD/shd_{name}.h5").unlink()
    again = made(SHD(root=str(root), channels=40, time_steps=4), "test")
    assert again.class_names == ("null", "eins")
    assert torch.equal(all_of(again.test_set)[0], before)
    with pytest.raises(UserError, match=r"the speakers of SHD are in shd_train\.h5"):
        again.setup("fit")


def test_missing_files_are_named_before_a_download(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"SHD needs shd_train\.h5, shd_test\.h5 in .*: pass"):
        SHD(root=str(tmp_path), download=False).prepare_data()


def test_damaged_files_are_named(root):
    path = root / "SHD/shd_test.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"shd_test\.h5 cannot be read \(.*truncated"):
        made(SHD(root=str(root), channels=40, time_steps=4))
    writers.write_metavision(path, writers.events_of(20, 0, 128, 128))
    with pytest.raises(UserError, match=r"shd_test\.h5 cannot be read \(.*labels"):
        made(SHD(root=str(root), channels=40, time_steps=4))


# --- lines of sensors in class folders


def spikes_of_line(seed):
    random = np.random.default_rng(seed)
    return np.sort(random.integers(0, 10_000, 50)), random.integers(0, 16, 50)


@pytest.fixture
def line(tmp_path):
    for i, name in enumerate(("train/a", "train/b", "test/a", "test/b")):
        folder = tmp_path / "line" / name
        folder.mkdir(parents=True)
        for k in range(3):
            np.savetxt(folder / f"{k}.csv", np.stack(spikes_of_line(10 * i + k), 1), "%d", ",")
    return tmp_path / "line"


LINE = {"sensor": (1, 16), "columns": ["t", "x"], "time_steps": 5, "validation": "test"}


def test_a_line_of_sensors_needs_times_and_places_alone(line):
    data = made(EventFolder(root=str(line), polarities=1, **LINE))
    assert data.input_shape == (16,)
    x, _ = all_of(data.test_set)
    assert x.shape == (6, 5, 16)
    _, places = spikes_of_line(20)
    assert np.array_equal(x[0].sum(0), np.bincount(places, minlength=16))
    both = made(EventFolder(root=str(line), **LINE))
    assert both.input_shape == (32,)
    assert torch.equal(all_of(both.test_set)[0][..., :16], x)


def test_a_table_must_hold_the_columns_that_are_not_left_out(line):
    with pytest.raises(UserError, match="name t, x, y and p"):
        made(EventFolder(root=str(line), **{**LINE, "columns": None}))
    with pytest.raises(UserError, match=r"0\.csv has the columns t, y: name t, x, y and p"):
        made(EventFolder(root=str(line), **{**LINE, "columns": ["t", "y"]}))


def test_steps_of_a_duration_need_slices_by_time(line):
    with pytest.raises(UserError, match=r"step_ms=1\.0 must be at least 0\.001, with --data.slicing by_time"):
        EventFolder(root=str(line), step_ms=1.0, **LINE)
    with pytest.raises(UserError, match="leave it out with windows"):
        EventFolder(root=str(line), step_ms=1.0, slicing="by_time", window_ms=5.0, **LINE)


@pytest.mark.parametrize("polarities", [1, 2])
def test_a_stream_of_a_line_sees_the_frames_of_the_data_set(line, polarities):
    data = made(EventFolder(root=str(line), slicing="by_time", step_ms=2.0, polarities=polarities, **LINE))
    torch.manual_seed(0)
    net = pl.SpikingNetwork(data.input_shape, 2, 5, structure="RFC12-PLIF(v_threshold=0.1)-FC2")
    x, _ = all_of(data.test_set)
    t, places = spikes_of_line(20)
    stream = StreamingNetwork(net, us_per_step=2000, polarities=polarities)
    stream.push(places, t=t)
    stream.advance(int(t[0]) + 10_000)
    torch.testing.assert_close(stream.votes, net(x[:1].transpose(0, 1)).double().mean(0)[0])
