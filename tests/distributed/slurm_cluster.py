"""A real Slurm cluster of one node, without systemd: munged, slurmctld and slurmd as plain processes.

A context manager that starts them and takes them down again. It needs root and Debian's slurm-wlm; where the
machine lacks one, `obstacle` says which.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CPUS = 4  # promised to jobs, whatever the machine has


def obstacle():
    """Why there can be no cluster here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"Slurm is missing: no {', '.join(missing)} (Debian: slurm-wlm)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root here"


def _path():
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


_CONFIGURATION = """
ClusterName=dqat
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The cluster while it runs.

    Attributes:
        environment: for Slurm's commands.
    """

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def run(self, *command):
        """A Slurm command's CompletedProcess."""
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, env=self.environment)

    def state(self, job):
        """A job's state and exit code, such as ("COMPLETED", "0:0")."""
        shown = dict(
            part.split("=", 1) for part in self.run("scontrol", "show", "job", job).stdout.split() if "=" in part
        )
        return shown.get("JobState"), shown.get("ExitCode")

    def wait(self, job, seconds):
        """State and exit code of a job that has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state, code = self.state(job)
            if state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
                return state, code
            time.sleep(0.5)
        raise TimeoutError(f"job {job} is {state} after {seconds} s")


@contextlib.contextmanager
def slurm(folder):
    """A running cluster; its files go into `folder`."""
    folder = pathlib.Path(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    controller, daemon = _free_ports(2)
    node = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(node=node, folder=folder, controller=controller, daemon=daemon, cpus=CPUS)
    )
    cluster = Cluster(folder)
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    daemons = (
        ["munged", "--foreground", "--force", *(f"--{key}={folder}/munge.{end}" for key, end in munge.items())],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D"],
    )
    processes = []
    try:
        for command in daemons:
            with open(folder / f"{command[0]}.output", "w") as output:
                processes.append(
                    subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=cluster.environment)
                )
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: "idle" in cluster.run("sinfo", "--noheader", "--format=%T").stdout, folder)
        yield cluster
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            cluster.run("scancel", "--signal=KILL", "--user=root")
            _wait_quietly(lambda: not cluster.run("squeue", "--noheader").stdout.strip())
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_quietly(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def _wait(condition, folder):
    if not _wait_quietly(condition, 60):
        logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in folder.glob("*.output"))
        raise RuntimeError(f"Slurm did not start:\n{logs}")
