"""The C programs of the experiments: built with the commands (build_native.py), and installed with them.

lm-bench needs no compiler.
"""

from __future__ import annotations

from pathlib import Path

from live_migration.experiments.errors import ExperimentError

FOLDER = Path(__file__).resolve().parent / "bin"


def program(name: str) -> str:
    """The path of the program that was built from NAME.c. ExperimentError if it is not there."""
    path = FOLDER / name
    if not path.exists():
        raise ExperimentError(f"{path}: a program of lm-bench is missing; run make setup, or install it again")
    return str(path)
