"""The options of lm-restore."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wire.command_line import (
    LOOPBACK,
    OneSentenceParser,
    destination_of,
    parse_listen,
    take_ticket,
    usage_error,
)
from wire.meeting import Meeting
from wire.report import check_report_path
from wire.strategy import STRATEGIES, Strategy
from wire.ticket import Ticket, check_secret

DESCRIPTION = """Take over the process that lm-serve offers. lm-restore runs on the destination: it rebuilds the
process, lets it run at once (--post-copy, the default) or when its memory is complete
(--stop-and-copy), stays until the process ends, and ends with its status."""

EPILOGUE = """environment:
  LM_DEST_PORT    without TICKET and --listen: wait at this port for lm-serve
  LM_DEST_IP      at this address (default: every address if a ticket file is written, else 127.0.0.1)
  LM_TICKET_FILE  default of --ticket-file; without either there is no secret, and --insecure must be
                  given to wait at an address beyond this machine

exit status: that of the process, or one of docs/exit-codes.md."""


@dataclass(frozen=True)
class RestoreOptions:
    """What lm-restore was asked to do.

    meeting       the ticket of the source, or where to listen
    strategy      one of wire/strategy.py
    pid           "keep", "namespace", or "auto": keep if the ids are free
    detach        exit when every page is in, and let the process live on
    stdio         "attach" or "null": what stands for descriptors 0 to 2 that lead outside
    files         "strict" (size and mtime), "size" or "trust"
    map_path      (old, new) prefixes of paths
    tcp           "refuse" or "close" established connections
    cpu           "strict", or "trust" that the process uses nothing that this processor lacks
    report        file for the report
    json, verbose how to tell
    """

    meeting: Meeting
    strategy: Strategy
    pid: str
    detach: bool
    stdio: str
    files: str
    map_path: tuple[tuple[str, str], ...]
    tcp: str
    cpu: str
    report: str | None
    json: bool
    verbose: int


def _mapped_path(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old.startswith("/") or not new.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW with two absolute paths")
    return os.path.normpath(old), os.path.normpath(new)


def make_parser() -> argparse.ArgumentParser:
    """The options and their help."""
    parser = OneSentenceParser(
        prog="lm-restore",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "ticket",
        metavar="TICKET",
        nargs="?",
        help="the ticket that lm-serve printed: text, @FILE, or - for standard input",
    )
    how = parser.add_mutually_exclusive_group()
    for name, strategy in STRATEGIES.items():
        when = "at once, its memory follows" if strategy.resume_at_once else "when its memory is complete"
        how.add_argument(
            f"--{name}", dest="strategy", action="store_const", const=name, help=f"the process runs {when}"
        )
    how.add_argument(
        "--strategy", metavar="NAME", choices=STRATEGIES, help=f"one of {', '.join(STRATEGIES)} (default: post-copy)"
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        type=parse_listen,
        help="wait there for lm-serve --to, instead of connecting; prints the ticket",
    )
    add("--ticket-file", metavar="FILE", help="also write the ticket to FILE, for its owner alone")
    add(
        "--pid",
        choices=("auto", "keep", "namespace"),
        default="auto",
        help="keep the process's ids, or put it into a PID namespace (default: keep if they are free)",
    )
    add("--detach", action="store_true", help="exit when every page is in; the process lives on")
    add(
        "--stdio",
        choices=("attach", "null"),
        default="attach",
        help="what takes the place of a terminal, pipe or socket at descriptors 0 to 2 (default: attach, "
        "those of lm-restore)",
    )
    add(
        "--files",
        choices=("strict", "size", "trust"),
        default="strict",
        help="how files are compared: size and mtime, size alone, not at all (default: strict)",
    )
    add(
        "--map-path",
        metavar="OLD=NEW",
        type=_mapped_path,
        action="append",
        default=[],
        help="files under OLD are under NEW here; may be repeated",
    )
    add(
        "--tcp",
        choices=("refuse", "close"),
        default="refuse",
        help="what to do about established TCP connections (default: refuse to move)",
    )
    add(
        "--cpu",
        choices=("strict", "trust"),
        default="strict",
        help="trust: move although this processor lacks something of the source's (default: strict)",
    )
    add("--report", metavar="FILE", help="write what happened to FILE, as JSON (docs/report.md)")
    add("--json", action="store_true", help="print every event as one JSON object a line")
    add("--insecure", action="store_true", help="allow a connection without a secret beyond this machine")
    add("-v", "--verbose", action="count", default=0, help="say more; twice: everything")
    return parser  # fmt: skip


def _meeting(given: argparse.Namespace, environment: Mapping[str, str]) -> Meeting:
    """Connect or listen, from the options, else from the environment."""
    if given.ticket is not None:
        ticket = take_ticket(given.ticket)
        if given.listen is not None:
            raise usage_error("TICKET and --listen", "one connects, the other waits", "give one of them")
        if given.ticket_file:
            raise usage_error("TICKET and --ticket-file", "the side that listens makes the ticket", "leave one out")
        check_secret(ticket, insecure=given.insecure)
        return Meeting(ticket=ticket, with_secret=bool(ticket.secret))
    ticket_file = given.ticket_file or environment.get("LM_TICKET_FILE") or None
    if given.listen is not None:
        return Meeting(listen=given.listen, ticket_file=ticket_file)
    destination = destination_of(environment)
    if destination is None:
        raise usage_error(
            "TICKET", "there is none", "give the one that lm-serve printed, or wait for lm-serve with --listen"
        )
    # Whoever reaches the port without a secret can give us any process to run.
    host = destination.host or ("0.0.0.0" if ticket_file or given.insecure else LOOPBACK)
    if not ticket_file:
        check_secret(Ticket(host, destination.port, b""), insecure=given.insecure)
    return Meeting(listen=(host, destination.port), with_secret=bool(ticket_file), ticket_file=ticket_file)


def parse_options(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> RestoreOptions:
    """The options of a command line. Raises LocalError (USAGE, BAD_TICKET) and SystemExit (--help, bad
    options).
    """
    given = make_parser().parse_args(arguments)
    meeting = _meeting(given, environment)
    if given.report:
        check_report_path(given.report)
    return RestoreOptions(
        meeting=meeting,
        strategy=STRATEGIES[given.strategy or "post-copy"],
        pid=given.pid,
        detach=given.detach,
        stdio=given.stdio,
        files=given.files,
        map_path=tuple(given.map_path),
        tcp=given.tcp,
        cpu=given.cpu,
        report=given.report,
        json=given.json,
        verbose=given.verbose,
    )
