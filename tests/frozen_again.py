"""lm-serve that finds a thread in the vdso when it freezes for the first time, and so freezes again.

A script for tests, with lm-serve's arguments."""

from __future__ import annotations

import itertools
import sys
from typing import Any
from unittest import mock

from other_vdso import other_kernel

from source_server.main import main
from source_server.vdso_exit import leave_vdso
from wire.obstacles import Obstacle

calls = itertools.count()


def leave_at_second_try(*arguments: Any) -> list[Obstacle]:
    """What is in the way passes by itself."""
    found = leave_vdso(*arguments)
    return found if next(calls) else [Obstacle("a thread", "is in the middle of it", "try again")]


if __name__ == "__main__":
    with other_kernel(), mock.patch("source_server.serve.leave_vdso", leave_at_second_try):
        sys.exit(main())
