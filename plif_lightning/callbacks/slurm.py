"""SLURM: disable Lightning's requeueing, find the signal before the time limit, requeue the job."""

import os
import shutil
import signal
import subprocess

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment


def environment() -> SLURMEnvironment | None:
    """The plugin for a job of SLURM's that no `torchrun` launches; None elsewhere. `StopOnSignal` requeues the job."""
    is_job = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return SLURMEnvironment(auto_requeue=False) if is_job else None


def requeue_signal(trainer: L.Trainer) -> signal.Signals | None:
    """The signal that SLURM sends shortly before the time limit; None outside SLURM."""
    cluster = trainer._accelerator_connector.cluster_environment
    return cluster.requeue_signal if isinstance(cluster, SLURMEnvironment) else None


def requeue() -> str:
    """Requeue this SLURM job and return an error message; empty on success."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return f"The job {job} could not be requeued: scontrol was not found on this node."
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"The job {job} could not be requeued: {' '.join(done.stderr.split())}."
    return ""
