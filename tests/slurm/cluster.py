"""A SLURM cluster of one node on loopback: real daemons, all of whose files lie in one folder."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
# Daemons lie where only root looks.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

_CONF = """
ClusterName=plif
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=20
SchedulerParameters=requeue_delay=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed (`apt-get install slurm-wlm munge`)."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@dataclass(frozen=True)
class Cluster:
    """What talks to the daemons."""

    environment: dict[str, str]

    def call(self, *command: str, **kwargs) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=120, **kwargs
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, folder: Path, script: str, *options: str) -> str:
        """The number of a job whose output goes to `folder/JOB.out`."""
        path = folder / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        return self.call(
            *("sbatch", "--parsable", "--output", "%x-%A_%a.out", "--open-mode", "append", *options, str(path)),
            cwd=folder,
        ).strip()

    def state(self, job: str) -> dict[str, str]:
        """What the controller knows of a job: of an array, of its task that it names first."""
        fields = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()[0].split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: str, seconds: float = 300) -> dict[str, str]:
        """What is known of a job when it has ended for good."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            lines = self.call("scontrol", "--oneliner", "show", "job", job).splitlines()
            if all(
                any(
                    f"JobState={state}" in line
                    for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
                )
                for line in lines
            ):
                return self.state(job)
            time.sleep(0.5)
        raise AssertionError(f"job {job} has not ended: {self.state(job)}")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """The daemons, which end with the block."""
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    # The address stands in the file: not every machine's name leads to one.
    names = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": folder}
    conf.write_text(_CONF.format(**names, controller=_free_port(), node=_free_port()))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    environment |= {"SLURM_CONF": str(conf), "PATH": _PATH}
    munged = ["munged", "--foreground", "--force", "--num-threads", "2", f"--key-file={key}"]
    munged += [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
    ]
    commands = [munged, ["slurmctld", "-D", "-i"], ["slurmd", "-D"]]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("wb") as output:
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
            if command is munged:
                _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        found = Cluster(environment)
        _wait_for(lambda: "idle" in found.call("sinfo", "--noheader", "--format=%T"), folder)
        yield found
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _wait_for(condition, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            if condition():
                return
        time.sleep(0.2)
    said = "".join(f"\n{path.name}:\n{path.read_text()[-1500:]}" for path in folder.glob("*.[lo][ou][gt]"))
    raise AssertionError(f"the cluster has not started:{said}")
