"""The one program of a bundle. It is any of the commands, by the name under which it is called, or, as an interpreter
would be, any module of live_migration: `lm -P -m MODULE ...`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

COMMANDS = {
    "lm-migrate": "live_migration.cli.migrate",
    "lm-restore": "live_migration.cli.restore",
    "lm-serve": "live_migration.cli.serve",
}


def main() -> int:
    """Run what is asked for; its exit status."""
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    module = COMMANDS.get(name)
    if module is None:
        words = words[words[:1] == ["-P"] :]
        if words[:1] != ["-m"] or not words[1:2] or not words[1].startswith("live_migration."):
            print(f"{name}: call it as {', '.join(COMMANDS)}", file=sys.stderr)
            return 2
        module, words = words[1], words[2:]
    sys.argv = [name, *words]
    started = importlib.import_module(module).main
    # The two kinds of main() there are: with its arguments, or with those of the process.
    return int(started(words) if module.endswith("leftover") else started())


if __name__ == "__main__":
    sys.exit(main())
