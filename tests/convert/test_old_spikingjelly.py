"""Old repositories pin SpikingJelly 0.0.0.0.8 to 14, which shares its name with the new one: in a process of its own.

python -m pip install --no-deps --target DIR spikingjelly==0.0.0.0.14
PLIF_OLD_SPIKINGJELLY=DIR python -m pytest tests/network/test_old_spikingjelly.py
"""

import os
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE, REPOSITORY

OLD = os.environ.get("PLIF_OLD_SPIKINGJELLY")


@pytest.mark.skipif(not OLD, reason="PLIF_OLD_SPIKINGJELLY names no old SpikingJelly")
def test_networks_of_old_repositories_are_converted_and_proved():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(OLD), str(REPOSITORY)])}
    call = [sys.executable, str(REPOSITORY / "tests/convert/old_nets.py")]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "1 is a LIFNode of single steps: take MultiStepLIFNode, and run [T, N, *] at once instead of a loop over "
        "time-steps."
    )
