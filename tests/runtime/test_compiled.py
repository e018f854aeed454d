"""What a user hears of the compilation."""

import os
import subprocess
import sys

CODE = """
from plif_lightning.runtime.compiled import compiled

def double(x):
    return 2 * x

def triple(x):
    return 3 * x

assert compiled(double)(2.0) + compiled(triple)(2.0) == 10.0
"""


def test_it_is_said_once_in_the_first_process_and_never_again(tmp_path):
    (tmp_path / "loops.py").write_text(CODE)
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "loops.py"],
            cwd=tmp_path,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(done.stderr.count("Compiling kernels, once"))
    assert said == [1, 0]
