"""The ticket: where the other side listens and the secret that both share.

    lm://HOST:PORT/SECRET       lm://192.0.2.7:5555/3q2-7w...  (43 characters of base64url: 256 bits)
    lm://[2001:db8::7]:5555/... an IPv6 address stands in brackets
    lm://127.0.0.1:5555/        no secret: only over loopback, with --insecure

The side that listens makes the ticket. The secret never travels; the keys of the first connection come from it
(wire/keys.py).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

from live_migration.wire.addresses import is_loopback, show_address, split_address
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode

SECRET_BYTES = 32
LONGEST_TICKET = 1024
SCHEME = "lm://"


@dataclass(frozen=True)
class Ticket:
    """Where to connect to, and the secret: 32 bytes, or none at all."""

    host: str
    port: int
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        """The text with the secret in it, as it is handed to the other side."""
        encoded = base64.urlsafe_b64encode(self.secret).rstrip(b"=").decode()
        return f"{SCHEME}{show_address(self.host, self.port)}/{encoded}"

    def shown(self) -> str:
        """The text for messages, without the secret."""
        return f"{SCHEME}{show_address(self.host, self.port)}/..."


def make_ticket(host: str, port: int, *, with_secret: bool = True) -> Ticket:
    """A ticket with a fresh 256-bit secret, or with none."""
    return Ticket(host, port, secrets.token_bytes(SECRET_BYTES) if with_secret else b"")


def _bad(cause: str, remedy: str = "copy the whole line that the listening side printed") -> LocalError:
    return LocalError(
        step="reading the ticket", object="the ticket", cause=cause, remedy=remedy, code=ExitCode.BAD_TICKET
    )


def parse_ticket(text: str) -> Ticket:
    """The ticket that `text` spells. LocalError (BAD_TICKET) says what is wrong, without the secret."""
    text = text.strip()
    if len(text) > LONGEST_TICKET:
        raise _bad(f"it is {len(text)} characters long, at most {LONGEST_TICKET} are possible")
    if not text.startswith(SCHEME):
        raise _bad(f"it does not begin with {SCHEME}")
    address, slash, encoded = text.removeprefix(SCHEME).partition("/")
    if not slash:
        raise _bad("the part after the port is missing")
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise _bad(str(error)) from None
    if port == 0 or not host:
        raise _bad("it names no host" if not host else "port 0 is nowhere")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", encoded):
        raise _bad("its secret has characters that base64url does not have")
    try:
        secret = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        secret = b"?"
    if len(secret) not in (0, SECRET_BYTES):
        raise _bad(f"its secret has {len(encoded)} characters where 43 are needed: it was cut or changed")
    return Ticket(host, port, secret)


def read_ticket(argument: str) -> Ticket:
    """The ticket given as text, as @FILE, or as - for standard input. LocalError (BAD_TICKET) otherwise."""
    if argument == "-":
        return parse_ticket(sys.stdin.readline(LONGEST_TICKET + 2))
    if not argument.startswith("@"):
        return parse_ticket(argument)
    return read_ticket_file(argument[1:])


def read_ticket_file(path: str) -> Ticket:
    """The ticket in the file `path`. LocalError (BAD_TICKET) otherwise."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return parse_ticket(file.read(LONGEST_TICKET + 2))
    except OSError as error:
        cause = f"{path} cannot be read: {error.strerror}"
        raise _bad(cause, "give the path of the file that the listening side wrote") from None


def write_ticket_file(path: str, ticket: Ticket) -> None:
    """Write the ticket to `path`, readable only by its owner (mode 0600), complete at the moment it appears.

    Raises LocalError (SYSTEM) if the folder does not let us.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
                file.write(f"{ticket}\n")
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise LocalError(
            step="writing the ticket file",
            object=path,
            cause=error.strerror or str(error),
            remedy="name a file in a folder that exists and can be written to",
        ) from None


def check_secret(ticket: Ticket, *, insecure: bool) -> None:
    """A ticket without a secret is for experiments on this machine: only over loopback, and with `insecure`, which is
    for nothing else. LocalError (USAGE) otherwise."""
    here = is_loopback(ticket.host)
    if here and (ticket.secret or insecure):
        return
    if ticket.secret and not insecure:
        return
    remedy = "use a ticket with a secret (LM_TICKET_FILE, or the text that the listening side printed)"
    raise LocalError(
        step="reading the ticket",
        object=show_address(ticket.host, ticket.port),
        cause="with --insecure nothing would be encrypted on the network"
        if ticket.secret
        else "without a secret nothing is encrypted, and whoever reaches the port could take the process's memory",
        remedy="leave --insecure out"
        if ticket.secret
        else remedy + (", or say --insecure for an experiment on this machine" if here else ""),
        code=ExitCode.USAGE,
    )


def blank_in_arguments(ticket: str) -> bool:
    """Overwrite the secret in this process's arguments, where ps(1) shows them. True if it stood there.

    The arguments lie in our own memory between arg_start and arg_end (proc_pid_stat(5), fields 48 and 49).
    """
    secret = ticket.rpartition("/")[2].encode()
    if not ticket.startswith(SCHEME) or not secret:
        return False
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    found = False
    # If this process may not open its own memory, only its user sees the arguments anyway.
    with contextlib.suppress(OSError), open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        for match in re.finditer(re.escape(secret), arguments):
            memory.seek(start + match.start())
            memory.write(b"*" * len(secret))
            found = True
    return found
