import os

import pytest

from plif_lightning.runtime.files import atomic_write


def test_atomic_write_keeps_the_old_file_on_error(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_write(path) as file:
        file.write("a,b\n")
        assert not path.exists()

    def write_half():
        with atomic_write(path) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "a,b\n"
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_concurrent_atomic_writes_do_not_mix(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    with atomic_write(path) as first:
        first.write("of the first,")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with atomic_write(path) as second:
                second.write("of the second")
        assert path.read_text() == "of the second"
        first.write("whole")
    assert path.read_text() == "of the first,whole"
