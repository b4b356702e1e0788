"""The options of lm-serve, as its command line has them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from live_migration.cli.command_line import (
    LOOPBACK,
    OneSentenceParser,
    add_common_options,
    destination_of,
    listening,
    parse_listen,
    parse_number,
    parse_rate,
    parse_seconds,
    take_certificates,
    take_ticket,
    take_watching,
    usage_error,
)
from live_migration.cli.decide import EPILOGUES
from live_migration.source_server.options import ServeOptions
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.report import check_report_path
from live_migration.wire.ticket import Ticket, check_secret

DESCRIPTION = """Move the running process PID to another machine. lm-serve runs on the source: it prints a ticket
and waits until lm-restore on the destination comes with it (or, with --to, it connects itself). The
process runs on, untouched, until the destination is ready."""

EPILOGUE = """environment:
  LM_DEST_IP, LM_DEST_PORT  without --to and --listen: connect to the lm-restore that waits there
  LM_TICKET_FILE            where to read the ticket from then; when listening, the default of --ticket-file

exit status: docs/exit-codes.md."""


def _compression(text: str) -> str | int:
    if text in ("auto", "none"):
        return text
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= 19:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not auto, none or a level from 1 to 19")


def make_parser() -> argparse.ArgumentParser:
    """The options and their help."""
    parser = OneSentenceParser(
        prog="lm-serve",
        description=DESCRIPTION,
        epilog=f"when the other side is gone for good:\n{EPILOGUES['lm-serve']}\n\n{EPILOGUE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    process = parse_number(1, 1 << 22, "a process id")
    add("pid", metavar="PID", nargs="?", type=process, help="the process to move")
    add(
        "--reattach",
        metavar="PID",
        type=process,
        help="instead of PID: go on for PID, which was moved away, or was about to be, when its lm-serve was killed",
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        type=parse_listen,
        help="where to wait for the destination (default: 127.0.0.1 and a free port)",
    )
    add(
        "--to",
        metavar="TICKET",
        help="connect to the lm-restore that made this ticket (text, @FILE, or - for "
        "standard input) instead of listening",
    )
    add("--ticket-file", metavar="FILE", help="also write the ticket to FILE, for its owner alone")
    add("--check", action="store_true", help="list every blocker to moving PID and change nothing")
    add(
        "--bandwidth-limit",
        metavar="RATE",
        type=parse_rate,
        help="bytes per second, with K, M or G; holds bulk back, never faults (default: no limit)",
    )
    add(
        "--compress",
        metavar="auto|none|LEVEL",
        type=_compression,
        default="auto",
        help="zstd while the link is the limit, never, or always at a level from 1 to 19 (default: auto)",
    )
    add(
        "--max-freeze",
        metavar="SECONDS",
        type=parse_seconds,
        default=5.0,
        help="if the freeze takes longer, the source thaws and nothing has happened (default: 5)",
    )
    add(
        "--exit-status",
        metavar="N",
        type=parse_number(0, 255, "an exit status"),
        default=0,
        help="status with which the source's copy ends, for its supervisor (default: 0)",
    )
    add_common_options(parser)
    return parser  # fmt: skip


def parse_options(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> ServeOptions:
    """The options of a command line. Raises LocalError (USAGE, BAD_TICKET) and SystemExit (--help, bad
    options).
    """
    given = make_parser().parse_args(arguments)
    _check_together(given)
    meeting = _meeting(given, environment)
    if given.report:
        check_report_path(given.report)
    return ServeOptions(
        pid=given.pid or given.reattach,
        reattach=given.reattach or 0,
        meeting=meeting,
        check=given.check,
        bandwidth_limit=given.bandwidth_limit,
        compress=given.compress,
        max_freeze=given.max_freeze,
        exit_status=given.exit_status,
        report=given.report,
        json=given.json,
        verbose=given.verbose,
        json_fd=given.json_fd,
        watching=take_watching(given),
        reconnect_timeout=given.reconnect_timeout,
    )


def _meeting(given: argparse.Namespace, environment: Mapping[str, str]) -> Meeting:
    """Connect or listen, from the options, else from the environment."""
    certificates = take_certificates(given)
    if given.reattach is not None:
        return Meeting(listen=given.listen, certificates=certificates)
    to: Ticket | None = take_ticket(given.to) if given.to is not None else None
    destination = None
    if to is None and given.listen is None and not given.check:
        destination = destination_of(environment)
    if destination is not None:
        if given.ticket_file:
            raise usage_error(
                "--ticket-file",
                "with LM_DEST_PORT it is lm-restore that makes the ticket",
                "set LM_TICKET_FILE to the file to read it from",
            )
        to = destination.ticket()
    if to is not None:
        check_secret(to, insecure=given.insecure)
        return Meeting(ticket=to, with_secret=bool(to.secret), certificates=certificates)
    ticket_file = given.ticket_file or environment.get("LM_TICKET_FILE") or None
    return listening(given, given.listen or (LOOPBACK, 0), ticket_file)


def _check_together(given: argparse.Namespace) -> None:
    """Options that exclude each other."""
    if (given.pid is None) == (given.reattach is None):
        raise usage_error("PID", "there is none, or there are two", "give PID, or --reattach PID")
    if given.reattach is not None and (given.check or given.to is not None):
        raise usage_error("--reattach", "its session stands already", "leave --to and --check out")
    if given.to is not None and given.listen is not None:
        raise usage_error("--to and --listen", "one connects, the other waits", "give one of them")
    if given.to is not None and given.ticket_file:
        raise usage_error("--to and --ticket-file", "the side that listens makes the ticket", "leave one out")
    if given.check and (given.to is not None or given.listen is not None or given.ticket_file):
        raise usage_error(
            "--check",
            "it needs no other side",
            "leave --to, --listen and --ticket-file out",
        )
