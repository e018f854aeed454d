"""Readers against hand-written events, other libraries' readers, real recordings and garbage."""

import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tonic.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plif_lightning.events import Recording, Sensor, read_any, readers
from plif_lightning.events.formats import decoding
from plif_lightning.events.recording import RecordingError, pack
from tests import writers

FORMATS = {
    "nmnist": (writers.nmnist_bytes, readers.read_nmnist),
    "aedat2": (writers.aedat2_bytes, readers.read_aedat2),
    "aedat3": (writers.aedat3_bytes, readers.read_aedat3),
    "aedat4": (writers.aedat4_bytes, readers.read_aedat4),
}


def same(a: Recording, b: Recording) -> None:
    for name, left, right in zip(Recording._fields, a, b, strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


def recording(*events: tuple[int, int, int, int]) -> Recording:
    return Recording(*(np.array([event[i] for event in events], np.int64) for i in range(4)))


AEDAT2 = b"#!AER-DAT2.0\r\n"
AEDAT3 = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
THREE = recording((5, 0, 1, 0), (5, 33, 33, 1), (70, 2, 3, 1))


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_files_of_few_events(name, n, tmp_path):
    write, read = FORMATS[name]
    few = Recording(*(column[:n] for column in THREE))
    read_back = read(writers.write_file(tmp_path / "file", write(few)))
    same(read_back, few)
    assert read_back.t.dtype == np.int64


@pytest.mark.parametrize("name", FORMATS)
def test_many_events_are_read_as_they_were_written(name, tmp_path):
    write, read = FORMATS[name]
    many = writers.events_of(2000, 3, 34, 34, 2**22)
    same(read(writers.write_file(tmp_path / "file", write(many))), many)


def test_nmnist_bits_by_hand(tmp_path):
    # x = 3, y = 4, ON at 0x10203 us; then a marker, and OFF at 1 us + 2^13 us
    data = bytes([3, 4, 0x81, 0x02, 0x03, 0, 240, 0, 0, 0, 5, 6, 0x00, 0x00, 0x01])
    same(
        readers.read_nmnist(writers.write_file(tmp_path / "a.bin", data)),
        recording((0x10203, 3, 4, 1), (2**13 + 1, 5, 6, 0)),
    )


def test_nmnist_times_past_its_counter(tmp_path):
    late = recording((2**23 - 1, 1, 1, 1), (2**23, 2, 2, 0), (2**23 + 2**14, 3, 3, 1))
    same(readers.read_nmnist(writers.write_file(tmp_path / "a.bin", writers.nmnist_bytes(late))), late)


def test_aedat2_bits_by_hand(tmp_path):
    # bit 0 polarity (0 is ON), bits 1-7 x from the right, bits 8-14 y
    address = 0 | (5 << 1) | (9 << 8)
    data = b"#!AER-DAT2.0\r\n# lines\r\n" + struct.pack(">II", address, 7)
    same(
        readers.read_aedat2(writers.write_file(tmp_path / "a.aedat", data)),
        recording((7, 127 - 5, 9, 1)),
    )


def test_aedat2_times_past_2_31_and_over_2_32(tmp_path):
    data = b"#!AER-DAT2.0\r\n" + struct.pack(">6I", 0, 2**31 + 1, 0, 2**32 - 1, 0, 5)
    t = readers.read_aedat2(writers.write_file(tmp_path / "a.aedat", data)).t
    assert t.tolist() == [2**31 + 1, 2**32 - 1, 2**32 + 5]


@pytest.mark.parametrize("end", [b"#End Of ASCII Header\r\n", b"#!END-HEADER\r\n"])
def test_data_that_looks_like_a_header_line_after_its_end(end, tmp_path):
    # The first byte of the address is `#`: no DVS128 produces it, and it must not be parsed as a header line.
    data = AEDAT2 + end + struct.pack(">II", 0x23000000, 0)
    with pytest.raises(RecordingError, match="the address of event 0 is 0x23000000"):
        readers.read_aedat2(writers.write_file(tmp_path / "a.aedat", data))


@pytest.mark.parametrize("portion", [1, 2, 3, 7, 1000])
def test_aedat2_is_the_same_in_portions_of_any_size(portion, tmp_path, monkeypatch):
    times = [2**32 - 3, 2**32 - 1, 2, 5, 2**31 + 7, 2**32 - 2, 1, 1]  # the counter overflows twice
    words = [word for i, t in enumerate(times) for word in (2 * i if i != 4 else 0x8000, t)]
    path = writers.write_file(tmp_path / "a.aedat", b"#!AER-DAT2.0\r\n" + struct.pack(f">{len(words)}I", *words))
    monkeypatch.setattr(decoding, "_PORTION", 8 * portion)
    recording = readers.read_aedat2(path)
    assert recording.t.tolist() == [2**32 - 3, 2**32 - 1, 2**32 + 2, 2**32 + 5, 2**33 - 2, 2**33 + 1, 2**33 + 1]
    assert recording.x.tolist() == [127 - i for i in (0, 1, 2, 3, 5, 6, 7)]


def test_aedat2_input_signals_are_no_pixels(tmp_path):
    data = b"#!AER-DAT2.0\r\n" + struct.pack(">4I", 0x8000, 1, 0x0100, 2)
    assert readers.read_aedat2(writers.write_file(tmp_path / "a.aedat", data)).t.tolist() == [2]


def test_aedat3_times_past_2_31_and_invalid_events(tmp_path):
    late = recording((2**31 - 1, 1, 2, 1), (2**31, 3, 4, 0), (2**31 + 9, 5, 6, 1))
    data = writers.aedat3_bytes(late, packet=2, invalid=1)
    same(readers.read_aedat3(writers.write_file(tmp_path / "a.aedat", data)), late)


# --- against other libraries


def test_nmnist_as_tonic_and_spikingjelly_read_it(real_data, spikingjelly_utils):
    paths = sorted((real_data / "NMNIST").glob("*/*/*.bin"))
    assert len(paths) == 1100
    dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    for path in paths[::10]:
        ours = readers.read_nmnist(path)
        theirs = tonic.io.read_mnist_file(str(path), dtype)
        same(ours, Recording(*(theirs[name] for name in "txyp")))
        others = spikingjelly_utils.load_ATIS_bin(path)  # it ignores overflows; these files have none
        same(ours, Recording(*(others[name] for name in "txyp")))
        assert 1069 <= len(ours.t) <= 7152


def test_nmnist_overflows_as_tonic_reads_them(tmp_path):
    late = writers.events_of(300, 0, 34, 34, 2**23 + 2**15)
    path = writers.write_file(tmp_path / "a.bin", writers.nmnist_bytes(late))
    theirs = tonic.io.read_mnist_file(str(path), np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))
    same(readers.read_nmnist(path), Recording(*(theirs[name] for name in "txyp")))


def test_aedat3_as_spikingjelly_reads_it(tmp_path, spikingjelly_utils):
    some = writers.events_of(1000, 1, last=2**33)
    path = writers.write_file(tmp_path / "a.aedat", writers.aedat3_bytes(some))
    theirs = spikingjelly_utils.load_aedat_v3(path)
    same(readers.read_aedat3(path), Recording(*(theirs[name] for name in "txyp")))


def aedat2_by_tonic(path: Path) -> Recording:
    version, start, _ = tonic.io.read_aedat_header_from_file(str(path))
    assert version == 2.0
    theirs = tonic.io.get_aer_events_from_file(str(path), version, start)
    address = theirs["address"].astype(np.int64)
    return Recording(theirs["timeStamp"], 127 - ((address >> 1) & 127), (address >> 8) & 127, 1 - (address & 1))


def test_aedat2_as_tonics_parser_reads_it(tmp_path):
    some = writers.events_of(1000, 1, last=2**32)
    path = writers.write_file(tmp_path / "a.aedat", writers.aedat2_bytes(some, "# one\r\n# two\r\n" * 40))
    same(readers.read_aedat2(path), aedat2_by_tonic(path))


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
    recording = readers.read_aedat2(path)
    same(recording, aedat2_by_tonic(path))
    assert (len(recording.t), tuple(int(column[0]) for column in recording)) == DVS128[name]
    assert (np.diff(recording.t) >= 0).all()


def test_tonics_gesture_clips(tmp_path):
    writers.write_tonic_gesture(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user01_natural/3.npy"
    array = np.load(path)
    same(readers.read_gesture_npy(path), Recording(1000 * array[:, 3], array[:, 0], array[:, 1], array[:, 2]))


# --- label tables

TABLE = "class,startTime_usec,endTime_usec\n1,10,20\n8,20,30\n8,29,40\n"


def test_trials_of_a_label_table(tmp_path):
    path = writers.write_file(tmp_path / "a_labels.csv", TABLE.encode())
    trials = readers.read_trials(path, 11)
    assert [tuple(trial) for trial in trials] == [(0, 10, 20), (7, 20, 30), (7, 29, 40)]
    parts = readers.cut(recording(*((t, 0, 0, 0) for t in (9, 10, 19, 20, 29, 39, 40))), trials, path)
    assert [part.t.tolist() for part in parts] == [[10, 19], [20, 29], [29, 39]]


def test_trials_of_a_recording_whose_clock_was_reset(tmp_path):
    parts = readers.cut(recording(*((t, 0, 0, 0) for t in (15, 12, 40, 19))), [readers.Trial(0, 10, 20)], tmp_path)
    assert [part.t.tolist() for part in parts] == [[15, 12, 19]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "must begin with the line class,startTime_usec,endTime_usec"),
        ("1,2,3\n", "must begin with the line"),
        ("class,startTime_usec,endTime_usec\n", "lists no trial"),
        (TABLE + "12,50,60\n", "line 5: class 12 is unknown; expected 1..11"),
        (TABLE + "0,50,60\n", "line 5: class 0 is unknown"),
        (TABLE + "2,5,60\n", "line 5: the trials are not in order"),
        (TABLE + "2,60,50\n", "line 5: the trial ends at 50 us, before its start"),
        (TABLE + "2,a,50\n", "line 5: expected class, start and end"),
        (TABLE + "2,50\n", "line 5: expected class, start and end"),
        ("\udcff", "is no table of labels"),
    ],
)
def test_a_bad_label_table_is_named(content, expected, tmp_path):
    path = writers.write_file(tmp_path / "a_labels.csv", content.encode(errors="surrogateescape"))
    with pytest.raises(RecordingError, match=re.escape(expected)) as error:
        readers.read_trials(path, 11)
    assert str(path) in str(error.value)


def test_a_trial_without_events_is_named(tmp_path):
    with pytest.raises(RecordingError, match="no event lies between 10 and 20 us, where its label table has class 3"):
        readers.cut(recording((5, 0, 0, 0)), [readers.Trial(2, 10, 20)], tmp_path)


# --- bad files


def packet(kind=1, size=8, offset=4, overflow=0, capacity=1, number=1, valid=1, data=bytes(8)):
    return struct.pack("<hhiiiiii", kind, 1, size, offset, overflow, capacity, number, valid) + data


@pytest.mark.parametrize(
    ("read", "content", "expected"),
    [
        (readers.read_nmnist, bytes(7), "7 bytes are not a whole number of 5-byte events"),
        (readers.read_aedat2, b"", "is no AEDAT 2.0 file: it begins with ''"),
        (readers.read_aedat2, AEDAT3, "is no AEDAT 2.0 file: it begins with '#!AER-DAT3.1'"),
        (readers.read_aedat2, AEDAT2 + b"# no end", "ends within its header"),
        (readers.read_aedat2, AEDAT2 + bytes(12), "ends within an event: 4 of its 8 bytes came. The file is truncated"),
        (readers.read_aedat2, AEDAT2 + struct.pack(">II", 1 << 16, 0), "the address of event 0 is 0x10000"),
        (readers.read_aedat3, AEDAT2, "is no AEDAT 3.1 file"),
        (readers.read_aedat3, AEDAT3 + bytes(5), "ends within the packet at byte 28: 5 of its bytes came"),
        (
            readers.read_aedat3,
            AEDAT3 + packet(capacity=2**31 - 1, number=1),
            "ends within the packet at byte 28: 36 of its bytes came",
        ),
        (readers.read_aedat3, AEDAT3 + packet(capacity=-1, number=0), "The file is damaged"),
        (readers.read_aedat3, AEDAT3 + packet(number=2), "says 2 of 1 events"),
        (readers.read_aedat3, AEDAT3 + packet(size=0), "says 1 of 1 events of 0 bytes"),
        (readers.read_aedat3, AEDAT3 + packet(size=4), "have 8 and 4"),
        (readers.read_aedat4, b"garbage", "is no AEDAT 4 file: it begins with b'garbage'"),
        (readers.read_aedat4, b"", "is no AEDAT 4 file"),
        (readers.read_gesture_npy, b"garbage", "cannot be read as a NumPy array"),
        (readers.read_gesture_npy, b"", "cannot be read as a NumPy array"),
    ],
)
def test_a_bad_file_is_named(read, content, expected, tmp_path):
    path = writers.write_file(tmp_path / "bad", content)
    with pytest.raises(RecordingError, match=re.escape(expected)) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("read", [read for _, read in FORMATS.values()])
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(RecordingError, match="missing"):
        read(tmp_path / "missing")


@pytest.mark.parametrize("array", [np.zeros((3, 5)), np.zeros(4), np.array([["a"] * 4]), np.full((2, 4), np.nan)])
def test_another_array_than_a_gesture_clip_is_named(array, tmp_path):
    np.save(tmp_path / "0.npy", array)
    with pytest.raises(RecordingError, match=r"must hold numbers|no coordinates or times"):
        readers.read_gesture_npy(tmp_path / "0.npy")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([(0, 34, 0, 0)], "event 0 has x = 34, but a sensor of 34 x 34 pixels has x in 0..33"),
        ([(0, 0, 0, 0), (0, 0, -1, 0)], "event 1 has y = -1"),
        ([(0, 0, 0, 2)], "event 0 has polarity = 2"),
        ([(5, 0, 0, 0), (4, 0, 0, 0)], "time runs backwards at event 1, from 5 to 4 us"),
        ([(0, 0, 0, 0), (2**32, 0, 0, 0)], "its events span 72 minutes"),
    ],
)
def test_events_that_no_recording_has_are_named(events, expected):
    with pytest.raises(RecordingError, match=re.escape(f"file.bin: {expected}")):
        pack(recording(*events), Sensor(34, 34), "file.bin")


def test_times_that_run_backwards_can_be_kept():
    packed = pack(recording((5, 0, 0, 0), (4, 1, 0, 1)), Sensor(2, 2), "file", "as_recorded")
    assert packed.time.tolist() == [1, 0]
    assert packed.address.tolist() == [0, 5]
    assert packed.start == 4


# --- fuzz: correct events or a RecordingError, never anything else

mutations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 2**16), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("cut"), st.integers(0, 2**16), st.just(b"")),
        st.tuples(st.just("add"), st.integers(0, 2**16), st.binary(min_size=1, max_size=8)),
    ),
    max_size=4,
)


def mutated(content: bytes, changes) -> bytes:
    for how, place, data in changes:
        at = place % (len(content) + 1)
        if how == "set":
            content = content[:at] + data + content[at + len(data) :]
        elif how == "cut":
            content = content[:at]
        else:
            content = content[:at] + data + content[at:]
    return content


def read_or_refuse(read, path: Path) -> None:
    try:
        events = read(path)
    except RecordingError as error:
        assert str(path) in str(error)
        return
    lengths = {len(column) for column in events}
    assert len(lengths) == 1
    assert lengths.pop() <= path.stat().st_size
    try:
        packed = pack(events, Sensor(128, 128), str(path))
    except RecordingError as error:
        assert str(path) in str(error)
    else:
        assert (packed.address < 2 * 128 * 128).all()


FUZZ = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("name", FORMATS)
@FUZZ
@given(changes=mutations, n=st.sampled_from([0, 1, 40]))
def test_fuzzed_recordings(name, tmp_path, changes, n):
    write, read = FORMATS[name]
    content = mutated(write(writers.events_of(n, 1, 34, 34)), changes)
    read_or_refuse(read, writers.write_file(tmp_path / "file", content))


@FUZZ
@given(content=st.binary(max_size=200), magic=st.sampled_from([b"", AEDAT2, AEDAT3]))
def test_garbage(tmp_path, content, magic):
    path = writers.write_file(tmp_path / "file", magic + content)
    for read in (readers.read_nmnist, readers.read_aedat2, readers.read_aedat3, readers.read_gesture_npy):
        read_or_refuse(read, path)


@FUZZ
@given(changes=mutations)
def test_fuzzed_gesture_clips(tmp_path, changes):
    path = tmp_path / "0.npy"
    np.save(path, np.stack([*writers.events_of(20, 1)], 1))
    path.write_bytes(mutated(path.read_bytes(), changes))
    read_or_refuse(readers.read_gesture_npy, path)


@FUZZ
@given(changes=mutations)
def test_fuzzed_label_tables(tmp_path, changes):
    path = writers.write_file(tmp_path / "a_labels.csv", mutated(TABLE.encode(), changes))
    try:
        trials = readers.read_trials(path, 11)
    except RecordingError as error:
        assert str(path) in str(error)
    else:
        assert trials
        assert all(0 <= trial.label < 11 and trial.start < trial.end for trial in trials)


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        (readers.read_nmnist, writers.nmnist_bytes),
        (readers.read_aedat2, writers.aedat2_bytes),
        (readers.read_aedat3, writers.aedat3_bytes),
        (readers.read_aedat4, writers.aedat4_bytes),
    ],
)
def test_a_path_may_be_a_string(reader, content, tmp_path):
    path = writers.write_file(tmp_path / "recording", content(writers.events_of(50, 0, 34, 34, 300_000)))
    for one, other in zip(reader(str(path)), reader(path), strict=True):
        np.testing.assert_array_equal(one, other)


# --- a file that grows


@pytest.mark.parametrize("size", [1, 7, 8, 100, 10_000])
def test_a_stream_gives_what_the_whole_file_holds_however_it_comes(size, tmp_path):
    content = writers.aedat2_bytes(writers.events_of(300, 0))
    path = writers.write_file(tmp_path / "a.aedat", content)
    whole = readers.read_aedat2(path)

    class Pieces(io.BytesIO):
        def read1(self, n=-1):
            return super().read1(size)

    stream, found = readers.EventStream(Pieces(content), "a"), []
    for _ in range(len(content) // size + 1):
        found.append(stream.read())
    assert stream.left == ""
    for i, column in enumerate(whole):
        assert np.array_equal(np.concatenate([part[i] for part in found]), column)


def test_a_stream_waits_for_its_header_and_for_whole_events():
    content = writers.aedat2_bytes(writers.events_of(2, 0))
    header = len(content) - 16
    for n in (5, 30, header, header + 7, header + 8, header + 15):
        stream = readers.EventStream(io.BytesIO(content[:n]), "a")
        assert len(stream.read().t) == max(0, (n - header) // 8)
        expected = "ends within its header" if n <= header else "" if (n - header) % 8 == 0 else "ends within an event"
        assert expected in stream.left
        assert bool(expected) == bool(stream.left)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!AER-DAT1.0\r\n\0\0\0\0", "a begins with b'#!AER-DAT1': it is no AEDAT 2.0, 3.1 or 4.0"),
        (b"\0\0\0\0\0\0\0\0", "a is no text"),
        (b"#" * (2**20 + 1), "its header does not end"),
        (b"#!AER-DAT2.0\r\n\0\x01\0\0\0\0\0\0", "which no DVS128 has"),
    ],
)
def test_a_stream_of_something_else_is_refused(content, message):
    with pytest.raises(RecordingError, match=re.escape(message)):
        readers.EventStream(io.BytesIO(content), "a").read()


def test_an_archive_that_unpacks_to_far_more_than_events_is_not_read(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "xytp":
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (2**26,)})
                for _ in range(64):
                    file.write(bytes(2**23))
    with pytest.raises(RecordingError, match=r"bomb\.npz has \d MiB and would unpack to 2 GiB, far more than events"):
        read_any(path)


def test_numpys_advice_to_load_code_is_not_passed_on(tmp_path):
    path = tmp_path / "code.npz"
    np.savez(path, **{name: np.array([{}], dtype=object) for name in "xytp"})
    with pytest.raises(RecordingError, match="it holds Python objects, which could run any code") as refused:
        read_any(path)
    assert "allow_pickle" not in str(refused.value)
