"""Text, NumPy's files and HDF5: columns under their usual names, in any order and unit."""

import re

import h5py
import numpy as np
import pytest

from plif_lightning.events import RecordingError, read_any
from tests import writers
from tests.events.test_readers import MANY, as_table, recording, same

# --- text


@pytest.mark.parametrize(
    ("columns", "separator", "unit"),
    [("txyp", ",", None), ("xypt", " ", "s"), ("pyxt", "\t", "ns"), ("xytp", "; ", "s")],
)
def test_text_in_any_order_that_a_header_or_columns_name(columns, separator, unit, tmp_path):
    for has_header in (True, False):
        content = writers.text_bytes(MANY, columns, separator, has_header, unit or "us")
        path = writers.write_file(tmp_path / "a.csv", content)
        same(read_any(path, None if has_header else [*columns], time_unit=unit), MANY)


@pytest.mark.parametrize(
    ("content", "options", "events"),
    [
        (b"# recorded today\n\n%  in a box\n5,1,2,1\n", {"columns": "txyp"}, [(5, 1, 2, 1)]),
        (b"t,x,y,p\n5,1,2,1\n# moved\n6,3,4,0\n", {}, [(5, 1, 2, 1), (6, 3, 4, 0)]),
        (b"%geometry:1280,720\n9,8,1,7\n3,4,0,9\n", {"columns": "xypt"}, [(7, 9, 8, 1), (9, 3, 4, 0)]),
        (b"label,row,col,Timestamps,Polarity,note\r\n3,2,1,7,1,car\r\n", {}, [(7, 1, 2, 1)]),
        (b"\xef\xbb\xbft,x,y,p\n7 , 1,\t2 ,1\n", {}, [(7, 1, 2, 1)]),
        (b"t,x,y,p\n1.0e+06,1.0e0,2.0,-1\n2.5E+6,3,4,+1.0\n", {}, [(10**6, 1, 2, 0), (2_500_000, 3, 4, 1)]),
        (b"t,x,y,p\n1,2,3,1\n", {"columns": "xytp"}, [(3, 1, 2, 1)]),  # `columns` is right
        (b"t x y p\n0.5 1 2 1\n", {"time_unit": "s"}, [(500_000, 1, 2, 1)]),
        (b"t x y p\n1.5 1 2 1\n", {"time_unit": "ms"}, [(1500, 1, 2, 1)]),
        (b"t x y p\n3 1 2 1\n", {"time_unit": "ms"}, [(3000, 1, 2, 1)]),
        (b"t x y p\n1499 1 2 1\n1500 1 2 1\n", {"time_unit": "ns"}, [(1, 1, 2, 1), (2, 1, 2, 1)]),
    ],
)
def test_text_by_hand(content, options, events, tmp_path):
    same(read_any(writers.write_file(tmp_path / "a.txt", content), **options), recording(*events))


def test_numpys_text(tmp_path):
    np.savetxt(tmp_path / "a.txt", np.stack([MANY.t, *MANY[1:]], 1))
    same(read_any(tmp_path / "a.txt", columns="txyp"), MANY)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (
            b"",
            {},
            "has no header that names its columns: name t, x, y and p in its first line, or by --data.columns=[t,x",
        ),
        (b"1 2 3 1\n", {}, "has no header that names its columns"),
        (b"once upon a time\n1,2,3,1\n", {}, "has the columns once, upon, a, time: name t, x, y and p"),
        (b"t,x,y\n1,2,3\n", {}, "has the columns t, x, y: name t, x, y and p"),
        (b"1,2,3,1\n", {"columns": "xy"}, "has the columns x, y: name t, x, y and p"),
        (b"t,x,y,p\n0.5,1,2,1\n", {}, "its times have fractions, so they are not us: pass --data.time_unit s"),
        (b"t,x,y,p\ninf,1,2,1\n", {"time_unit": "s"}, "t must be whole numbers [us], got some such as inf"),
        (b"t,x,y,p\n99999999999999999999,2,3,1\n", {}, "t must be whole numbers [us], got some such as 1e+20"),
        (b"t,x,y,p\n1,2,3,1\n2,3\n", {}, "row 2"),
        (b"t,x,y,p\n1,2,3,1\n2,three,4,1\n", {}, "'three'"),
        (b"t x\0y p\xff", {}, "cannot be read"),
    ],
)
def test_bad_text_is_named(content, options, expected, tmp_path):
    path = writers.write_file(tmp_path / "a.csv", content)
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(path, **options)
    assert str(path) in str(refused.value)


# --- NumPy


@pytest.mark.parametrize("names", [("ts", "xs", "ys", "ps"), ("timestamps", "x", "y", "polarities")])
def test_arrays_under_common_names_are_read(names, tmp_path):
    np.savez(tmp_path / "a.npz", **dict(zip(names, MANY, strict=True)), label=3)
    same(read_any(tmp_path / "a.npz"), MANY)
    table = as_table(MANY)
    table.dtype.names = [dict(zip("txyp", names, strict=True))[name] for name in table.dtype.names]
    np.save(tmp_path / "a.npy", table)
    same(read_any(tmp_path / "a.npy"), MANY)
    np.savez(tmp_path / "b.npz", table)
    same(read_any(tmp_path / "b.npz"), MANY)


@pytest.mark.parametrize(("columns", "kind"), [("txyp", np.int64), ("xypt", np.float64)])
def test_a_table_of_four_columns(columns, kind, tmp_path):
    table = np.stack([getattr(MANY, name) for name in columns], 1).astype(kind)
    np.save(tmp_path / "a.npy", table)
    np.savez(tmp_path / "a.npz", events=table)
    for name in ("a.npy", "a.npz"):
        same(read_any(tmp_path / name, columns=[*columns]), MANY)
        with pytest.raises(RecordingError, match=rf"{name} lacks t, x, y, p: .* --data\.columns=\[t,x,y,p\] names"):
            read_any(tmp_path / name)


def test_arrays_of_other_times(tmp_path):
    for unit, t in (("s", MANY.t / 1e6), ("ms", (MANY.t // 1000).astype(np.uint32) + 5_000_000), ("ns", MANY.t * 1000)):
        np.savez(tmp_path / "a.npz", **MANY._replace(t=t)._asdict())
        expected = MANY.t // 1000 * 1000 + 5 * 10**9 if unit == "ms" else MANY.t
        same(read_any(tmp_path / "a.npz", time_unit=unit), MANY._replace(t=expected))
        np.savez(tmp_path / "b.npz", np.stack([t, *MANY[1:]], 1))
        same(read_any(tmp_path / "b.npz", columns="txyp", time_unit=unit), MANY._replace(t=expected))


ONE = {name: np.ones(1) for name in "txyp"}


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({name: ONE[name] for name in "txy"}, {}, "lacks p: it must hold columns named t, x, y and p"),
        ({**ONE, "t": np.array([np.nan])}, {"time_unit": "s"}, "t must be whole numbers [us], got some such as nan"),
        ({**ONE, "t": np.array([0.5])}, {}, "pass --data.time_unit s"),
        ({**ONE, "y": np.ones(2)}, {}, "every event needs x, y, t and p, got 1 of t, 1 of x, 2 of y, 1 of p"),
        ({**ONE, "p": np.array([{}])}, {}, "cannot be read"),  # Python objects could run any code
        ({"events": np.zeros((3, 5))}, {"columns": "txyp"}, "must hold 4 columns, got an array [3, 5]"),
    ],
)
def test_bad_arrays_are_named(arrays, options, expected, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(tmp_path / "a.npz", **options)
    assert "a.npz" in str(refused.value)


# --- HDF5


@pytest.mark.parametrize("compression", [{}, {"compression": "gzip", "chunks": (100,)}])
def test_dsec_adds_its_offset(compression, tmp_path):
    late = MANY._replace(t=MANY.t + 50_000_000_000)
    same(read_any(writers.write_dsec(tmp_path / "a.h5", late, offset=50_000_000_000, **compression)), late)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({}, "must hold one set of events with t, x, y, p; it holds none"),
        ({"left/x": [1], "left/y": [1], "left/t": [1]}, "it holds none"),
        ({f"{side}/{name}": [1] for side in ("left", "right") for name in "xytp"}, "it holds /left, /right"),
        ({"events": np.zeros((2, 4))}, "it holds none"),
    ],
)
def test_bad_hdf5_is_named(layout, expected, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in layout.items():
            file[name] = values
    with pytest.raises(RecordingError, match=re.escape(expected)) as refused:
        read_any(tmp_path / "a.h5")
    assert "a.h5" in str(refused.value)
