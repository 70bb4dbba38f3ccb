"""Two hosts on one machine: network namespaces with addresses, host names and an ssh server of their own.

A context manager that sets them up and takes everything down again, its processes first. It needs root, or
CAP_NET_ADMIN and CAP_SYS_ADMIN, `ip` (iproute2) and `sshd` (openssh-server); where the machine lacks one,
`obstacle` says which.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

NAMES = ("dqat-host-a", "dqat-host-b")
ADDRESSES = ("10.213.77.1", "10.213.77.2")  # in no namespace but these
_SSHD = "/usr/sbin/sshd"
ETC = pathlib.Path("/etc/netns")  # `ip netns exec` mounts what lies there over /etc


def obstacle():
    """Why two hosts can't be made here, or None."""
    for program, package in (("ip", "iproute2"), ("ssh", "openssh-client"), (_SSHD, "openssh-server")):
        if shutil.which(program) is None:
            return f"{program} is missing (Debian: {package})"
    probe = f"dqat-probe-{os.getpid()}"
    made = _run("ip", "netns", "add", probe, check=False)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    ran = _run("ip", "netns", "exec", probe, "unshare", "--uts", "true", check=False)
    _run("ip", "netns", "del", probe)
    return f"no process can be started in a namespace here: {ran.stderr.strip()}" if ran.returncode else None


def _run(*command, check=True):
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


@dataclass(frozen=True)
class TwoHosts:
    """The hosts while they are there."""

    key: pathlib.Path
    hosts: str = ",".join(f"{name}:1" for name in NAMES)

    def command(self, *command):
        """The command line that runs a command on the first host."""
        script = 'hostname "$0" && exec "$@"'
        inside = ["unshare", "--uts", "sh", "-c", script, NAMES[0], *map(str, command)]
        return ["ip", "netns", "exec", NAMES[0], *inside]

    def cut(self):
        """Cuts the link: from now on packets are lost, and nobody is told."""
        _run("ip", "-n", NAMES[0], "link", "set", "eth0", "down")


def _processes():
    """Process ids in the namespaces, which no other program uses."""
    return [int(pid) for name in NAMES for pid in _run("ip", "netns", "pids", name, check=False).stdout.split()]


def _take_down():
    for pid in _processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for name in NAMES:
        _run("ip", "netns", "del", name, check=False)
        shutil.rmtree(ETC / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: another's, or not there
        ETC.rmdir()


@contextlib.contextmanager
def two_hosts(folder):
    """Two hosts, linked; keys and the server's files go into `folder`."""
    _take_down()  # what a killed run left
    try:
        yield _set_up(pathlib.Path(folder))
    finally:
        _take_down()


def _set_up(folder):
    for name in NAMES:
        _run("ip", "netns", "add", name)
        etc = ETC / name
        (etc / "ssh").mkdir(parents=True)
        # A host must find its own name, too: Horovod ends in a segmentation fault where it doesn't.
        lines = [f"{address} {host}" for address, host in zip(ADDRESSES, NAMES, strict=True)]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        # So that ssh leaves nothing in the user's own list of known hosts.
        (etc / "ssh" / "ssh_config").write_text("Host *\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n")
    _run(
        "ip", "link", "add", "dqat-veth-a", "netns", NAMES[0], "type", "veth", "peer", "dqat-veth-b", "netns", NAMES[1]
    )
    for name, link, address in zip(NAMES, ("dqat-veth-a", "dqat-veth-b"), ADDRESSES, strict=True):
        _run("ip", "-n", name, "link", "set", link, "name", "eth0")
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")

    for key in ("host_key", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nPidFile {folder}/sshd.pid\n"
        "ListenAddress 0.0.0.0\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
    )
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # where sshd wants an empty folder
    start = f"hostname {NAMES[1]} && exec {_SSHD} -f {folder}/sshd_config -E {folder}/sshd.log"
    _run("ip", "netns", "exec", NAMES[1], "unshare", "--uts", "sh", "-c", start)
    hosts = TwoHosts(folder / "key")
    options = ["-i", hosts.key, "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"]
    for _ in range(50):
        answer = _run(*hosts.command("ssh", *options, NAMES[1], "hostname"), check=False)
        if answer.returncode == 0:
            return hosts
        time.sleep(0.1)
    raise RuntimeError(f"no ssh to the second host: {answer.stderr}")
