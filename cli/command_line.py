"""What the command lines of lm-serve and lm-restore have in common: amounts, addresses, tickets, and their end.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from live_migration.cli.metrics import MetricsFile
from live_migration.cli.output import never_waiting
from live_migration.cli.rendering import RenderedEvents, make_events
from live_migration.cli.watchers import StatusLines, Watcher, notifications
from live_migration.wire.addresses import split_address
from live_migration.wire.errors import LocalError, MigrationError
from live_migration.wire.events import Watching
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.meeting_point import Certificates, Meeting
from live_migration.wire.report import check_report_path
from live_migration.wire.ticket import (
    SCHEME,
    Ticket,
    blank_in_arguments,
    check_secret,
    read_ticket,
    read_ticket_file,
)

LOOPBACK = "127.0.0.1"
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class OneSentenceParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}; {self.prog} --help lists the options\n")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both commands have: what is told, to whom, and whether a secret is needed."""
    add = parser.add_argument
    add(
        "--reconnect-timeout",
        metavar="SECONDS",
        type=parse_seconds,
        help="give up a connection that was lost after the handover and is not back after so long; the process goes on "
        "waiting for what is missing (default: never)",
    )
    add("--report", metavar="FILE", help="write what happened to FILE, as JSON (docs/report.md)")
    add("--json", action="store_true", help="print every event as one JSON object a line")
    add(
        "--json-fd",
        metavar="FD",
        type=parse_descriptor,
        help="write every event, notes and progress too, to this open descriptor, and nothing elsewhere: for a program "
        "that starts this one",
    )
    add_watcher_options(parser)
    add(
        "--insecure",
        action="store_true",
        help="for experiments on this machine: neither a secret nor encryption, over loopback alone",
    )
    add("--tls-cert", metavar="FILE", help="this host's certificate, with its chain (PEM); the ticket is needed too")
    add("--tls-key", metavar="FILE", help="its private key (PEM)")
    add("--tls-ca", metavar="FILE", help="who has signed the other host's certificate (PEM)")
    add("-v", "--verbose", action="count", default=0, help="say more; twice: everything")


def add_watcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for programs that watch, beside what the reader is told; all three commands have them."""
    parser.add_argument(
        "--status-fd",
        metavar="FD",
        type=parse_descriptor,
        help="also write a line for each stage to this open descriptor: STAGE pid=N time=SECONDS ... "
        "(docs/watching.md)",
    )
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        help="also keep figures in FILE, in the text format of Prometheus, for a textfile collector (docs/watching.md)",
    )


def watchers_of(name: str, watching: Watching) -> list[Watcher]:
    """What is told beside the reader: all that was asked for, and the service manager."""
    found: list[Watcher] = notifications(name)
    if watching.status_fd is not None:
        found.append(StatusLines(watching.status_fd))
    if watching.metrics:
        found.append(MetricsFile(name, watching.metrics))
    return found


def take_watching(given: argparse.Namespace) -> Watching:
    """The options of add_watcher_options(). Raises LocalError (SYSTEM) for a file that cannot be written."""
    if given.metrics:
        check_report_path(given.metrics, "the figures")
    return Watching(given.status_fd, given.metrics)


def parse_rate(text: str) -> int:
    """Bytes per second: `50M`, `1.5G`, `800000`, with K, M, G and T as powers of 1024. Not 0."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?(?:/s)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 800K, 50M or 1.5G (bytes per second)")
    rate = int(float(match[1]) * UNITS[match[2].upper()])
    if rate < 1:
        raise argparse.ArgumentTypeError("a rate of 0 would never move anything; leave the option out for no limit")
    return rate


def parse_size(text: str) -> int:
    """Bytes: `800000`, `512M`, `1.5G`, with K, M, G and T as powers of 1024."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount such as 800K, 512M or 1.5G (bytes)")
    return int(float(match[1]) * UNITS[match[2].upper()])


def parse_seconds(text: str) -> float:
    """Seconds: `5`, `0.5`, `5s`, `500ms`. Not 0."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|ms)?", text.strip(), re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 5, 0.5 or 500ms")
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1)
    if seconds <= 0:
        raise argparse.ArgumentTypeError("a limit of 0 leaves no time at all; give a longer one")
    if seconds > 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a day")
    return seconds


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT to listen on; without a host it is 127.0.0.1. Port 0 picks a free one."""
    try:
        host, port = split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return host or LOOPBACK, port


def parse_number(lowest: int, highest: int, what: str) -> Callable[[str], int]:
    """A parser of whole numbers between two limits, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII) or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} ({lowest} to {highest})")
        return int(text)

    return parse


def parse_descriptor(text: str) -> int:
    """The number of a descriptor that is open for writing. Programs that are started from here do not get it."""
    try:
        number = int(text)
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise argparse.ArgumentTypeError(f"descriptor {number} is not open for writing")
        os.set_inheritable(number, False)
    except (OSError, OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not an open descriptor") from None
    return number


def usage_error(option: str, cause: str, remedy: str) -> LocalError:
    """The error for options that cannot be right."""
    return LocalError(step="the options", object=option, cause=cause, remedy=remedy, code=ExitCode.USAGE)


def take_certificates(given: argparse.Namespace) -> Certificates | None:
    """The certificates of the options, or None. Raises LocalError (USAGE)."""
    files = (given.tls_cert, given.tls_key, given.tls_ca)
    if not any(files):
        return None
    if not all(files):
        raise usage_error("--tls-cert, --tls-key and --tls-ca", "one of them is missing", "give all three")
    if given.insecure:
        raise usage_error("--tls-cert and --insecure", "one asks for TLS, the other for none", "give one of them")
    return Certificates(*files)


def take_ticket(argument: str) -> Ticket:
    """The ticket given as text, @FILE or -; its text disappears from the process list at once."""
    if argument.startswith(SCHEME):
        blank_in_arguments(argument)
    return read_ticket(argument)


def listening(given: argparse.Namespace, address: tuple[str, int], ticket_file: str | None) -> Meeting:
    """To listen, with the options that both commands have for that. Raises LocalError (USAGE)."""
    if given.insecure:
        check_secret(Ticket(*address, b""), insecure=True)
    return Meeting(
        listen=address,
        with_secret=not given.insecure,
        ticket_file=ticket_file,
        certificates=take_certificates(given),
    )


@dataclass(frozen=True)
class Destination:
    """Where the destination waits, as DMTCP does it: LM_DEST_IP, LM_DEST_PORT, LM_TICKET_FILE."""

    host: str
    port: int
    ticket_file: str | None

    def ticket(self) -> Ticket:
        """The ticket for the side that connects, with the secret of the ticket file, or without one."""
        secret = read_ticket_file(self.ticket_file).secret if self.ticket_file else b""
        return Ticket(self.host or LOOPBACK, self.port, secret)


def destination_of(environment: Mapping[str, str]) -> Destination | None:
    """What the environment says about the destination, or None if it says nothing. Raises LocalError (USAGE)."""
    host, port = environment.get("LM_DEST_IP", ""), environment.get("LM_DEST_PORT", "")
    if not port:
        if host:
            raise usage_error("LM_DEST_IP", "it is set without LM_DEST_PORT", "set both")
        return None
    try:
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        split_host, number = split_address(f"{shown}:{port}")
    except ValueError as error:
        raise usage_error("LM_DEST_IP and LM_DEST_PORT", str(error), "give an address and a port") from None
    return Destination(split_host, number, environment.get("LM_TICKET_FILE") or None)


def _events_before_options(name: str, words: Sequence[str]) -> RenderedEvents:
    """What reports errors in the options themselves, and errors that nobody expected."""
    given = re.search(r"(?:^|\0)--json-fd[=\0]([0-9]+)(?:\0|$)", "\0".join(words))
    json_fd = None
    if given:
        with contextlib.suppress(argparse.ArgumentTypeError):
            json_fd = parse_descriptor(given[1])
    return make_events(name, json="--json" in words, json_fd=json_fd)


def run_command(name: str, arguments: Sequence[str] | None, work: Callable[[], int]) -> int:
    """Run a command to its exit status.

    Errors become one sentence on standard error and a code of the table in wire/exit_codes.py.
    """
    open_many()
    with never_waiting():
        return _run(_events_before_options(name, sys.argv[1:] if arguments is None else arguments), work)


def open_many() -> None:
    """Let this process have as many descriptors as it may: the process that is moved may have more than usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(events: RenderedEvents, work: Callable[[], int]) -> int:
    try:
        return int(work())
    except MigrationError as error:
        events.failed(error)
        return int(error.code)
    except KeyboardInterrupt:
        events.note("interrupted", level=0)
        return int(ExitCode.INTERRUPTED)
    except Exception:
        traceback.print_exc()
        events.note("this is an error of the command itself; please report it with the lines above", level=0)
        return int(ExitCode.BUG)
