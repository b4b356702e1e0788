"""lm-serve: the command line of the source."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from live_migration.cli.command_line import run_command, watchers_of
from live_migration.cli.decide import decide, is_asked_for
from live_migration.cli.rendering import make_events
from live_migration.wire.errors import MigrationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lm-serve; its exit status (wire/exit_codes.py)."""
    return run_command("lm-serve", arguments, lambda: _serve(arguments))


def _serve(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if is_asked_for(words):
        with make_events("lm-serve", json=False) as shown:
            return decide("lm-serve", words, shown)
    from live_migration.cli.serve_options import parse_options

    options = parse_options(arguments)
    # Late, so that --help and a wrong option answer at once, and without the C side.
    if options.reattach:
        serve = importlib.import_module("live_migration.source_server.reattach").reattach
    else:
        serve = importlib.import_module("live_migration.source_server.serve").serve

    watchers = watchers_of("lm-serve", options.watching)
    with make_events(
        "lm-serve", json=options.json, verbose=options.verbose, json_fd=options.json_fd, watchers=watchers
    ) as events:
        try:
            return int(serve(options, events))
        except MigrationError as error:
            events.failed(error, options.pid)
            return int(error.code)


if __name__ == "__main__":
    sys.exit(main())
