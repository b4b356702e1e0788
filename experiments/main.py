"""lm-bench: compares strategies of migration on the same workloads and links."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Callable, Sequence

from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.machines import leave_on_signals

VERBS = ("run", "floors", "reporting", "listing")


def make_parser() -> argparse.ArgumentParser:
    """All verbs. Raises ExperimentError where a package is missing that they need."""
    parser = argparse.ArgumentParser(prog="lm-bench", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    try:
        for name in VERBS:
            importlib.import_module(f"live_migration.experiments.{name}").add_parser(verbs)
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"{error.name} is not installed; install it: pip install 'live-migration[experiments]'"
        ) from None
    return parser


def guarded(work: Callable[[], Status]) -> int:
    """Do it; the exit status. An error is one sentence on standard error, a signal leaves through every clean-up."""
    leave_on_signals()
    try:
        return work()
    except ExperimentError as error:
        print(f"lm-bench: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        full = error.errno == errno.ENOSPC
        remedy = "make room" if full else "see that it can be read and written"
        print(f"lm-bench: {name}{error.strerror or error}; {remedy}", file=sys.stderr)
        return Status.NO_SPACE if full else Status.SYSTEM


def main(words: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status."""

    def work() -> Status:
        given = make_parser().parse_args(words)
        status: Status = given.verb(given)
        return status

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
