"""Each kernel is compiled once, with one message to the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plif_lightning.runtime.locks import file_lock
from tests.cli.calls import QUICKSTART, TINY, command, until

CODE = """
from plif_lightning.runtime.compiled import compiled

def double(x):
    return 2 * x

def six_times(x):
    return 3 * doubled(x)

doubled, multiplied = compiled(double), compiled(six_times)
assert multiplied(2.0) == 12.0
print(len(doubled.stats.cache_misses) + len(multiplied.stats.cache_misses))
"""


@pytest.fixture
def start(tmp_path):
    """Start a process with its own cache."""
    (tmp_path / "loops.py").write_text(CODE)

    def started(*arguments, **kwargs):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, env=environment, text=True, **kwargs)

    return started


def test_it_is_said_once_in_the_first_process_and_never_again(start):
    said = []
    for _ in range(2):
        process = start("loops.py", stderr=subprocess.PIPE)
        said.append(process.communicate()[1].count("Compiling kernels for their first use here"))
        assert process.returncode == 0
    assert said == [1, 0]


def test_of_processes_that_begin_together_one_compiles(start, tmp_path):
    where = "from plif_lightning.runtime.compiled import compiled_code; print(compiled_code())"
    folder = Path(start("-c", where, stdout=subprocess.PIPE).communicate()[0].strip())
    said = [tmp_path / "first.txt", tmp_path / "second.txt"]
    with file_lock(folder / "__main__.six_times.lock"):
        processes = []
        for path in said:
            with path.open("w") as file:
                processes.append(start("loops.py", stdout=subprocess.PIPE, stderr=file))
        until(lambda: all("Compiling" in path.read_text() for path in said))
    made = [int(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(made) == 2  # two functions, each compiled once


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: flipped(path, 200),
    ],
)
def test_damaged_machine_code_is_thrown_away_and_compiled_anew(start, tmp_path, kind, damage):
    assert start("loops.py", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).communicate()[0].split() == ["2"]
    for path in (tmp_path / "cache").rglob(f"*.{kind}"):
        damage(path)
    for compiled_again in ("2", "0"):
        process = start("loops.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, said = process.communicate()
        assert process.returncode == 0, said
        assert out.split() == [compiled_again]


def test_where_numba_may_not_compile_it_says_so(tmp_path):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = command("fit", "--config", QUICKSTART, *TINY, "--run_folder", str(tmp_path / "run"), env=environment)
    assert done.returncode == 2
    assert "error: NUMBA_DISABLE_JIT is set" in done.stderr
    assert "Traceback" not in done.stderr
