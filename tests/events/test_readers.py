"""Every format: what was written is read, what is damaged or cut is refused with its name, and other readers agree."""

import re
import struct
import sys
from functools import cache, partial
from pathlib import Path

import aedat
import h5py
import hdf5plugin
import lz4.frame
import numpy as np
import pytest
import tonic.io
from expelliarmus import Wizard
from hypothesis import given
from hypothesis import strategies as st

from plif_lightning.errors import UserError
from plif_lightning.events import Recording, RecordingError, Sensor, prophesee, read_any, sensor_of
from plif_lightning.events.aedat import _Table
from plif_lightning.events.recording import pack_events
from tests import writers

MANY = writers.events_of(3000, 0)


def as_table(events: Recording) -> np.ndarray:
    table = np.zeros(len(events.t), [("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "u1")])
    for name, column in events._asdict().items():
        table[name] = column
    return table


def to_bytes(content, **arguments):
    return lambda path, events: path.write_bytes(content(events, **arguments))


# suffix, and what writes a file
FORMATS = {
    "nmnist": (".bin", to_bytes(writers.nmnist_bytes)),
    "aedat2": (".aedat", to_bytes(writers.aedat2_bytes)),
    "aedat3": (".aedat", to_bytes(partial(writers.aedat3_bytes, invalid=1))),
    "aedat4": (".aedat4", to_bytes(writers.aedat4_bytes)),
    "aedat4_lz4": (".aedat4", to_bytes(writers.aedat4_bytes, compression=1)),
    "aedat4_zstd": (".aedat4", to_bytes(writers.aedat4_bytes, compression=3)),
    "evt2": (".raw", to_bytes(writers.evt2_bytes)),
    "evt21": (".raw", to_bytes(writers.evt21_bytes)),
    "evt21_legacy": (".raw", to_bytes(writers.evt21_bytes, legacy=True)),
    "evt3": (".raw", to_bytes(writers.evt3_bytes)),
    "dat": (".dat", to_bytes(writers.dat_bytes)),
    "dsec": (".h5", partial(writers.write_dsec, **hdf5plugin.Blosc())),
    "metavision": (".hdf5", writers.write_metavision),
    "npz": (".npz", lambda path, events: np.savez(path, **events._asdict())),
    "npy": (".npy", lambda path, events: np.save(path, as_table(events))),
    "csv": (".csv", to_bytes(writers.text_bytes)),
    "txt": (".txt", to_bytes(writers.text_bytes, columns="xypt", separator=" ")),
}
NO_SENSOR = ("nmnist", "dsec", "npz", "npy", "csv", "txt")


def written(name: str, folder: Path, events: Recording) -> Path:
    suffix, write = FORMATS[name]
    path = folder / f"{name}{suffix}"
    write(path, events)
    return path


def same(a, b) -> None:
    for name, left, right in zip(Recording._fields, a, b, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def recording(*events: tuple[int, int, int, int]) -> Recording:
    """Recording of (t, x, y, p)."""
    return Recording(*(np.array([event[i] for event in events], np.int64) for i in range(4)))


def rows_of(n: int = 600) -> Recording:
    """Events in bursts: several in a row at one time, as moving edges make them."""
    random = np.random.default_rng(3)
    burst = np.sort(random.integers(0, n // 6, n))
    first = np.searchsorted(burst, burst)
    x = 4 * (np.arange(n) - first) + random.integers(0, 4, n)
    y, p = random.integers(0, 128, n)[burst], random.integers(0, 2, n)[burst]
    keep = x < 128
    return Recording(*(column[keep] for column in (burst * 9973, x, y, p)))


@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
@pytest.mark.parametrize("name", FORMATS)
def test_files_are_read_as_they_were_written(name, tmp_path):
    for events in (MANY, rows_of(), recording((5, 3, 2, 1)), Recording(*(column[:0] for column in MANY))):
        path = written(name, tmp_path, events)
        read = read_any(path)
        same(read, events)
        assert {column.dtype.kind for column in read} <= {"i", "u"}
        assert sensor_of(path) == (None if name in NO_SENSOR else Sensor(128, 128))


@pytest.mark.parametrize(
    ("name", "overflow"),
    [("nmnist", 2**23), ("aedat2", 2**32), ("aedat3", 2**31), ("dat", 2**32), ("evt3", 2**24)]
    + [(name, 2**34) for name in ("evt2", "evt21", "evt21_legacy")],
)
def test_overflows_of_the_clock_are_added(name, overflow, tmp_path):
    late = recording((overflow - 9, 1, 1, 1), (overflow - 1, 2, 2, 0), (overflow, 3, 3, 1), (overflow + 2**14, 4, 4, 0))
    same(read_any(written(name, tmp_path, late)), late)


@pytest.mark.parametrize(("name", "overflow"), [("dat", 2**32), ("evt2", 2**34)])
def test_chunked_reading_equals_reading_at_once(name, overflow, tmp_path, caplog):
    many = writers.events_of(70_000, 0)
    many.x[:3] = many.x[-2:] = 500
    late = many._replace(t=many.t + overflow - 300_000)
    same(read_any(written(name, tmp_path, late)), Recording(*(column[3:-2] for column in late)))
    assert "5 events outside the sensor" in caplog.text


def test_an_overflow_between_two_portions_is_added(tmp_path):
    """Each portion alone has ascending times, and nothing outside the sensor."""
    n = 2**15  # events of a portion
    place = np.arange(n + 9) % 128
    time = 2**32 - n + np.arange(n + 9)
    time[0] = 100  # the portion's last time counts, not its first
    events = Recording(time, place, place, place % 2)
    same(read_any(written("dat", tmp_path, events)), events)


def test_a_file_that_grows_is_read_up_to_its_size_at_the_start(tmp_path, monkeypatch):
    path, events = tmp_path / "a.dat", writers.events_of(100, 0)
    read = prophesee._words

    def grown(content, header):
        with path.open("ab") as file:
            file.write(bytes(8))
        return read(content, header)

    monkeypatch.setattr(prophesee, "_words", grown)
    monkeypatch.setattr(prophesee, "_PORTION", 8 * 30)
    same(read_any(writers.write_file(path, writers.dat_bytes(events))), events)


def test_a_path_may_be_a_string_and_its_suffix_in_any_case(tmp_path):
    same(read_any(str(written("evt3", tmp_path, MANY).rename(tmp_path / "A.RAW"))), MANY)


# --- files that are damaged, cut or something else

mutations = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "add"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, changes) -> bytes:
    for how, place, data in changes:
        at = int(place * len(content))
        content = content[:at] + {"set": data + content[at + len(data) :], "cut": b"", "add": data + content[at:]}[how]
    return content


@cache
def content_of(name: str, n: int, folder: Path) -> bytes:
    return written(name, folder, writers.events_of(n, 1, 34, 34)).read_bytes()


@pytest.mark.parametrize("name", FORMATS)
@given(changes=mutations, n=st.sampled_from([1, 40]))
def test_a_damaged_or_cut_file_is_a_recording_or_refused_with_its_name(name, tmp_path, changes, n):
    path = tmp_path / f"damaged{FORMATS[name][0]}"
    path.write_bytes(mutated(content_of(name, n, tmp_path), changes))
    try:
        events = read_any(path)
        pack_events(events, Sensor(128, 128), str(path))
        assert len({len(column) for column in events}) == 1
    except RecordingError as error:
        assert str(path) in str(error)
    try:
        assert isinstance(sensor_of(path), Sensor | None)
    except RecordingError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("csv", "txt")])
def test_a_file_that_ends_within_an_event_is_refused(name, tmp_path):
    path = written(name, tmp_path, MANY)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordingError, match=rf"{re.escape(str(path))}.* truncated"):
        read_any(path)


AEDAT3 = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"


def packet(kind=1, size=8, capacity=1, number=1, data=bytes(8)):
    return struct.pack("<hhiiiiii", kind, 1, size, 4, 0, capacity, number, number) + data


def raw(*words, kind="<u2", evt="3.0"):
    return writers.raw_header(evt, 128, 128) + np.array(words, kind).tobytes()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("a.mp4", b"", "must end in one of .aedat, .aedat4, .bin, .csv, .dat"),
        ("a.aedat", b"#!AER-DAT1.0\r\n", "begins with b'#!AER-DAT1': it is no AEDAT 2.0, 3.1 or 4.0"),
        ("a.aedat", b"#!AER-DAT2.0\r\n# no end", "ends within its header"),
        ("a.aedat", b"#!AER-DAT2.0\r\n" + struct.pack(">IIII", 2, 0, 1 << 16, 0), "of event 1 is 0x10000"),
        # it looks like a line of the header, after the header's end
        ("a.aedat", b"#!AER-DAT2.0\r\n#!END-HEADER\r\n" + struct.pack(">II", 0x23000000, 0), "event 0 is 0x23000000"),
        ("a.aedat", AEDAT3 + packet(capacity=2**31 - 1), "ends within the packet at byte 28"),
        ("a.aedat", AEDAT3 + packet(number=2), "the packet at byte 28 says type 1, 2 of 1 events of 8 bytes"),
        ("a.aedat", AEDAT3 + packet(kind=77), "says type 77"),
        ("a.aedat", AEDAT3 + packet(kind=2, size=0), "says type 2, 1 of 1 events of 0 bytes"),
        ("a.aedat4", b"garbage", "is no AEDAT 4 file: it begins with b'garbage'"),
        ("a.raw", raw(0x8000, 0x6000, 0x9123), "has a type that EVT 3.0 does not have"),
        ("a.raw", raw(0x80000000, 0x50000000, kind="<u4", evt="2.0"), "has a type that EVT 2.0 does not have"),
        ("a.raw", raw(2**61, kind="<u8", evt="2.1"), "has a type that EVT 2.1 does not have"),
        ("a.raw", b"\0\0\0\0", "its encoding is not named in its header; EVT 2.0, 2.1 and 3.0 are read"),
        ("a.raw", b"% evt 4.0\n\0\0", "its encoding is 4.0"),
        ("a.raw", b"% format HISTO3D;height=2;width=2\n", "its encoding is HISTO3D"),
        ("a.dat", b"% Version 1\n\x0c\x08", "version 1; DAT of version 2 with events of type 0 or 12 and 8 bytes"),
        ("a.dat", b"% Version 2\n\x0e\x18", "its events are of type (14,) and size (24,)"),
    ],
)
def test_a_bad_file_is_named(file, content, expected, tmp_path):
    path = writers.write_file(tmp_path / file, content)
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(RecordingError, match=r"missing\.\w+ does not exist"):
        read_any(tmp_path / f"missing{FORMATS[name][0]}")


def test_a_missing_package_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(UserError, match=r"recording in HDF5 needs hdf5plugin.*pip install '\.\[events\]'"):
        read_any(written("metavision", tmp_path, MANY))


# --- bits by hand


@pytest.mark.parametrize(
    ("file", "content", "events"),
    [
        # ON at 0x10203 us; a marker of an overflow; OFF at 1 us + 2^13 us
        (
            "a.bin",
            bytes([3, 4, 0x81, 2, 3, 0, 240, 0, 0, 0, 5, 6, 0, 0, 1]),
            [(0x10203, 3, 4, 1), (2**13 + 1, 5, 6, 0)],
        ),
        # an input signal; bit 0 polarity (0 is ON), bits 1-7 x from the right, bits 8-14 y
        (
            "a.aedat",
            b"#!AER-DAT2.0\r\n# lines\r\n" + struct.pack(">4I", 0x8000, 1, 5 << 1 | 9 << 8, 7),
            [(7, 127 - 5, 9, 1)],
        ),
        # a column before any time; row 3; 4098 us; ON at 4; OFF from 16 on: 16, 18, 28, 47; a trigger, monitoring; a
        # row of something else; the lower part of the time restarts at 0
        (
            "a.raw",
            raw(
                *(0x2005, 0x0003, 0x8001, 0x6002, 0x2804, 0x3010, 0x4005, 0x4001, 0x5080, 0xA001, 0xE014, 0xF001),
                *(0x7002, 0x1007, 0x2009, 0x0007, 0x2009, 0x8002, 0x200A),
            ),
            [(4098, 4, 3, 1), *((4098, x, 3, 0) for x in (16, 18, 28, 47)), (4098, 9, 7, 0), (8192, 10, 7, 0)],
        ),
        # EVT 2 and 2.1: a pixel before any time, then 3 us after 2 * 64 us
        (
            "a.raw",
            raw(0x10000000, 0x80000002, 1 << 28 | 3 << 22 | 5 << 11 | 6, kind="<u4", evt="2.0"),
            [(131, 5, 6, 1)],
        ),
        (
            "a.raw",
            raw(1 << 60 | 1, 0x80000002 << 32, (1 << 28 | 3 << 22 | 5 << 11 | 6) << 32 | 0b101, kind="<u8", evt="2.1"),
            [(131, 5, 6, 1), (131, 7, 6, 1)],
        ),
    ],
)
def test_bits_by_hand(file, content, events, tmp_path):
    same(read_any(writers.write_file(tmp_path / file, content)), recording(*events))


def test_a_small_step_back_in_time_is_no_overflow_of_aedat2(tmp_path):
    """Only more than half the range is."""
    for step, overflows in ((-1, 0), (-(2**31), 0), (-(2**31) - 1, 1)):
        t = np.array([2**32 - 5, 2**32 - 5 + step])
        path = writers.write_file(
            tmp_path / "a.aedat", writers.aedat2_bytes(recording(*((time, 1, 2, 1) for time in t)))
        )
        assert np.diff(read_any(path).t).tolist() == [step + 2**32 * overflows]


def test_a_table_without_its_first_field_has_the_default():
    """Data behind a table of offsets are no offsets."""
    table = _Table(struct.pack("<IHHHi", 10, 4, 4, 6, 6) + bytes(8))  # root, table of no fields, other data, table
    assert table.number(0, "<i", -7) == -7
    assert len(table.vector(0, "<i4")) == 0


def test_a_clock_that_jumps_back_is_no_overflow(tmp_path):
    path = writers.write_file(tmp_path / "a.raw", raw(0x0001, 0x8005, 0x6000, 0x2001, 0x8003, 0x6000, 0x2001))
    read = read_any(path)
    assert read.t.tolist() == [5 << 12, 3 << 12]
    with pytest.raises(RecordingError, match="time runs backwards"):
        pack_events(read, Sensor(128, 128), "a.raw")


@pytest.mark.parametrize("name", ["dat", "evt2", "evt21", "evt3"])
def test_few_events_outside_the_sensor_are_dropped_and_many_refused(name, tmp_path, caplog):
    x = MANY.x.copy()
    x[:3] = x[-2:] = 500
    same(read_any(written(name, tmp_path, MANY._replace(x=x))), Recording(*(column[3:-2] for column in MANY)))
    assert "5 events outside the sensor that its header names are dropped" in caplog.text
    x[:48] = 500
    with pytest.raises(RecordingError, match=r"50 of 3,000 events of .* lie outside the sensor of 128x128 pixels"):
        read_any(written(name, tmp_path, MANY._replace(x=x)))


@pytest.mark.parametrize("compression", [0, 1])
def test_the_table_at_the_end_of_aedat4_is_no_packet(compression, tmp_path):
    content = writers.aedat4_bytes(MANY, compression)
    table = lz4.frame.compress(b"FTAB" * 20) if compression else bytes(8) + b"FTAB" * 20
    same(read_any(writers.write_file(tmp_path / "a.aedat4", content + table)), MANY)
    # a finished file names where it begins
    place = content.index(struct.pack("<q", -1))

    def ending_at(at):
        return content[:place] + struct.pack("<q", at) + content[place + 8 :]

    same(read_any(writers.write_file(tmp_path / "a.aedat4", ending_at(len(content)) + table)), MANY)
    for bad in (ending_at(len(content))[:-1200], ending_at(300) + table):
        with pytest.raises(RecordingError, match="is damaged"):
            read_any(writers.write_file(tmp_path / "a.aedat4", bad))


# --- beside readers and writers of others

THEIRS = [("x", int), ("y", int), ("t", int), ("p", int)]


def by_tonic_nmnist(path):
    return tonic.io.read_mnist_file(str(path), np.dtype(THEIRS))


def by_tonic_aedat2(path):
    version, start, _ = tonic.io.read_aedat_header_from_file(str(path))
    theirs = tonic.io.get_aer_events_from_file(str(path), version, start)
    address = theirs["address"].astype(np.int64)
    x, y, p = 127 - (address >> 1 & 127), address >> 8 & 127, 1 - (address & 1)
    return {"t": theirs["timeStamp"], "x": x, "y": y, "p": p}


def by_aedat(path):
    return np.concatenate([packet["events"] for packet in aedat.Decoder(path) if "events" in packet])


def by_h5py(path):
    with h5py.File(path) as file:
        return file["CD/events"][()]


@pytest.mark.parametrize(
    ("name", "events", "theirs"),
    [
        ("nmnist", writers.events_of(300, 0, 34, 34, 2**23 + 2**15), by_tonic_nmnist),
        ("aedat2", writers.events_of(1000, 1, last=2**32), by_tonic_aedat2),
        ("aedat4", MANY, by_aedat),
        ("aedat4_lz4", MANY, by_aedat),
        ("aedat4_zstd", MANY, by_aedat),
        ("evt2", MANY, Wizard("evt2").read),
        # expelliarmus adds an overflow of the lower part of a time to an upper part that says it too
        ("evt3", MANY._replace(t=MANY.t // 250), Wizard("evt3").read),
        ("dat", MANY, Wizard("dat").read),
        ("metavision", MANY, by_h5py),
        ("npz", MANY, np.load),
    ],
)
def test_files_are_read_as_others_read_them(name, events, theirs, tmp_path):
    path = written(name, tmp_path, events)
    found = theirs(path)
    same(read_any(path), [found[column] for column in "txyp"])


def test_aedat3_as_spikingjelly_reads_it(tmp_path, spikingjelly_utils):
    path = writers.write_file(tmp_path / "a.aedat", writers.aedat3_bytes(writers.events_of(1000, 1, last=2**33)))
    theirs = spikingjelly_utils.load_aedat_v3(path)
    same(read_any(path), [theirs[column] for column in "txyp"])


@pytest.mark.parametrize(("encoding", "file"), [("evt2", "a.raw"), ("dat", "a.dat")])
def test_files_of_expelliarmus_are_read(encoding, file, tmp_path):
    Wizard(encoding).save(fpath=tmp_path / file, arr=as_table(MANY))
    same(read_any(tmp_path / file), MANY)


def test_the_evt3_of_expelliarmus_lacks_words_and_is_refused(tmp_path):
    Wizard("evt3").save(fpath=tmp_path / "a.raw", arr=as_table(MANY))
    with pytest.raises(RecordingError, match=r"a\.raw: .* backwards without a TIME_HIGH word .* expelliarmus writes"):
        read_any(tmp_path / "a.raw")


def test_real_nmnist_as_tonic_and_spikingjelly_read_it(real_data, spikingjelly_utils):
    paths = sorted((real_data / "NMNIST").glob("*/*/*.bin"))
    assert len(paths) == 1100
    for path in paths[::10]:
        ours = read_any(path)
        for theirs in (by_tonic_nmnist(path), spikingjelly_utils.load_ATIS_bin(path)):
            same(ours, [theirs[column] for column in "txyp"])
        assert 1069 <= len(ours.t) <= 7152


# events in each, and the first one: t [us], x, y, p
DVS128 = {
    "Caixa": (201_523, (3151642323, 60, 51, 0)),
    "Lapiseira": (126_164, (3799644735, 41, 44, 0)),
    "Tesoura": (143_655, (2890272251, 44, 37, 1)),
    "alex_walking_again": (19_182, (41306606, 62, 118, 0)),
    "foam90": (1_575, (2693326797, 112, 72, 1)),
}


@pytest.mark.parametrize("name", DVS128)
def test_real_recordings_of_a_dvs128(name, real_data):
    path = real_data / "DVS128" / f"{name}.aedat"
    if not path.exists():
        pytest.skip("no recordings of a DVS128")
    ours, theirs = read_any(path), by_tonic_aedat2(path)
    same(ours, [theirs[column] for column in "txyp"])
    assert (len(ours.t), tuple(int(column[0]) for column in ours)) == DVS128[name]
    assert (np.diff(ours.t) >= 0).all()


@pytest.mark.parametrize("chunks", [None, (1000,)])
def test_a_column_of_hdf5_that_was_never_written_is_refused(chunks, tmp_path):
    """HDF5 reads zeros there."""
    path = writers.write_dsec(tmp_path / "a.h5", MANY)
    with h5py.File(path, "a") as file:
        del file["events/x"]
        file["events"].create_dataset("x", (3000,), "i2", chunks=chunks)
        if chunks:
            file["events/x"][:1000] = 1
    with pytest.raises(RecordingError, match=r"a.h5: /events/x was not written as a whole"):
        read_any(path)
