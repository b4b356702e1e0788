"""The options of lm-restore, as its command line has them."""

from __future__ import annotations

import argparse
import os
import pwd
import re
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
    parse_size,
    take_certificates,
    take_ticket,
    take_watching,
    usage_error,
)
from live_migration.cli.decide import EPILOGUES
from live_migration.restorer.options import RestoreOptions
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.report import check_report_path
from live_migration.wire.strategy import AUTO, MOST_ROUNDS, NO_CONVERGENCE, STRATEGIES, Parameters
from live_migration.wire.taken import TakenAddress, parse_taken
from live_migration.wire.ticket import check_secret

DESCRIPTION = """Take over the process that lm-serve offers. lm-restore runs on the destination: it restores the
process, lets it run at once (--post-copy, the default; --hybrid) or when its memory is complete
(--pre-copy, --stop-and-copy), stays until the process ends, and ends with its status."""

NAME_MAX = 255
EPILOGUE = """environment:
  LM_DEST_PORT    without TICKET and --listen: wait at this port for lm-serve
  LM_DEST_IP      at this address (default: every address if a ticket file is written, else 127.0.0.1)
  LM_TICKET_FILE  default of --ticket-file; without either the ticket is only printed

exit status: that of the process, or one of docs/exit-codes.md."""


def _mapped_path(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old.startswith("/") or not new.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW with two absolute paths")
    return os.path.normpath(old), os.path.normpath(new)


def _taken_address(text: str) -> TakenAddress:
    try:
        return parse_taken(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _network_name(text: str) -> str:
    if not 0 < len(text.encode()) <= NAME_MAX or "/" in text or "\0" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a network namespace")
    return text


def _absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return os.path.normpath(text)


def _user(text: str) -> int:
    """A user's number, from its name or the number itself."""
    if re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {text!r} here") from None


def make_parser() -> argparse.ArgumentParser:
    """The options and their help."""
    parser = OneSentenceParser(
        prog="lm-restore",
        description=DESCRIPTION,
        epilog=f"when the other side is gone for good:\n{EPILOGUES['lm-restore']}\n\n{EPILOGUE}",
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
        before = "; most of it is copied before the freeze" if strategy.rounds else ""
        how.add_argument(
            f"--{name}", dest="strategy", action="store_const", const=name, help=f"the process runs {when}{before}"
        )
    names = (*STRATEGIES, AUTO)
    how.add_argument(
        "--strategy",
        metavar="NAME",
        choices=names,
        help=f"one of {', '.join(names)} (default: post-copy); auto chooses by the size, how fast the process writes, "
        "and the link",
    )
    add(
        "--max-rounds",
        metavar="N",
        type=parse_number(1, MOST_ROUNDS, "a number of rounds"),
        help="with pre-copy, hybrid and auto: at most so many rounds before the freeze (default: 30, hybrid 5)",
    )
    add(
        "--max-downtime",
        metavar="MS",
        type=_milliseconds,
        help="the rounds end when the dirty pages can be sent in so many milliseconds (default: 300, and another round "
        "would leave no fewer)",
    )
    add(
        "--round-timeout",
        metavar="SECONDS",
        type=parse_seconds,
        help="end a round that takes longer (default: none)",
    )
    add(
        "--on-no-convergence",
        choices=NO_CONVERGENCE,
        help="when the process writes as fast as the link sends: freeze it all the same, resume it at once, or give up "
        "(default: post-copy)",
    )
    add(
        "--bandwidth-limit",
        metavar="RATE",
        type=parse_rate,
        help="bytes per second, with K, M or G; holds bulk back, never faults (default: no limit)",
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        type=parse_listen,
        help="wait there for lm-serve --to, instead of connecting; prints the ticket",
    )
    add(
        "--reattach",
        metavar="PID",
        type=parse_number(1, 1 << 22, "a process id"),
        help="instead of TICKET: bring the pages of PID, which was moved here, for whoever brought them was killed",
    )
    add(
        "--source",
        metavar="HOST:PORT",
        type=parse_listen,
        help="with --reattach: where the source is now; also if its pages are still waited for at the old address",
    )
    add(
        "--on-lost",
        choices=("wait", "stop", "poison"),
        help="when --reconnect-timeout is over: the process waits where pages are missing, is stopped by SIGSTOP, or "
        "gets SIGBUS where it touches a missing page (default: wait)",
    )
    add("--ticket-file", metavar="FILE", help="also write the ticket to FILE, for its owner alone")
    add(
        "--prefetch",
        choices=("hot", "order"),
        default="hot",
        help="what is fetched first after the resume, beside the pages around faults: what the process touched last, "
        "or memory in the order of addresses, for comparison (default: hot)",
    )
    add(
        "--pid",
        choices=("auto", "keep", "namespace"),
        default="auto",
        help="keep the process's ids, or put it into a PID namespace (default: keep if they are free)",
    )
    add("--detach", action="store_true", help="exit when every page has arrived; the process lives on")
    add(
        "--stdio",
        choices=("attach", "null"),
        default="attach",
        help="what replaces a terminal, pipe or socket at descriptors 0 to 2 (default: attach, those of lm-restore)",
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
        choices=("keep", "close", "refuse"),
        default="keep",
        help="what becomes of established TCP connections (default: they move, or nothing does)",
    )
    add(
        "--take-address",
        metavar="ADDRESS/LENGTH@INTERFACE",
        type=_taken_address,
        action="append",
        default=[],
        help="an address that the source has goes to this interface with the process; may be repeated",
    )
    add(
        "--netns",
        metavar="NAME",
        type=_network_name,
        help="put the process into this network namespace (ip netns); --take-address and the connections are there "
        "(default: lm-restore's own)",
    )
    add(
        "--cpu",
        choices=("strict", "trust"),
        default="strict",
        help="trust: move although this processor lacks something of the source's (default: strict)",
    )
    add(
        "--max-memory",
        metavar="SIZE",
        type=parse_size,
        help="refuse a process that has more memory, in bytes, with K, M or G (default: what this host and the control "
        "group of lm-restore have room for)",
    )
    add(
        "--allow-uid",
        metavar="USER",
        type=_user,
        action="append",
        default=[],
        help="refuse a process of another user, by name or number; unless it is root's, it must have no capabilities, "
        "and only groups that its user has here; may be repeated (default: everybody, as far as lm-restore may)",
    )
    add(
        "--allow-path",
        metavar="PATH",
        type=_absolute_path,
        action="append",
        default=[],
        help="refuse a process that has a file, directory or socket elsewhere than under PATH; may be repeated "
        "(default: everything that lm-restore may open)",
    )
    add_common_options(parser)
    return parser  # fmt: skip


def _milliseconds(text: str) -> float:
    """Milliseconds, without a unit or with one. Not 0."""
    return parse_seconds(text if text.endswith("s") else f"{text}ms") * 1000


def _parameters(given: argparse.Namespace) -> Parameters:
    """The strategy and its limits. Raises LocalError (USAGE) for limits of rounds if there are no rounds."""
    name = given.strategy or "post-copy"
    # The source chooses in the end; until then it copies as pre-copy would.
    strategy = STRATEGIES["pre-copy" if name == AUTO else name]
    limits = {
        "--max-rounds": given.max_rounds,
        "--max-downtime": given.max_downtime,
        "--round-timeout": given.round_timeout,
        "--on-no-convergence": given.on_no_convergence,
    }
    for option, value in limits.items():
        if value is not None and not strategy.rounds:
            raise usage_error(
                f"{option} and --{name}",
                "without rounds before the freeze there is nothing to limit",
                "choose --pre-copy, --hybrid or --strategy auto, or leave it out",
            )
    if given.on_no_convergence and strategy.resume_at_once:
        raise usage_error(
            f"--on-no-convergence and --{name}", "it resumes at once in any case", "leave it out, or choose --pre-copy"
        )
    return Parameters(
        strategy=name,
        rounds=given.max_rounds or strategy.rounds,
        resume_at_once=strategy.resume_at_once,
        max_downtime_ms=given.max_downtime,
        round_timeout=given.round_timeout,
        no_convergence=given.on_no_convergence or "post-copy",
        bandwidth_limit=given.bandwidth_limit or 0,
        hot_first=given.prefetch == "hot",
    )


def _meeting(given: argparse.Namespace, environment: Mapping[str, str]) -> Meeting:
    """Connect or listen, from the options, else from the environment."""
    if given.on_lost and not given.reconnect_timeout:
        raise usage_error("--on-lost", "it is for when the source is given up", "give --reconnect-timeout, too")
    if given.reattach is not None:
        if given.ticket is not None or given.listen is not None:
            raise usage_error("TICKET and --reattach", "its session stands already", "leave TICKET and --listen out")
        return Meeting(certificates=take_certificates(given))
    if given.source is not None:
        raise usage_error("--source", "it is for --reattach alone", "give --reattach PID, too")
    if given.ticket is not None:
        ticket = take_ticket(given.ticket)
        if given.listen is not None:
            raise usage_error("TICKET and --listen", "one connects, the other waits", "give one of them")
        if given.ticket_file:
            raise usage_error("TICKET and --ticket-file", "the side that listens makes the ticket", "leave one out")
        check_secret(ticket, insecure=given.insecure)
        return Meeting(ticket=ticket, with_secret=bool(ticket.secret), certificates=take_certificates(given))
    ticket_file = given.ticket_file or environment.get("LM_TICKET_FILE") or None
    if given.listen is not None:
        return listening(given, given.listen, ticket_file)
    destination = destination_of(environment)
    if destination is None:
        raise usage_error(
            "TICKET", "there is none", "give the one that lm-serve printed, or wait for lm-serve with --listen"
        )
    host = destination.host or ("0.0.0.0" if ticket_file else LOOPBACK)
    return listening(given, (host, destination.port), ticket_file)


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
        reattach=given.reattach or 0,
        source=given.source,
        parameters=_parameters(given),
        pid=given.pid,
        detach=given.detach,
        stdio=given.stdio,
        files=given.files,
        map_path=tuple(given.map_path),
        tcp=given.tcp,
        take_address=tuple(given.take_address),
        netns=given.netns or "",
        cpu=given.cpu,
        max_memory=given.max_memory,
        allow_uid=tuple(given.allow_uid),
        allow_path=tuple(given.allow_path),
        report=given.report,
        json=given.json,
        verbose=given.verbose,
        json_fd=given.json_fd,
        watching=take_watching(given),
        reconnect_timeout=given.reconnect_timeout,
        on_lost=given.on_lost or "wait",
    )
