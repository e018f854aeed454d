"""Files of cameras: as they were written, as other libraries read them, cut anywhere, and damaged."""

import io
import logging
import os
import re
import struct
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from expelliarmus import Wizard
from hypothesis import given, settings
from hypothesis import strategies as st

from plif_lightning.errors import UserError
from plif_lightning.events import Recording, Sensor, read_any, readers
from plif_lightning.events.formats import decoding
from plif_lightning.events.formats.columns import Column, column_of
from plif_lightning.events.recording import RecordingError, pack
from plif_lightning.events.store import Kind, RawFile, StoreError, build
from tests import writers
from tests.events.test_readers import FUZZ, mutated, mutations, read_or_refuse, recording, same

RAW = {
    "evt2": writers.evt2_bytes,
    "evt21": writers.evt21_bytes,
    "evt21_legacy": partial(writers.evt21_bytes, legacy=True),
    "evt3": writers.evt3_bytes,
}
# suffix and writer
STREAMS = {
    "aedat2": (".aedat", writers.aedat2_bytes),
    "aedat3": (".aedat", writers.aedat3_bytes),
    "aedat4": (".aedat4", writers.aedat4_bytes),
    "aedat4_lz4": (".aedat4", partial(writers.aedat4_bytes, compression=1)),
    "aedat4_zstd": (".aedat4", partial(writers.aedat4_bytes, compression=3)),
    "dat": (".dat", writers.dat_bytes),
    **{name: (".raw", write) for name, write in RAW.items()},
    "csv": (".csv", writers.text_bytes),
    "seconds": (".txt", partial(writers.text_bytes, separator=" ", unit="s")),
}
MANY = writers.events_of(3000, 0)


def rows_of(n=600, height=128, width=128):
    """Events in bursts: several in a row at one time, as moving edges make them."""
    random = np.random.default_rng(3)
    t = np.sort(random.integers(0, 40, n)) * 25_000
    y, p = random.integers(0, height, n), random.integers(0, 2, n)
    y[1:][random.random(n - 1) < 0.8] = 0
    for i in range(1, n):
        if y[i] == 0:
            t[i], y[i], p[i] = t[i - 1], y[i - 1], p[i - 1]
    x = random.integers(0, 4, n)
    for i in range(1, n):
        x[i] = x[i - 1] + random.integers(1, 5) if t[i] == t[i - 1] and y[i] == y[i - 1] else x[i]
    keep = x < width
    return Recording(*(column[keep] for column in (np.sort(t), x, y, p)))


@pytest.mark.parametrize("events", [MANY, rows_of(), recording((5, 3, 2, 1)), Recording(*(c[:0] for c in MANY))])
@pytest.mark.parametrize("name", STREAMS)
def test_files_are_read_as_they_were_written(name, events, tmp_path):
    suffix, write = STREAMS[name]
    read = read_any(writers.write_file(tmp_path / f"a{suffix}", write(events)))
    same(read, events)
    assert read.t.dtype == np.int64
    assert read.x.dtype.itemsize <= 8


@pytest.mark.parametrize("portion", [1, 3, 4, 7, 8, 100, 4097])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_may_be_cut_anywhere(name, portion):
    events = Recording(*(column[:1500] for column in MANY))
    stream = readers.EventStream(io.BytesIO(), name)
    content = STREAMS[name][1](events)
    found = [stream.take(content[i : i + portion]) for i in range(0, len(content), portion)]
    found.append(stream.decoder.finish())
    for i, column in enumerate(events):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in found]), column)


@pytest.mark.parametrize("events", [MANY, rows_of()])
@pytest.mark.parametrize("name", STREAMS)
def test_large_files_are_read_in_portions(name, events, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_PORTION", 64)
    monkeypatch.setattr(decoding, "LONGEST_HEADER", 512)
    suffix, write = STREAMS[name]
    same(read_any(writers.write_file(tmp_path / f"a{suffix}", write(events))), events)


@pytest.mark.parametrize("name", ["aedat2", "dat", *RAW])
def test_what_is_appended_while_a_file_is_read_is_left_out(name, tmp_path, monkeypatch):
    suffix, write = STREAMS[name]
    content = write(MANY)
    path = writers.write_file(tmp_path / f"a{suffix}", content + content[-800:])

    def size_before(number):
        return os.stat_result((*(0 for _ in range(6)), len(content), 0, 0, 0))

    monkeypatch.setattr(decoding.os, "fstat", size_before)
    same(read_any(path), MANY)


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("csv", "seconds")])
def test_a_truncated_file_is_named(name, tmp_path):
    suffix, write = STREAMS[name]
    content = write(MANY)
    for n in (1, 3, 5):
        if suffix == ".raw" and n % {"evt3": 2, "evt2": 4}.get(name, 8) == 0:
            continue
        path = writers.write_file(tmp_path / f"{n}{suffix}", content[:-n])
        with pytest.raises(RecordingError, match=r"ends within .*The file is truncated"):
            read_any(path)


@pytest.mark.parametrize("name", STREAMS)
@FUZZ
@given(changes=mutations, n=st.sampled_from([0, 1, 40]))
def test_fuzzed_files(name, tmp_path, changes, n):
    suffix, write = STREAMS[name]
    content = mutated(write(writers.events_of(n, 1, 34, 34)), changes)
    read_or_refuse(read_any, writers.write_file(tmp_path / f"file{suffix}", content))


@settings(FUZZ, max_examples=100)
@given(
    content=st.binary(max_size=300), first=st.sampled_from([*(w(MANY)[:150] for _, w in STREAMS.values()), b"% evt "])
)
def test_garbage_on_a_stream(content, first):
    stream = readers.EventStream(io.BytesIO(first + content), "garbage")
    try:
        found = stream.read()
    except RecordingError as error:
        assert "garbage" in str(error)
    else:
        assert len({len(column) for column in found}) == 1


# --- Prophesee: beside expelliarmus


@pytest.mark.parametrize("encoding", ["dat", "evt2"])
def test_files_of_expelliarmus(encoding, tmp_path):
    suffix = "dat" if encoding == "dat" else "raw"
    events = np.zeros(len(MANY.t), [("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "u1")])
    for name, column in MANY._asdict().items():
        events[name] = column
    path = tmp_path / f"a.{suffix}"
    Wizard(encoding).save(fpath=path, arr=events)
    same(read_any(path), MANY)
    # and ours as it reads them
    path.write_bytes(STREAMS[encoding][1](MANY))
    theirs = Wizard(encoding).read(path)
    same(read_any(path), Recording(*(theirs[name] for name in "txyp")))


def test_evt3_beside_expelliarmus(tmp_path):
    # It adds the overflow of the lower part of a time to the upper part that says the same: times stay below 2^12 us.
    events = Recording(MANY.t // 250, *MANY[1:])
    path = writers.write_file(tmp_path / "a.raw", writers.evt3_bytes(events))
    theirs = Wizard("evt3").read(path)
    same(read_any(path), Recording(*(theirs[name] for name in "txyp")))


def words(*values, kind="<u2", evt="3.0"):
    return writers.raw_header(evt, 128, 128) + np.array(values, kind).tobytes()


def test_evt3_bits_by_hand(tmp_path):
    data = words(
        *(0x2005, 0x0003),  # a column before any time; row 3
        *(0x8001, 0x6002, 0x2804),  # 4098 us; ON at column 4
        *(0x3010, 0x4005, 0x4001, 0x5080),  # OFF from column 16 on: 16, 18; 28; 47
        *(0xA001, 0xE014, 0xF001, 0x7002),  # a trigger, monitoring
        *(0x1007, 0x2009, 0x0007, 0x2009),  # a row of something else
        *(0x8002, 0x200A),  # the lower part begins anew
    )
    same(
        read_any(writers.write_file(tmp_path / "a.raw", data)),
        recording((4098, 4, 3, 1), *((4098, x, 3, 0) for x in (16, 18, 28, 47)), (4098, 9, 7, 0), (8192, 10, 7, 0)),
    )


@pytest.mark.parametrize(
    ("name", "overflow"), [("evt3", 2**24), ("evt2", 2**34), ("evt21", 2**34), ("evt21_legacy", 2**34), ("dat", 2**32)]
)
def test_overflows_of_the_counter(name, overflow, tmp_path):
    suffix, write = STREAMS[name]
    late = recording((overflow - 9, 1, 1, 1), (overflow - 1, 2, 2, 0), (overflow + 5, 3, 3, 1))
    path = writers.write_file(tmp_path / f"a{suffix}", write(late))
    same(read_any(path), late)


def test_a_clock_that_jumps_back_is_no_overflow(tmp_path):
    data = words(0x0001, 0x8005, 0x6000, 0x2001, 0x8003, 0x6000, 0x2001)
    read = read_any(writers.write_file(tmp_path / "a.raw", data))
    assert read.t.tolist() == [5 << 12, 3 << 12]
    with pytest.raises(RecordingError, match="time runs backwards"):
        pack(read, Sensor(128, 128), "a.raw")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (words(0x8000, 0x6000, 0x9123), "word 2 after the header has the type 0x9, which EVT 3.0 does not have"),
        (words(0x80000000, 0x50000000, kind="<u4", evt="2.0"), "word 1 after the header has the type 0x5"),
        (words(2**61, kind="<u8", evt="2.1"), "word 0 after the header has the type 0x2, which EVT 2.1"),
        (b"% date now\n\0\0", "its encoding is not named in its header"),
        (b"% evt 4.0\n\0\0", "its encoding is 4.0; EVT 2.0, EVT 2.1 and EVT 3.0 are read"),
        (b"% format HISTO3D;height=2;width=2\n", "its encoding is HISTO3D"),
        (b"% format EVT3;height=2;width=2\n% geometry 3x2\n", "its header names two sensors"),
        (b"\0\0\0\0", "is no RAW file of Prophesee"),
        (b"% evt 3.0", "ends within its header"),
    ],
)
def test_a_bad_raw_file_is_named(content, expected, tmp_path):
    path = writers.write_file(tmp_path / "a.raw", content)
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"% Version 1\n\x0c\x08", "version 1 of DAT is not read"),
        (b"% Version 2\n\x0e\x18", "no DAT file of Prophesee with events of 8 bytes"),
        (bytes(16), "it has no header"),
    ],
)
def test_a_bad_dat_file_is_named(content, expected, tmp_path):
    path = writers.write_file(tmp_path / "a.dat", content)
    with pytest.raises(RecordingError, match=re.escape(expected)):
        read_any(path)


@pytest.mark.parametrize("name", ["dat", *RAW])
def test_few_events_outside_the_sensor_are_dropped_with_a_warning(name, tmp_path, caplog):
    suffix, write = STREAMS[name]
    x = MANY.x.copy()
    x[:5] = 500
    path = writers.write_file(tmp_path / f"a{suffix}", write(MANY._replace(x=x)))
    same(read_any(path), Recording(*(column[5:] for column in MANY)))
    assert "5 of 3,000 events of" in caplog.text
    assert "lie outside the sensor of 128x128" in caplog.text
    x[:50] = 500
    path.write_bytes(write(MANY._replace(x=x)))
    with pytest.raises(RecordingError, match=r"50 of .* lie outside the sensor of 128x128"):
        read_any(path)


def test_of_a_long_file_all_events_outside_the_sensor_are_counted(tmp_path, caplog):
    n = 100_000
    x = np.full(n, 3)
    x[:5] = x[-7:] = 500
    content = STREAMS["dat"][1](Recording(np.arange(n), x, x % 100, x * 0))
    assert len(read_any(writers.write_file(tmp_path / "a.dat", content)).t) == n - 12
    assert re.search(r"5 of [\d,]+ events of .* its header names so far: they are dropped", caplog.text)
    assert re.search(r"12 of 100,000 events of .* its header names: they are dropped", caplog.text)


# --- text


@pytest.mark.parametrize("unit", ["us", "s", "ns"])
@pytest.mark.parametrize("separator", [",", " ", "\t", "; "])
@pytest.mark.parametrize("columns", ["txyp", "xypt", "pyxt"])
def test_text_in_any_order_that_a_header_names(columns, separator, unit, tmp_path):
    content = writers.text_bytes(MANY, columns, separator, unit=unit)
    same(read_any(writers.write_file(tmp_path / "a.csv", content)), MANY)


@pytest.mark.parametrize("columns", ["txyp", "xypt", "xytp"])
def test_text_without_names_is_told_from_its_values(columns, tmp_path):
    content = writers.text_bytes(MANY, columns, " ", header=False)
    same(read_any(writers.write_file(tmp_path / "a.txt", content)), MANY)
    stream = readers.EventStream(io.BytesIO(content), "a")
    found = [stream.read(), stream.decoder.finish()]
    same(Recording(*map(np.concatenate, zip(*found, strict=True))), MANY)


@pytest.mark.parametrize(
    ("content", "events"),
    [
        (b"# recorded today\n\n# t [s] x y pol\n0.5 1 2 1\n1.25 3 4 0", [(500_000, 1, 2, 1), (1_250_000, 3, 4, 0)]),
        (b'"x","y","timestamp","polarity","label"\r\n"1","2",7,True,car\r\n', [(7, 1, 2, 1)]),
        (b",t,x,y,p\n0,7,1,2,1\n1,9,3,4,0\n", [(7, 1, 2, 1), (9, 3, 4, 0)]),
        (b"t,x,y,p,note,n\n7,1,2,1,,5\n9,3,4,0,,\n,,,\n", [(7, 1, 2, 1), (9, 3, 4, 0)]),
        (b"t,x,y,p\n7 , 1,\t2 ,1,\n", [(7, 1, 2, 1)]),
        (b"\xef\xbb\xbft,x,y,p\n7,1,2,1\n", [(7, 1, 2, 1)]),
        (b"t,x,y,p\r\n", []),
        (b"\xef\xbb\xbf7 9 8 1\n9 3 4 0\n", [(7, 9, 8, 1), (9, 3, 4, 0)]),
        (b"\xef\xbb\xbf# t x y p\n7 1 2 1\n", [(7, 1, 2, 1)]),
        ("t [\u03bcs],x,y,p\n1000,1,2,1\n".encode(), [(1000, 1, 2, 1)]),
        ("t [\u00b5s],x,y,p\n1000,1,2,1\n".encode("cp1252"), [(1000, 1, 2, 1)]),
        (b"sep=;\nt;x;y;p\n7;1;2;1\n", [(7, 1, 2, 1)]),
        (b"# columns: t x y p\n# time: t in us\n7 9 8 1\n9 3 4 0\n", [(7, 9, 8, 1), (9, 3, 4, 0)]),
        (b"# c\n" * 1500 + b"t,x,y,p\n7,1,2,1\n", [(7, 1, 2, 1)]),
        (b"x,y,timestamp,polarity,label\r\n1,2,7,True,3\r\n3,4,9,False,3\r\n", [(7, 1, 2, 1), (9, 3, 4, 0)]),
        (b"240 180\n0.000001 9 8 1\n3.000000 3 4 0\n", [(1, 9, 8, 1), (3_000_000, 3, 4, 0)]),
        (b"%geometry:1280,720\n9,8,1,7\n3,4,0,9\n", [(7, 9, 8, 1), (9, 3, 4, 0)]),
        (
            b"t,x,y,p\n1.000000000000000000e+06,1.0e0,2.0,-1\n2.5E+6,3,4,+1.0\n",
            [(10**6, 1, 2, 0), (2_500_000, 3, 4, 1)],
        ),
        (b"t,x,y,p\n1234.0,1,2,1\n", [(1234, 1, 2, 1)]),
        (b"t,x,y,p\n", []),
        (b"", []),
        (b"time (ms);x;y;on\n1.5;1;2;true\n", [(1500, 1, 2, 1)]),
        (b"t_ns,x,y,p\n1499,1,2,1\n1500,1,2,1\n", [(1, 1, 2, 1), (2, 1, 2, 1)]),
    ],
)
def test_text_by_hand(content, events, tmp_path):
    path = writers.write_file(tmp_path / "a.csv", content)
    same(read_any(path), recording(*events) if events else Recording(*(np.zeros(0, np.int64) for _ in range(4))))


def test_numpys_text(tmp_path):
    np.savetxt(tmp_path / "a.txt", np.stack([MANY.t, *MANY[1:]], 1), header="t x y p")
    same(read_any(tmp_path / "a.txt"), MANY)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"t,x,y,p\n1,2,3,1\n2,3\n", "line 3: '2,3' is no event of 4 fields"),
        (b"t,x,y,p\n1,2,3,1\n2,,3,4,1\n", "line 3: '2,,3,4,1' is no event of 4 fields"),
        (b"t,x,y,p\n1,2,3,1\n,2,3,1\n", "line 3: ',2,3,1' is no event of 4 fields"),
        (b"t,x,y,p\n1,2,3,1\n2,3,4,5,6\n", "line 3: '2,3,4,5,6' is no event"),
        (b"t,x,y,p\n1,2,3,1\n2,three,4,1\n", "line 3: '2,three,4,1' is no event"),
        (b"t,x,y,p\n1,2,3,7\n", "line 2: '1,2,3,7' is no event"),
        (b"t,x,y,p\n1,2.5,3,1\n", "line 2: '1,2.5,3,1' is no event"),
        (b"t,x,y,p\n1,2,3,1\n99999999999999999999,2,3,1\n", "line 3"),
        (b"t,x,y,p\n1,nan,3,1\n", "line 2"),
        (b"t,ts,x,y,p\n1,1,2,3,1\n", "line 1: t and ts may both be t"),
        (
            b"once upon a time\n1,2,3,1\n",
            "line 1: 'once upon a time' is neither an event nor the names of t, x, y and p",
        ),
        (b"1 2 3\n4 5 6\n", "its lines have 3 numbers"),
        (b"1 2 3 1\n4 5 6 1\n", "it is not clear which they are: 1 hold two values, as polarities do, and 3 others"),
        (b"1 0 0 1\n4 1 0 1\n", "3 hold two values"),
        (b"t x\0y p", "is no text"),
        (b"t,x,y,p\r1,5,6,1\r2,7,8,0\r", "its lines end in CR alone"),
        (b"t [0.1 ms],x,y,p\n1,5,6,1\n", "the unit of 't [0.1 ms]' is not known"),
        (b"inf nan\n1,2,3,1\n", "line 1: 'inf nan' is neither"),
        (b"%geometry:0,0\n1,2,3,1\n", "line 1 names a sensor of 0 x 0 pixels"),
        (b"t,x,y,p\n1,2,3,test\n", "line 2: '1,2,3,test' is no event"),
        (b"t,x,y,p\n1,2,3,1,9\n", "line 2: '1 2 3 1 9' has 5 fields, and the header names 4 columns"),
        (
            b"t,x,y,p\n" + b"".join(b"%d.5,1,2,1\n" % i for i in range(200)),
            "as seconds they would give 200 events in 199 s",
        ),
        (b"t,x,y,p\n1,2,3,0\n2,3,4,-1\n", "its polarities are 0 as well as -1"),
    ],
)
def test_bad_text_is_named(content, expected, tmp_path):
    path = writers.write_file(tmp_path / "a.csv", content)
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(path)
    assert str(path) in str(refused.value)


def test_a_fraction_that_comes_late_in_whole_times_is_named():
    lines = "".join(f"{i},1,2,{i % 2}\n" for i in range(3000))
    with pytest.raises(RecordingError, match=r"line 3002: '3000\.5,1,2,1' .* fraction of a microsecond"):
        readers.EventStream(io.BytesIO(f"t,x,y,p\n{lines}3000.5,1,2,1\n".encode()), "a").read()


def test_an_endless_line_is_refused():
    stream = readers.EventStream(io.BytesIO(), "a")
    stream.take(b"t,x,y,p\n" + b"".join(b"%d,1,2,1\n" % i for i in range(99)))
    with pytest.raises(RecordingError, match="a, line 101 is longer than an event"):
        stream.take(b"1" * 20_000)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("ts", Column("t")),
        ("Timestamps", Column("t")),
        ("time [s]", Column("t", 1e6)),
        ("t_us", Column("t", 1.0)),
        ("pol", Column("p")),
        ("XS", Column("x")),
        ("exposure", None),
        ("y_new", None),
        ("", None),
    ],
)
def test_names_of_columns(name, column):
    assert column_of(name) == column


# --- NumPy


@pytest.mark.parametrize(
    "names",
    [("t", "x", "y", "p"), ("ts", "xs", "ys", "ps"), ("timestamps", "x", "y", "polarities"), ("t_us", "x", "y", "pol")],
)
def test_arrays_under_usual_names(names, tmp_path):
    np.savez(tmp_path / "a.npz", **dict(zip(names, MANY, strict=True)), label=3)
    same(read_any(tmp_path / "a.npz"), MANY)
    table = np.zeros(len(MANY.t), [(name, np.int64) for name in names])
    for name, column in zip(names, MANY, strict=True):
        table[name] = column
    np.save(tmp_path / "a.npy", table)
    same(read_any(tmp_path / "a.npy"), MANY)


@pytest.mark.parametrize("order", ["txyp", "xytp", "xypt"])
def test_a_table_of_four_columns(order, tmp_path):
    table = np.stack([getattr(MANY, name) for name in order], 1)
    for i, kind in enumerate((np.int64, np.float64)):
        np.save(tmp_path / f"{i}.npy", table.astype(kind))
        same(read_any(tmp_path / f"{i}.npy"), MANY)
    np.savez(tmp_path / "a.npz", events=table)
    same(read_any(tmp_path / "a.npz"), MANY)


def test_times_in_seconds(tmp_path):
    np.savez(tmp_path / "a.npz", **MANY._replace(t=MANY.t / 1e6)._asdict())
    same(read_any(tmp_path / "a.npz"), MANY)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": [1], "y": [1], "t": [1]}, "lacks p"),
        ({"x": [1], "y": [1], "t": [1], "p": [1], "pol": [1]}, "p and pol may both be p"),
        ({"x": [1], "y": [1], "t": [np.nan], "p": [1]}, "a time is not a finite number"),
        ({"x": [1], "y": [1, 2], "t": [1], "p": [1]}, "every event needs x, y, t and p"),
        ({"events": np.zeros((3, 5))}, "numbers [N, 4]), got float64 [3, 5]"),
        ({"events": np.ones((3, 4))}, "it is not clear which they are"),
    ],
)
def test_bad_arrays_are_named(arrays, expected, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(tmp_path / "a.npz")
    assert "a.npz" in str(refused.value)


# --- HDF5


@pytest.mark.parametrize("compression", [{}, {"compression": "gzip", "chunks": (100,)}])
def test_dsec(compression, tmp_path):
    late = MANY._replace(t=MANY.t + 50_000_000_000)
    same(read_any(writers.write_dsec(tmp_path / "a.h5", late, offset=50_000_000_000, **compression)), late)


def test_dsecs_blosc(tmp_path):
    plugin = pytest.importorskip("hdf5plugin")
    same(read_any(writers.write_dsec(tmp_path / "a.h5", MANY, **plugin.Blosc())), MANY)


@pytest.mark.parametrize("events", [MANY, rows_of()])
@pytest.mark.parametrize("packing", [None, 0, 1, 2])
def test_metavision(packing, events, tmp_path):
    path = writers.write_metavision(tmp_path / "a.hdf5", events, packing=packing)
    same(read_any(path), events)
    assert readers.sensor_of(path) == (128, 128)


def test_metavisions_long_steps_and_repetitions(tmp_path):
    times = np.array([0] * 20 + [15] * 14 + [16] * 15 + [10**9] + [10**9 + 14] * 300 + [2**40])
    n = len(times)
    events = Recording(times, np.arange(n) % 128, np.repeat(7, n), np.repeat(1, n))
    same(read_any(writers.write_metavision(tmp_path / "a.hdf5", events, packing=0)), events)


@settings(FUZZ, max_examples=300)
@given(changes=mutations, packing=st.sampled_from([0, 1, 2]))
def test_fuzzed_ecf(changes, packing, tmp_path):
    from plif_lightning.events.formats import ecf

    class Chunk:
        chunks = (200,)
        id = None

        def __len__(self):
            return 200

        def read_direct_chunk(self, place):
            return 0, mutated(writers.ecf_bytes(Recording(*(c[:200] for c in MANY)), packing), changes)

    chunk = Chunk()
    chunk.id = chunk
    try:
        assert len(ecf.decompressed(chunk, "a.hdf5")) == 200
    except RecordingError as error:
        assert "a.hdf5" in str(error)


def test_data_that_are_not_there_are_not_read_as_zeros(tmp_path):
    events = {name: np.arange(2000) % 2 for name in "xyp"}
    for i, what in enumerate(("virtual", "unwritten", "bomb")):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            for name, values in events.items():
                file[f"events/{name}"] = values
            if what == "virtual":
                layout = h5py.VirtualLayout((2000,), "i8")
                layout[:] = h5py.VirtualSource("missing.h5", "t", (2000,))
                file.create_virtual_dataset("events/t", layout)
            else:
                file.create_dataset("events/t", (2000 if what == "unwritten" else 10**11,), "i8", chunks=(1000,))
        with pytest.raises(RecordingError, match="are not in this file, or were not written as a whole"):
            read_any(tmp_path / f"{i}.h5")


def test_groups_that_are_linked_often_are_searched_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file
        for _ in range(40):
            below = group.create_group("a")
            group["b"] = below
            group = below
        group["back"] = file["a"]
        for name, column in MANY._asdict().items():
            group[f"events/{name}"] = column
        file["alias"] = group["events"]
    same(read_any(tmp_path / "a.h5"), MANY)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({}, "holds no events"),
        ({"left/x": [1], "left/y": [1], "left/t": [1]}, "holds no events"),
        (
            {f"{side}/{name}": [1] for side in ("left", "right") for name in "xytp"},
            "several sets of events: /left, /right",
        ),
        ({"events": np.zeros((2, 4))}, "it is not clear which they are"),
    ],
)
def test_bad_hdf5_is_named(layout, expected, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, values in layout.items():
            file[name] = values
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(path)
    assert str(path) in str(refused.value)


def test_a_link_into_another_file_is_not_followed(tmp_path):
    writers.write_dsec(tmp_path / "secret.h5", MANY)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/events")
        file["again"] = h5py.SoftLink("/")
    with pytest.raises(RecordingError, match="holds no events"):
        read_any(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:  # found by a review: columns were followed
        file["other"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/events")
        for name in "xytp":
            file[f"direct/{name}"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), f"/events/{name}")
            file[f"indirect/{name}"] = h5py.SoftLink(f"/other/{name}")
    with pytest.raises(RecordingError, match="holds no events"):
        read_any(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        for name in "xytp":
            path = writers.write_file(tmp_path / f"{name}.bin", bytes(80))
            file.create_dataset(f"events/{name}", (10,), "i8", external=[(str(path), 0, 80)])
    with pytest.raises(RecordingError, match="are not in this file"):
        read_any(tmp_path / "c.h5")
    with h5py.File(writers.write_dsec(tmp_path / "d.h5", MANY), "a") as file:
        if "t_offset" in file:
            del file["t_offset"]
        file["t_offset"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/events/t")
    with pytest.raises(RecordingError, match="t_offset is not in this file"):
        read_any(tmp_path / "d.h5")


def test_damaged_hdf5_harms_nobody_else(tmp_path):
    content = writers.write_dsec(tmp_path / "whole.h5", MANY).read_bytes()
    random = np.random.default_rng(0)
    for i in range(8):
        damaged = bytearray(content[: len(content) * 3 // 4 if i % 4 == 0 else len(content)])
        for place in random.integers(0, min(2000, len(damaged)), 20):
            damaged[place] ^= 0x55
        path = writers.write_file(tmp_path / f"raw/{i}.h5", bytes(damaged))
        source = RawFile(path.name, (path,), partial(readers.single, read_any), 0, own_process=True)
        try:
            build(tmp_path / "store", Kind("test", f"k{i}", Sensor(128, 128)), [source], processes=1)
        except (RecordingError, StoreError) as error:
            assert str(path) in str(error)


# --- ROS


@pytest.fixture
def event_array():
    """The message of `dvs_msgs`, through rosbags' own serialization."""
    pytest.importorskip("rosbags")
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    texts = {
        "dvs_msgs/msg/Event": "uint16 x\nuint16 y\ntime ts\nbool polarity\n",
        "dvs_msgs/msg/EventArray": "std_msgs/Header header\nuint32 height\nuint32 width\ndvs_msgs/Event[] events\n",
    }

    def make(store, events, frame):
        store = get_typestore(store)
        for name, text in texts.items():
            kind = text if store_is_1 else text.replace("time ts", "builtin_interfaces/Time ts")
            store.register(get_types_from_msg(kind, name))
        types = store.types
        time = types["builtin_interfaces/msg/Time"]
        found = [
            types["dvs_msgs/msg/Event"](
                x=int(x), y=int(y), ts=time(sec=int(t) // 10**6, nanosec=int(t) % 10**6 * 1000), polarity=bool(p)
            )
            for t, x, y, p in zip(*events, strict=True)
        ]
        header_fields = {"stamp": time(sec=0, nanosec=0), "frame_id": frame}
        if store_is_1:
            header_fields = {"seq": 0, **header_fields}
        header = types["std_msgs/msg/Header"](**header_fields)
        return store, types["dvs_msgs/msg/EventArray"](header=header, height=128, width=128, events=found)

    store_is_1 = True

    def of(version, events, frame=""):
        nonlocal store_is_1
        store_is_1 = version == 1
        return make(Stores.ROS1_NOETIC if version == 1 else Stores.ROS2_HUMBLE, events, frame)

    return of


def portions_of(events):
    return [Recording(*(column[i : i + 1000] for column in events)) for i in range(0, len(events.t), 1000)]


def write_bag(path, event_array, events, topics=("/dvs/events",)):
    from rosbags.rosbag1 import Writer

    name = "dvs_msgs/msg/EventArray"
    with Writer(path) as bag:
        for topic in topics:
            store, _ = event_array(1, portions_of(events)[0])
            connection = bag.add_connection(topic, name, typestore=store)
            for i, some in enumerate(portions_of(events)):
                _, message = event_array(1, some, "camera" * i)
                bag.write(connection, i, store.serialize_ros1(message, name))


def test_a_bag_of_ros_1(event_array, tmp_path):
    write_bag(tmp_path / "a.bag", event_array, MANY)
    same(read_any(tmp_path / "a.bag"), MANY)
    write_bag(tmp_path / "two.bag", event_array, MANY, ("/left", "/right"))
    with pytest.raises(RecordingError, match=r"must have one topic of .* and has /left, /right"):
        read_any(tmp_path / "two.bag")
    content = (tmp_path / "a.bag").read_bytes()
    for cut in (0, 100, len(content) // 2):
        path = writers.write_file(tmp_path / "cut.bag", content[:cut])
        with pytest.raises(RecordingError, match=r"cut\.bag cannot be read as a ROS bag"):
            read_any(path)


@pytest.mark.parametrize("kind", ["sqlite3", "mcap"])
def test_a_bag_of_ros_2(kind, event_array, tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer

    name = "dvs_msgs/msg/EventArray"
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin[kind.upper()]) as bag:
        store, _ = event_array(2, portions_of(MANY)[0])
        connection = bag.add_connection("/events", name, typestore=store)
        for i, some in enumerate(portions_of(MANY)):
            _, message = event_array(2, some, "camera"[: i + 1])
            bag.write(connection, i, store.serialize_cdr(message, name))
    suffix = ".db3" if kind == "sqlite3" else ".mcap"
    (path,) = (tmp_path / "bag").glob(f"*{suffix}")
    same(read_any(path), MANY)
    other = writers.write_file(path.parent / f"other{suffix}", path.read_bytes())
    with pytest.raises(RecordingError, match=r"other\.\w+: a bag of ROS 2 is read by the metadata\.yaml beside it"):
        read_any(other)
    bomb = "a0: &a0 [x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    bomb += "rosbag2_bagfile_information: {relative_file_paths: *a8}\n"
    (path.parent / "metadata.yaml").write_text(bomb)
    with pytest.raises(RecordingError, match="must name it alone, and names none"):
        read_any(path)


def test_the_way_to_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rosbags.highlevel", None)
    path = writers.write_file(tmp_path / "a.bag", b"")
    with pytest.raises(UserError, match=r"a\.bag needs rosbags, which is not installed: pip install '\.\[events\]'"):
        read_any(path)


# --- what a file says about its sensor, and which files are recordings


@pytest.mark.parametrize("name", STREAMS)
def test_the_sensor_of_a_file(name, tmp_path):
    suffix, write = STREAMS[name]
    path = writers.write_file(tmp_path / f"a{suffix}", write(MANY))
    expected = None if name in ("csv", "seconds") else (128, 128)
    assert readers.sensor_of(path) == expected


def test_the_sensor_of_text(tmp_path):
    for i, first in enumerate((b"%geometry:240,180\n", b"240 180\n")):
        path = writers.write_file(tmp_path / f"{i}.txt", first + writers.text_bytes(MANY, separator=" ", header=False))
        assert readers.sensor_of(path) == (180, 240)


def test_notes_beside_recordings_are_no_recordings(tmp_path):
    for name, content, expected in (
        ("notes.txt", b"taken on a sunny day\n", False),
        ("labels.csv", b"class,start,end\n1,2,3\n", False),
        ("a.csv", writers.text_bytes(MANY), True),
        ("b.txt", writers.text_bytes(MANY, header=False, separator=" "), True),
        ("c.txt", b"240 180\n" + writers.text_bytes(MANY, header=False, separator=" "), True),
        ("picture.png", b"", False),
        ("d.raw", b"", True),
    ):
        assert readers.is_recording(writers.write_file(tmp_path / name, content)) is expected, name


def test_suffixes_are_read_in_any_case(tmp_path):
    same(read_any(writers.write_file(tmp_path / "A.RAW", writers.evt3_bytes(MANY))), MANY)


def test_aedat3_of_another_format_or_of_two_cameras_is_named(tmp_path):
    content = writers.aedat3_bytes(MANY)
    other = content.replace(b"#Format: RAW", b"#Format: SerializedTS")
    with pytest.raises(RecordingError, match=r"AEDAT 3\.1 in the format SerializedTS is not read"):
        read_any(writers.write_file(tmp_path / "a.aedat", other))
    packet = content.rindex(struct.pack("<hhii", 1, 1, 8, 4))
    two = content[:packet] + struct.pack("<hh", 1, 2) + content[packet + 4 :]
    with pytest.raises(RecordingError, match="holds events of the sources 1 and 2"):
        read_any(writers.write_file(tmp_path / "b.aedat", two))
    unknown = content[:packet] + struct.pack("<hh", 77, 1) + content[packet + 4 :]
    with pytest.raises(RecordingError, match="is of unknown type 77"):
        read_any(writers.write_file(tmp_path / "c.aedat", unknown))


def test_a_bomb_of_aedat4_is_not_unpacked(tmp_path):
    import zstandard

    content = writers.aedat4_bytes(Recording(*(column[:1] for column in MANY)), compression=3)
    start = 18 + struct.unpack_from("<I", content, 14)[0]
    bomb = zstandard.ZstdCompressor().compress(bytes(2**27))
    packets = (struct.pack("<ii", 0, len(bomb)) + bomb) * 2
    with pytest.raises(RecordingError, match="AEDAT 4"):
        read_any(writers.write_file(tmp_path / "a.aedat4", content[:start] + packets))


def test_a_damaged_packet_of_aedat4_is_named(tmp_path):
    content = bytearray(writers.aedat4_bytes(MANY, compression=1))
    content[-40] ^= 0xFF
    content[-400] ^= 0xFF
    path = writers.write_file(tmp_path / "a.aedat4", bytes(content))
    try:
        read = read_any(path)
    except RecordingError as error:
        assert str(path) in str(error)  # a flipped literal is read: LZ4 has no checksum of it
    else:
        assert len(read.t) == len(MANY.t)


def packet_ends(content):
    """Where the packets of an AEDAT 4 file end, but for the last one."""
    at = 18 + struct.unpack_from("<I", content, 14)[0]
    ends = []
    while at < len(content):
        at += 8 + struct.unpack_from("<i", content, at + 4)[0]
        ends.append(at)
    return ends[:-1]


def test_the_table_at_the_end_of_aedat4(tmp_path):
    content = writers.aedat4_bytes(MANY, compression=1)
    import lz4.frame

    table = lz4.frame.compress(b"FTAB" * 20)
    same(read_any(writers.write_file(tmp_path / "a.aedat4", content + table)), MANY)
    # a finished file names where it begins
    place = content.index(struct.pack("<q", -1))

    def with_end(at):
        return content[:place] + struct.pack("<q", at) + content[place + 8 :]

    same(read_any(writers.write_file(tmp_path / "b.aedat4", with_end(len(content)) + table)), MANY)
    for bad in (
        with_end(len(content)) + b"anything",
        with_end(300) + table,
        with_end(0) + table,
    ):
        with pytest.raises(RecordingError, match=r"damaged|truncated|lies behind"):
            read_any(writers.write_file(tmp_path / "c.aedat4", bad))
    cut = writers.write_file(tmp_path / "d.aedat4", with_end(len(content))[: packet_ends(content)[0]])
    with pytest.raises(RecordingError, match="its header says that packets go on to"):
        read_any(cut)


def test_real_files_say_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read_any(writers.write_file(tmp_path / "a.raw", writers.evt3_bytes(MANY)))
    assert not caplog.records


def test_read_any_names_what_it_reads(tmp_path):
    with pytest.raises(RecordingError, match=r"must end in one of \.aedat, .*\.raw, \.txt"):
        read_any(Path("a.mp4"))
