"""lm-restore: the command line of the destination."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from live_migration.cli.command_line import run_command, watchers_of
from live_migration.cli.decide import decide, is_asked_for
from live_migration.cli.rendering import make_events


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lm-restore; its exit status (wire/exit_codes.py), or that of the moved process."""
    return run_command("lm-restore", arguments, lambda: _restore(arguments))


def _restore(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if is_asked_for(words):
        with make_events("lm-restore", json=False) as shown:
            return decide("lm-restore", words, shown)
    from live_migration.cli.restore_options import parse_options

    options = parse_options(arguments)
    # Late, so that --help and a wrong option answer at once, and without the C side.
    run = importlib.import_module("live_migration.restorer.frontend").run
    watchers = watchers_of("lm-restore", options.watching)
    with make_events(
        "lm-restore", json=options.json, verbose=options.verbose, json_fd=options.json_fd, watchers=watchers
    ) as events:
        return int(run(options, events))


if __name__ == "__main__":
    sys.exit(main())
