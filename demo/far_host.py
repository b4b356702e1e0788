"""Another host: a Debian root without Python and compiler, in network, mount and PID namespaces of its own, with a real
sshd. What it has in common with this host is the kernel, the processor, and the folders that are shared on purpose."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from live_migration.experiments.machines import Machine, descendants, wait_for

BASE = Path(__file__).resolve().parents[1] / "build" / "far-root"
PORT = 22
# Within the new mount namespace, as its process 1. $1 is the root, $2 what is mounted over it, the others are shared.
SET_UP = """
set -e
root="$1"; over="$2"; shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs "$over"
mkdir "$over/upper" "$over/work" "$over/all"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$over/upper,workdir=$over/work" "$over/all"
cd "$over/all"
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
mkdir -p run/sshd old
for folder; do mkdir -p ".$folder"; mount --bind "$folder" ".$folder"; done
pivot_root . old
umount -l /old
rmdir /old
cd /
chmod 1777 /tmp
for user in root trusted asked unprivileged; do
    home="$(getent passwd $user | cut -d: -f6)"
    mkdir -p "$home/.ssh"; cp /etc/far/key.pub "$home/.ssh/authorized_keys"; chown -R "$user" "$home/.ssh"
done
/usr/sbin/sshd -f /etc/far/sshd_config -E /run/sshd.log -D &
while :; do wait; sleep 0.1; done
"""
SSHD = f"""
Port {PORT}
HostKey /etc/far/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PidFile /run/sshd.pid
"""
CLIENT = """
Host far other
  HostName {address}
  User root
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class FarHost:
    """The host: its process 1 as this host sees it, what else makes it up, its network, and the ssh configuration that
    leads there."""

    init: int
    lasting: frozenset[int]
    machine: Machine
    folder: Path

    @property
    def config(self) -> Path:
        """For ssh -F."""
        return self.folder / "config"

    @property
    def ssh(self) -> str:
        """For lm-migrate --ssh."""
        return f"ssh -F {self.config}"

    def path(self, name: str) -> Path:
        """A file of the host."""
        return Path(f"/proc/{self.init}/root{name}")

    def run(self, *words: str) -> str:
        """Run a command there; what it prints."""
        line = ["nsenter", f"--target={self.init}", "--all", "--", *words]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def processes(self) -> list[str]:
        """The command lines of its processes, those of sshd left out."""
        found = []
        for name in os.listdir(self.path("/proc")):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    words = self.path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if words and not words.startswith(("sshd", "/usr/sbin/sshd", "sh -c", "sleep")):
                        found.append(words.strip())
        return found


def command_line(pid: int) -> str:
    """What a process was started with; "" when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def key(path: Path) -> None:
    """Make a key pair."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextlib.contextmanager
def far_host(machine: Machine, folder: Path, shared: Sequence[Path], more: str = "") -> Iterator[FarHost]:
    """Start it in a network namespace; `more` are lines for its sshd."""
    assert (BASE / ".ready").exists(), "make far-root makes what this needs"
    over = folder / "over"
    over.mkdir()
    own = folder / "etc"
    own.mkdir()
    key(own / "host_key")
    key(folder / "key")
    (own / "sshd_config").write_text(SSHD + more)
    (own / "key.pub").write_bytes((folder / "key.pub").read_bytes())
    host_key = (own / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"{machine.address} {host_key}")
    (folder / "config").write_text(CLIENT.format(address=machine.address, folder=folder))
    script = SET_UP.replace("pivot_root", f"mkdir -p etc/far; cp {shlex.quote(str(own))}/* etc/far/; pivot_root", 1)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
    words = ["sh", "-c", script, "sh", str(BASE), str(over), *map(str, shared)]
    with (folder / "far.log").open("wb") as log:
        outer = subprocess.Popen(
            machine.command(*unshare, *words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        init = wait_for("process 1 of the host", lambda: int((children.read_text().split() or ["0"])[0]) or None, 60)
        started = Path(f"/proc/{init}/root/run/sshd.pid")
        wait_for("sshd", lambda: started.exists() or None, 60)
        sshd = [pid for pid in descendants(init) if "sshd" in command_line(pid)]
        yield FarHost(init, frozenset((outer.pid, init, *sshd)), machine, folder)
    finally:
        outer.kill()
        outer.wait()
