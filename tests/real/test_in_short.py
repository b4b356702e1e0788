"""One real program, small: the others have a suite of their own (test_real_programs.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.test_real_programs import Machines, move_python


@pytest.mark.program
def test_a_small_python(machines: Machines, tmp_path: Path, orphans: None) -> None:
    move_python("post-copy", 5_000, machines, tmp_path)
