"""A proof that the other side runs on this host, and could trace us: what a boot id, which travels, does not show.

The destination holds a secret in a memfd and says which descriptor of which process that is. Whoever may trace that
process reads it there (/proc/PID/fd/NUMBER, ptrace(2), PTRACE_MODE_READ); nobody on another host can. The source
answers with an HMAC, so that the secret itself does not travel, over the session and over what it claims: an answer
that somebody passes on proves what its maker has claimed, and nothing else.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from dataclasses import dataclass

import msgspec

NAME = "lm-same-host"
SECRET_BYTES = 32
LABEL = b"lm-proof of the same host\0"


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """Where the secret is: a descriptor of a process, by its id in its own PID namespace."""

    pid: int
    descriptor: int


@dataclass(frozen=True)
class Secret:
    """The destination's secret. Close it."""

    value: bytes
    descriptor: int

    def challenge(self) -> Challenge:
        """What the source is told."""
        return Challenge(pid=os.getpid(), descriptor=self.descriptor)

    def is_proven(self, session: bytes, claim: bytes, proof: bytes) -> bool:
        """Has somebody read the secret who claims this?"""
        return hmac.compare_digest(_proof(self.value, session, claim), proof)

    def close(self) -> None:
        """From now on nobody can answer."""
        os.close(self.descriptor)


def make_secret() -> Secret:
    """A fresh secret of this process. Raises OSError."""
    value = secrets.token_bytes(SECRET_BYTES)
    descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.write(descriptor, value)
    os.fchmod(descriptor, stat.S_IRUSR)
    return Secret(value, descriptor)


def answer(challenge: Challenge, session: bytes, claim: bytes) -> bytes:
    """The proof of what is claimed; empty where there is no such secret, or none that may be read."""
    try:
        value = _read(f"/proc/{challenge.pid}/fd/{challenge.descriptor}")
    except OSError:
        return b""
    return _proof(value, session, claim) if len(value) == SECRET_BYTES else b""


def _read(path: str) -> bytes:
    """The content of a secret. It is made sure that it is one: who asks is not trusted, and could mean any file that is
    open on this host."""
    if not _is_secret(path):
        return b""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        same = _is_secret(f"/proc/self/fd/{descriptor}") and stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.pread(descriptor, SECRET_BYTES + 1, 0) if same else b""
    finally:
        os.close(descriptor)


def _is_secret(path: str) -> bool:
    return os.readlink(path) == f"/memfd:{NAME} (deleted)"


def _proof(value: bytes, session: bytes, claim: bytes) -> bytes:
    return hmac.digest(value, LABEL + session + claim, "sha256")
