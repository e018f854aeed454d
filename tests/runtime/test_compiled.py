"""Each kernel is compiled once, with one message to the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plif_lightning.runtime.files import file_lock
from tests.cli.calls import until

CODE = """
from plif_lightning.runtime.compiled import compile_cached

def double(x):
    return 2 * x

def six_times(x):
    return 3 * doubled(x)

doubled, multiplied = compile_cached(double), compile_cached(six_times)
assert multiplied(2.0) == 12.0
print(len(doubled.stats.cache_misses) + len(multiplied.stats.cache_misses))
"""


@pytest.fixture
def start(tmp_path):
    """Start a process with its own cache."""
    (tmp_path / "loops.py").write_text(CODE)

    def started(*arguments, env=None, **kwargs):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), **(env or {})}
        return subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, env=environment, text=True, **kwargs)

    return started


def test_compilation_message_is_printed_once(start):
    said = []
    for _ in range(2):
        process = start("loops.py", stderr=subprocess.PIPE)
        said.append(process.communicate()[1].count("Compiling kernels for their first use here"))
        assert process.returncode == 0
    assert said == [1, 0]


def test_concurrent_processes_compile_once(start, tmp_path):
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


def test_kernels_run_where_no_folder_of_a_cache_can_be_written(start, tmp_path):
    (tmp_path / "__pycache__").write_text("")  # a file in place of a folder, which stops even root
    nowhere = {name: str(tmp_path / "__pycache__") for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    process = start("loops.py", stderr=subprocess.PIPE, env=nowhere)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


def test_a_loop_is_compiled_anew_when_a_function_of_another_file_changed(start, tmp_path):
    """As after `git pull`, which gives only the changed files another time."""
    (tmp_path / "calls.py").write_text(
        "from called import scaled\nfrom plif_lightning.runtime.compiled import compile_cached\n\n\n"
        "@compile_cached\ndef loop(x):\n    return scaled(x) + 1.0\n\n\nprint(loop(3.0))\n"
    )
    printed = []
    for factor in ("2", "5.5"):
        (tmp_path / "called.py").write_text(
            f"from plif_lightning.runtime.compiled import inner\n\n\n@inner\ndef scaled(x):\n    return {factor} * x\n"
        )
        printed.append(start("calls.py", stdout=subprocess.PIPE).communicate()[0].strip())
    assert printed == ["7.0", "17.5"]
