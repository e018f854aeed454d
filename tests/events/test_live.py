"""Events of text as they arrive: through a pipe, and in a file that another program appends to."""

import os

from plif_lightning.events.live import LiveText

HEADER, FIRST, SECOND = b"t,x,y,p\n", b"10,1,2,1\n20,3,", b"4,0\n30,5,6,1\n"


def taken(source, number):
    """The times of the first events that arrive."""
    times = []
    while len(times) < number:
        arrival = source.take(wait=30)
        assert arrival is not None, "the end came before the events"
        times += arrival.events.t.tolist()
    return times


def test_a_pipe_is_read_to_its_end_whatever_parts_it_arrives_in(tmp_path):
    os.mkfifo(tmp_path / "events")
    end = os.open(tmp_path / "events", os.O_RDWR)  # so that neither side waits for the other to open
    source = LiveText(tmp_path / "events")
    assert not source.grows
    os.write(end, HEADER + FIRST)
    assert taken(source, 1) == [10]
    os.write(end, SECOND)
    assert taken(source, 2) == [20, 30]
    os.close(end)
    assert source.take(wait=30) is None


def test_a_file_that_grows_has_no_end(tmp_path):
    path = tmp_path / "events.csv"
    path.write_bytes(HEADER + FIRST)
    source = LiveText(path)
    assert source.grows
    assert taken(source, 1) == [10]
    with path.open("ab") as file:
        file.write(SECOND)
    assert taken(source, 2) == [20, 30]
    silence = source.take(wait=0.01)
    assert silence is not None
    assert len(silence.events.t) == 0
