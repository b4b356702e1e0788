"""lm-restore and lm-serve among files that lm-migrate has brought, which lie over this host's for one process alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from live_migration.cli import restore, serve
from live_migration.remote.laying import enter, join
from live_migration.wire.exit_codes import ExitCode


def main() -> int:
    """`lm-restore STORE ...` or `lm-serve PID ...`, with the command's own words; its exit status."""
    name, place, *words = sys.argv[1:]
    moves_in = name == "lm-restore"
    # With this host's libraries: those that were brought may be others.
    importlib.import_module(f"live_migration.{'restorer.frontend' if moves_in else 'source_server.serve'}")
    try:
        enter(Path(place)) if moves_in else join(int(place))
    except OSError as error:
        print(f"{name}: files cannot be laid over {error.filename}: {error.strerror}", file=sys.stderr)
        return int(ExitCode.SYSTEM)
    return restore.main(words) if moves_in else serve.main(words)


if __name__ == "__main__":
    sys.exit(main())
