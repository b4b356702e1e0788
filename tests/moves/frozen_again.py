"""lm-serve that finds a thread in the vdso when it freezes for the first time, and so freezes again.

A script for tests, with lm-serve's arguments."""

from __future__ import annotations

import itertools
import sys
from typing import Any
from unittest import mock

from live_migration.cli.serve import main
from live_migration.source_server.vdso_exit import leave_vdso
from live_migration.wire.blockers import Blocker
from tests.moves.other_vdso import other_kernel

calls = itertools.count()


def leave_at_second_try(*arguments: Any) -> list[Blocker]:
    """What is in the way passes by itself."""
    found = leave_vdso(*arguments)
    return found if next(calls) else [Blocker("a thread", "is in the middle of it", "try again")]


if __name__ == "__main__":
    with other_kernel(), mock.patch("live_migration.source_server.serve.leave_vdso", leave_at_second_try):
        sys.exit(main())
