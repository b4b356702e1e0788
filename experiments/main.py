"""lm-bench: compares strategies of migration on the same workloads and links."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from experiments import floors, listing, reporting, run
from experiments.errors import ExperimentError, Status


def make_parser() -> argparse.ArgumentParser:
    """All verbs."""
    parser = argparse.ArgumentParser(prog="lm-bench", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in (run, floors, reporting, listing):
        module.add_parser(verbs)
    return parser


def end_on(number: int, frame: FrameType | None) -> None:
    """A signal handler that leaves through every clean-up; a second signal does not disturb that."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(words: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status."""
    given = make_parser().parse_args(words)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_on)
    try:
        status: Status = given.verb(given)
    except ExperimentError as error:
        print(f"lm-bench: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"lm-bench: {name}{error.strerror or error}; see that it can be read and written", file=sys.stderr)
        return Status.SYSTEM
    return status


if __name__ == "__main__":
    sys.exit(main())
