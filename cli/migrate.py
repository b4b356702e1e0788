"""lm-migrate: one command line for a whole move."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from live_migration.cli.command_line import run_command, watchers_of
from live_migration.cli.rendering import make_events
from live_migration.wire.exit_codes import ExitCode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lm-migrate; its exit status (wire/exit_codes.py)."""
    return run_command("lm-migrate", arguments, lambda: _migrate(sys.argv[1:] if arguments is None else arguments))


def _migrate(arguments: Sequence[str]) -> int:
    from live_migration.cli.migrate_options import parse_options
    from live_migration.remote import bundle, migration
    from live_migration.remote.ssh import connection
    from live_migration.wire.errors import MigrationError

    line = parse_options(arguments)
    # Every clean-up runs, as after Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    watchers = watchers_of("lm-migrate", line.watching)
    with make_events(
        "lm-migrate", json=line.json, verbose=line.verbose, json_fd=line.json_fd, watchers=watchers
    ) as events:
        try:
            if line.mode == "list":
                return migration.list_moved(line.host, line.move.ssh, line.move.bundle, events)
            if line.mode == "clean":
                with connection(line.host, line.move.ssh) as ssh:
                    events.note(bundle.remove(ssh), 0)
                return int(ExitCode.OK)
            return migration.migrate(line.move, events)
        except migration.InTheirWords as error:
            blockers = [{"object": one.object, "cause": one.cause, "remedy": one.remedy} for one in error.blockers]
            events.failed_in_words(str(error), int(error.code), line.move.pid, blockers)
            return int(error.code)
        except MigrationError as error:
            events.failed(error, line.move.pid)
            return int(error.code)
        except KeyboardInterrupt:
            events.note("interrupted; nothing has been moved", 0)
            return int(ExitCode.INTERRUPTED)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
