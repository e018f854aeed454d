"""`plif_lightning.callbacks.slurm`: the job that is requeued, and why one was not; `tests/slurm` has a real cluster."""

from pathlib import Path

import pytest

from plif_lightning.callbacks import slurm

FAILS = "#!/bin/sh\necho Job is already\necho pending  now >&2\nexit 1\n"


@pytest.mark.parametrize(
    ("about", "job"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7"}, "9"),
    ],
)
@pytest.mark.parametrize("kind", ["succeeds", "fails", "is missing"])
def test_a_job_is_requeued_or_the_error_says_why_not(about, job, kind, tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in about.items():
        monkeypatch.setenv(name, value)
    called = tmp_path / "called"
    if kind != "is missing":
        program = tmp_path / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" > {called}\n' if kind == "succeeds" else FAILS)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    said = slurm.requeue()
    expected = {
        "succeeds": "",
        "fails": f"The job {job} could not be requeued: pending now.",
        "is missing": f"The job {job} could not be requeued: scontrol was not found on this node.",
    }
    assert said == expected[kind]
    assert kind != "succeeds" or called.read_text() == f"requeue {job}\n"
    assert Path(called).exists() == (kind == "succeeds")
