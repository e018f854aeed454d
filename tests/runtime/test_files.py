import os

import pytest

from plif_lightning.runtime.files import written_whole


def test_a_file_appears_when_it_is_complete_and_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with written_whole(path) as file:
        file.write("a,b\n")
        assert not path.exists()

    def write_half():
        with written_whole(path) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "a,b\n"
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_two_processes_that_write_one_file_do_not_mix(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    with written_whole(path) as first:
        first.write("of the first,")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with written_whole(path) as second:
                second.write("of the second")
        assert path.read_text() == "of the second"
        first.write("whole")
    assert path.read_text() == "of the first,whole"
