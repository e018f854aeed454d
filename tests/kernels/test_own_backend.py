"""Another backend: a module with the functions of `ops`, and a row of `layout.ACCELERATORS`."""

import os
import subprocess
import sys

from tests.conftest import PATIENCE, REPOSITORY

OWN = """
import sys
import types

kernels = types.ModuleType("plif_lightning.kernels")  # the row is there before the kernels are
kernels.__path__ = [sys.argv[1]]
sys.modules["plif_lightning.kernels"] = kernels
from plif_lightning.kernels import layout
import torch
layout.ACCELERATORS["own"] = layout.Accelerator("xpu", "tests.kernels.own_backend", "torch", torch.float64)
del sys.modules["plif_lightning.kernels"]

import plif_lightning as pl
from plif_lightning.errors import UserError
from tests.kernels.own_backend import called

layout.ON_CPU = "own"
results = []
for backend in ("own", "reference"):
    torch.manual_seed(0)
    net = pl.SpikingNetwork((2, 6, 6), 4, 3, structure="c8k3s1-BN-PLIF-c8k3s1-BN-PLIF-FC8-PLIF-APk2s2", backend=backend)
    votes = net(torch.randint(0, 3, (3, 2, 2, 6, 6)))
    (votes * torch.arange(4)).sum().backward()
    results.append([votes.detach(), *(p.grad for p in net.parameters())])
assert called == {"fire", "fire_backward", "moments", "normalize_backward"}, called
for a, b in zip(*results, strict=True):
    torch.testing.assert_close(a, b)
try:
    layout.ON_CPU = "cpu"
    pl.use_backend(pl.PLIF(), "own")(torch.rand(3, 2, 5))
except UserError as error:
    print(error)
"""


def test_a_backend_is_a_module_and_a_row():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", OWN, str(REPOSITORY / "plif_lightning" / "kernels")],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "backend='own' runs on xpu, but the data is on cpu" in done.stdout
