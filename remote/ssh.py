"""The system's ssh, with one connection for everything.

A master is asked for with the first command (ControlMaster, ssh_config(5)) and goes by itself some seconds after the
last one. The user's own configuration holds, with its keys, jump hosts and agents: only what lm-migrate needs is added.
Whatever ssh has to ask, it asks at the terminal.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.plain_text import one_line

FAILED = 255
"""The status with which ssh itself fails."""
COMMAND_SECONDS = 60.0
IDLE_SECONDS = 10
ANY_PORT = 9
ONLY_FOR_US = (
    "ControlMaster=no", "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "RequestTTY=no",
    "RemoteCommand=none", "PermitLocalCommand=no", "Tunnel=no", "LogLevel=ERROR",
)  # fmt: skip
DEFAULTS = {"connecttimeout": ("ConnectTimeout", "15"), "serveraliveinterval": ("ServerAliveInterval", "5")}
"""What is set where the user's configuration says nothing: a host that is silent is noticed."""
# What ssh says -> what it means, what helps, and the status. In this order: jump hosts add sentences of their own.
MEANINGS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is another one than the one that is known",
        "find out why; if that is as it should be, remove the old one with ssh-keygen -R",
        ExitCode.NO_PERMISSION,
    ),
    (
        "Host key verification failed",
        "its host key is not known here",
        "connect once with ssh by hand and compare the key",
        ExitCode.NO_PERMISSION,
    ),
    (
        "Could not resolve hostname",
        "there is no host of that name",
        "give a name or address that ssh knows",
        ExitCode.NO_PEER,
    ),
    (
        "Permission denied",
        "it lets nobody in with the keys that ssh has offered",
        "log in once with ssh by hand, or give another user, as USER@HOST",
        ExitCode.NO_PERMISSION,
    ),
    ("Connection refused", "no sshd answers there", "start one, or give its port", ExitCode.NO_PEER),
    ("timed out", "it does not answer", "look at the address, the network and the firewall", ExitCode.NO_PEER),
    ("No route to host", "there is no route to it", "look at the address and the network", ExitCode.NO_PEER),
    ("Network is unreachable", "there is no route to it", "look at the address and the network", ExitCode.NO_PEER),
)


def as_usual() -> dict[str, str]:
    """This process's environment for programs of the system: without the libraries of a bundle."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("_PYI_")}
    before = kept.pop("LD_LIBRARY_PATH_ORIG", None)
    if "_PYI_ARCHIVE_FILE" in os.environ:
        kept.pop("LD_LIBRARY_PATH", None)
        if before:
            kept["LD_LIBRARY_PATH"] = before
    return kept


@dataclass(frozen=True)
class Ssh:
    """A host, and the ssh that leads there.

    host       as the user names it: [USER@]HOST, or a name of his configuration
    command    ssh and the user's own options
    socket     where its master listens, in a folder that only this user can enter
    """

    host: str
    command: tuple[str, ...]
    socket: Path

    def words(self, *options: str, run: str | None = None) -> list[str]:
        """A command line of ssh that goes by way of the master; `run` is for the shell there."""
        ours = [word for option in ONLY_FOR_US for word in ("-o", option)]
        return [*self.command, "-S", str(self.socket), *ours, *options, "--", self.host, *([run] if run else [])]

    def error(self, said: str) -> LocalError:
        """What it means that ssh has failed with these words."""
        for words, cause, remedy, code in MEANINGS:
            if words.lower() in said.lower():
                return _failed(self.host, cause, remedy, code)
        lines = said.strip().splitlines()
        cause = one_line(lines[-1].strip()) if lines else "ssh has ended without a word"
        return _failed(self.host, cause, "try the same with ssh by hand", ExitCode.NO_PEER)

    def address_towards(self) -> str:
        """The address of this host from which packets leave for that one; empty where ssh goes another way, or none.

        Connecting a UDP socket asks the routing table and sends nothing. Raises LocalError.
        """
        known = self._configured()
        if any(known.get(name, "none") != "none" for name in ("proxyjump", "proxycommand")):
            return ""
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(known.get("hostname", self.host), ANY_PORT, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                own = str(probe.getsockname()[0])
                return "" if "%" in own else own
        return ""

    def first(self, script: str) -> str:
        """Connect, run a script for sh there, and leave the master behind. What the script printed.

        Raises LocalError (NO_PEER, NO_PERMISSION). ssh may ask for a password or a host key here, at the terminal.
        """
        options = ["-o", "ControlMaster=yes", "-o", f"ControlPersist={IDLE_SECONDS}"]
        for name, (option, value) in DEFAULTS.items():
            if self._configured().get(name, "0") in ("0", "none"):
                options += ["-o", f"{option}={value}"]
        # ssh takes the first of several values.
        line = [*self.command, *options, *self.words(run=in_shell(script))[len(self.command) :]]
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=as_usual(), check=False
            )
            said.seek(0)
            if done.returncode == FAILED or done.returncode < 0:
                raise self.error(said.read().decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def again(self) -> None:
        """Connect once more, without asking anybody. Raises LocalError."""
        self.close()
        replace(self, command=(*self.command, "-o", "BatchMode=yes")).first("true")

    def run(self, script: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script for sh there, with a file as its standard input. Raises LocalError if ssh fails."""
        with open(stdin or os.devnull, "rb") as content:
            done = subprocess.run(
                self.words("-o", "BatchMode=yes", run=in_shell(script)),
                stdin=content,
                capture_output=True,
                text=True,
                errors="replace",
                env=as_usual(),
                start_new_session=True,
            )
        if done.returncode == FAILED:
            raise self.error(done.stderr)
        return done

    def forward(self, here_or_there: str, what: str) -> str:
        """Let the master forward a port: "-L" one of this host, "-R" one of the other; what ssh says of it, which is
        the number of the port that was chosen for -R with port 0. Raises LocalError (NO_PEER)."""
        line = [*self.command, "-S", str(self.socket), "-O", "forward", here_or_there, what, "--", self.host]
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=as_usual(), timeout=COMMAND_SECONDS
        )
        if done.returncode:
            raise _failed(
                self.host,
                "its sshd forwards no port",
                "set AllowTcpForwarding there, or let the two hosts reach each other and say --via direct",
                ExitCode.NO_PEER,
            )
        return done.stdout.strip()

    def close(self) -> None:
        """End the master."""
        line = [*self.command, "-S", str(self.socket), "-O", "exit", "--", self.host]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, env=as_usual(), timeout=COMMAND_SECONDS)

    def _configured(self) -> dict[str, str]:
        """The user's configuration for this host (ssh -G)."""
        line = [*self.command, "-G", "--", self.host]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=as_usual())
        if done.returncode:
            raise self.error(done.stderr)
        return dict(re.findall(r"^(\S+) (.*)$", done.stdout, re.MULTILINE))


@contextlib.contextmanager
def connection(host: str, command: Sequence[str]) -> Iterator[Ssh]:
    """The way to a host, not yet taken (`first`); whatever there is of it ends with the context."""
    with tempfile.TemporaryDirectory(prefix="lm-ssh-") as folder:
        ssh = Ssh(host, tuple(command), Path(folder, "s"))
        try:
            yield ssh
        finally:
            ssh.close()


def in_shell(script: str) -> str:
    """A script for sh as a word for whatever shell the user has there. The script has neither ' nor ! nor a backslash,
    and is made one line."""
    line = " ".join(part.strip() for part in script.strip().splitlines())
    assert not {"'", "!", "\\"} & {*line}
    return f"exec sh -c {shlex.quote(line)}"


def _failed(host: str, cause: str, remedy: str, code: ExitCode) -> LocalError:
    return LocalError(step="connecting by ssh", object=host, cause=cause, remedy=remedy, code=code)
