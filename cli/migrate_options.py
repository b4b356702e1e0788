"""The options of lm-migrate: its own, and those of the two commands that it starts."""

from __future__ import annotations

import argparse
import copy
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from live_migration.cli import restore_options, serve_options
from live_migration.cli.command_line import (
    OneSentenceParser,
    add_watcher_options,
    parse_descriptor,
    parse_listen,
    parse_number,
    take_watching,
    usage_error,
)
from live_migration.remote.files import COPIES
from live_migration.remote.migration import MigrateOptions
from live_migration.wire.addresses import show_address
from live_migration.wire.events import Watching
from live_migration.wire.report import check_report_path

DESCRIPTION = """Move the running process PID from this host to HOST, by way of ssh. lm-migrate brings all that it
needs to HOST by itself, starts lm-serve here and lm-restore there, and ends when every page has arrived. The
process lives on there without it."""

USAGE = """lm-migrate PID [USER@]HOST [options]      move process PID of this host to HOST
       lm-migrate --back [USER@]HOST PID [options]   move process PID of HOST to this host
       lm-migrate --list [[USER@]HOST]     what was moved there or to this host, what still pulls pages, what waits
       lm-migrate --clean [USER@]HOST      remove from HOST what lm-migrate has brought there"""

EPILOGUE = """HOST needs Linux, sshd, a C library no older than the bundle's, and root: USER, or sudo that asks for
nothing.

exit status: docs/exit-codes.md."""

NOT_PASSED = {
    "help", "report", "json", "json_fd", "verbose", "insecure", "check", "listen", "to", "ticket", "ticket_file",
    "detach", "stdio", "files", "status_fd", "metrics",
}  # fmt: skip
"""Options of the two commands that lm-migrate has itself, or chooses."""
MODES = ("back", "list", "clean")
COMPARED = ("strict", "size", "trust")
"""How lm-restore compares files, its default first."""


@dataclass(frozen=True)
class MigrateLine:
    """A command line of lm-migrate. `mode`: "move" (`move` says what), "list" or "clean" (at `host`)."""

    mode: str
    host: str
    move: MigrateOptions
    json: bool
    json_fd: int | None
    verbose: int
    watching: Watching = field(default_factory=Watching)


def make_parser() -> argparse.ArgumentParser:
    """The options and their help."""
    parser = OneSentenceParser(
        prog="lm-migrate", usage=USAGE, description=DESCRIPTION, epilog=EPILOGUE, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("words", metavar="PID HOST", nargs="*", help="the process to move, and the host as ssh knows it")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--back", action="store_true", help="move a process of HOST here")
    mode.add_argument("--list", action="store_true", help="list what was moved to HOST, or to this host")
    mode.add_argument("--clean", action="store_true", help="remove the bundle from HOST")
    mode.add_argument("--check", action="store_true", help="list every blocker to moving PID, and see whether HOST can "
                      "be used; the bundle is brought there")  # fmt: skip
    add(
        "--via",
        choices=("auto", "direct", "ssh"),
        default="auto",
        help="how the memory travels: over a connection between the hosts, inside ssh, or directly where the port can "
        "be reached (default: auto)",
    )
    add("--ssh", metavar="COMMAND", default="ssh", help='ssh with options of your own: --ssh "ssh -p 2222"')
    add("--bundle", metavar="FILE", help="the bundle to bring there (default: what `make bundle` has made)")
    add("--listen", metavar="HOST:PORT", type=parse_listen, help="where lm-serve waits (default: the "
        "address by which the hosts know each other, and a free port)")  # fmt: skip
    add(
        "--files",
        choices=(*COMPARED, *COPIES),
        default="strict",
        help="how files are compared with the destination's: size and mtime, size alone, not at all; copy: those "
        "that are missing there or differ travel along and are seen by the process alone; copy=place: what is missing "
        "is put at its path (default: strict)",
    )
    add("--report", metavar="FILE", help="write what happened to FILE, as the destination saw it (docs/report.md)")
    add("--json", action="store_true", help="print every event as one JSON object a line")
    add("--json-fd", metavar="FD", type=parse_descriptor, help="write every event to this open descriptor")
    add_watcher_options(parser)
    add("-v", "--verbose", action="count", default=0, help="say more; twice: everything")
    for whose in ("lm-serve", "lm-restore", "both"):
        group = parser.add_argument_group(f"options of {whose}")
        for action in passed(whose):
            group._add_action(action)
    return parser


def passed(whose: str) -> list[argparse.Action]:
    """The options that are passed on to "lm-serve" alone, "lm-restore" alone, or "both" of them."""
    source, destination = (_options(parser) for parser in (serve_options.make_parser(), restore_options.make_parser()))
    if whose == "both":
        return [action for dest, action in source.items() if dest in destination]
    own, other = (source, destination) if whose == "lm-serve" else (destination, source)
    return [action for dest, action in own.items() if dest not in other]


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a command that lm-migrate does not have or choose itself, each under what sets it apart."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.option_strings and action.dest not in NOT_PASSED:
            one = copy.copy(action)
            # A user is looked up where the process comes to, and a word that is not there is not passed.
            one.type = None if action.dest == "allow_uid" else action.type
            one.default = None
            found[" ".join(action.option_strings)] = one
    return found


def split(arguments: Sequence[str], actions: Sequence[argparse.Action]) -> tuple[str, ...]:
    """Those words of a command line, which has been parsed without an error, that belong to some options."""
    known = {name: action for action in actions for name in action.option_strings}
    found: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        name, equals, _ = word.partition("=")
        action = known.get(name)
        if action is not None:
            found.append(word if equals or action.nargs == 0 else f"{word}={next(words, '')}")
    return tuple(found)


def parse_options(arguments: Sequence[str]) -> MigrateLine:
    """The options of a command line. Raises LocalError (USAGE) and SystemExit (--help, bad options)."""
    parser = make_parser()
    given = parser.parse_intermixed_args(list(arguments))
    mode = next((name for name in MODES if getattr(given, name)), "move")
    host, pid = take_words(given.words, mode)
    both = passed("both")
    serve, restore = (split(arguments, [*passed(whose), *both]) for whose in ("lm-serve", "lm-restore"))
    command = tuple(shlex.split(given.ssh))
    if not command:
        raise usage_error("--ssh", "it names no command", "give ssh, with its options")
    if given.report:
        check_report_path(given.report)
    if given.files in COPIES and given.map_path:
        raise usage_error("--map-path", f"it does not go with --files {given.files}", "say one of the two")
    if given.files in COMPARED[1:]:
        restore = (*restore, f"--files={given.files}")
    move = MigrateOptions(
        pid=pid,
        host=host,
        back=mode == "back",
        via=given.via,
        ssh=command,
        bundle=given.bundle,
        check=given.check,
        serve=(*serve, *["-v"] * given.verbose),
        restore=(*restore, *["-v"] * given.verbose),
        files=given.files,
        listen=show_address(*given.listen) if given.listen else None,
        report=given.report,
    )
    return MigrateLine(
        "move" if mode == "back" else mode, host, move, json=given.json, json_fd=given.json_fd, verbose=given.verbose,
        watching=take_watching(given),
    )  # fmt: skip


def take_words(words: Sequence[str], mode: str) -> tuple[str, int]:
    """The host and the process. Raises LocalError (USAGE)."""
    if mode == "list" and not words:
        return "", 0
    if mode in ("list", "clean"):
        if len(words) != 1:
            raise usage_error(f"--{mode}", "it takes one host", f"say lm-migrate --{mode} HOST")
        return take_host(words[0]), 0
    if len(words) != 2:
        line = "lm-migrate --back HOST PID" if mode == "back" else "lm-migrate PID HOST"
        raise usage_error("PID and HOST", "both are needed, and nothing else", f"say {line}")
    pid, host = reversed(words) if mode == "back" else words
    try:
        number = parse_number(1, 1 << 22, "a process id")(pid)
    except argparse.ArgumentTypeError as error:
        raise usage_error("PID", str(error), "give the number of a process") from None
    return take_host(host), number


def take_host(text: str) -> str:
    """A host as ssh takes it. Raises LocalError (USAGE)."""
    if not text or text.startswith("-") or not text.isprintable() or any(letter.isspace() for letter in text):
        raise usage_error("HOST", f"{text!r} is no name of a host", "give [USER@]HOST")
    return text
