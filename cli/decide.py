"""--decide of both commands: what still waits for the other side, and a decision for the day on which that is gone."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from live_migration.cli.command_line import OneSentenceParser, parse_number
from live_migration.cli.rendering import RenderedEvents
from live_migration.wire.exit_codes import ExitCode

LIST = "list"
SIDES = {"lm-serve": ("source_server", ["source"]), "lm-restore": ("restorer", ["run", "drop"])}
EPILOGUES = {
    "lm-serve": """  lm-serve --decide list          what still waits for its destination here
  lm-serve --decide source PID    PID runs on here, and its destination is gone for good: wait for it no more""",
    "lm-restore": """  lm-restore --decide list        what still waits for its source here
  lm-restore --decide run PID     the source is gone for good: let the process that is kept here run
  lm-restore --decide drop PID    the source is gone for good, or PID is to run there: remove what is kept here""",
}
"""A part of the help of each command."""


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line is one of these."""
    return bool(arguments) and arguments[0] == "--decide"


def decide(name: str, arguments: Sequence[str], events: RenderedEvents) -> int:
    """Run `NAME --decide ...`; the exit status. Raises LocalError."""
    folder, ways = SIDES[name]
    parser = OneSentenceParser(
        prog=name, allow_abbrev=False, epilog=EPILOGUES[name], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decide", required=True, choices=[LIST, *ways], help="see below")
    parser.add_argument("pid", metavar="PID", nargs="?", type=parse_number(1, 1 << 22, "a process id"))
    options = parser.parse_args(arguments)
    if (options.pid is None) != (options.decide == LIST):
        parser.error(f"--decide {options.decide} takes {'no process id' if options.pid else 'a process id'}")
    by_hand: Any = importlib.import_module(f"live_migration.{folder}.by_hand")
    if options.decide == LIST:
        sentences = by_hand.listed() or ["nothing waits here"]
    elif name == "lm-serve":
        sentences = by_hand.decide(options.pid)
    else:
        sentences = by_hand.decide(options.pid, options.decide)
    for sentence in sentences:
        events.note(sentence, 0)
    return int(ExitCode.OK)
