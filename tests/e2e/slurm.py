"""A Slurm of Debian's packages on hosts of this machine (tests/e2e/hosts.py)."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.hosts import Host, running_hosts, wait_until

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("node1", "node2")

# A job of `urgent` takes the nodes of one of `usual`, which has a minute's notice.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=login
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SelectType=select/cons_tres
SchedulerParameters=sched_interval=5
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes} CPUs=2
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


@dataclass(frozen=True)
class Slurm:
    """Used by a person on the login node, in a folder that all nodes see."""

    login: Host
    folder: Path
    variables: Mapping[str, str]

    def run(self, *command: str) -> str:
        process = self.login.start(*command, folder=self.folder, variables=self.variables)
        out, _ = process.communicate()
        assert process.returncode == 0, f"{' '.join(command)}: {out}"
        return out.strip()

    def submit(self, *arguments: str) -> str:
        """Submit a batch job and return its number."""
        return self.run("sbatch", "--parsable", *arguments)

    def show(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, by its names."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str) -> str:
        """The first of the states that the job has."""
        wait_until(lambda: self.show(job)["JobState"] in states, lambda: str(self.show(job)))
        return self.show(job)["JobState"]


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Two nodes of two CPUs, used from `folder`; skips where Slurm or the right to make hosts is missing."""
    if missing := [program for program in NEEDED if not shutil.which(program)]:
        pytest.skip(f"no Slurm is installed ({', '.join(missing)})")
    with ExitStack() as stack:
        login, *nodes = stack.enter_context(running_hosts("login", *NODES))
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        own.chmod(0o755)  # munged asks for that
        (own / "state").mkdir()
        (own / "key").write_bytes(secrets.token_bytes(128))
        (own / "key").chmod(0o600)
        (own / "slurm.conf").write_text(CONFIGURATION.format(folder=own, nodes=",".join(NODES)))
        variables = {
            "SLURM_CONF": f"{own}/slurm.conf",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        slurm = Slurm(login, folder, variables)

        def start(host: Host, *command: str) -> None:
            log = own / f"{command[0]}-{host.name}.log"
            host.start(*command, folder=own, variables=variables, log=log)

        files = (f"--socket={own}/munge", f"--key-file={own}/key", f"--pid-file={own}/munge.pid")
        start(
            login,
            "munged",
            "--foreground",
            "--force",
            *files,
            f"--seed-file={own}/seed",
            f"--log-file={own}/munged",
        )
        wait_until((own / "munge").exists, lambda: read_logs(own))
        start(login, "slurmctld", "-D")
        for node in nodes:
            start(node, "slurmd", "-D")
        idle = ("sinfo", "--noheader", "--format=%T", "--partition=usual")
        wait_until(lambda: slurm.run(*idle) == "idle", lambda: read_logs(own))
        yield slurm


def read_logs(folder: Path) -> str:
    """All of a folder's logs, for a person who looks at why a test failed."""
    return "\n".join(f"{log.name}:\n{log.read_text()}" for log in sorted(folder.glob("*.log*")))
