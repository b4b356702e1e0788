"""The C programs of the experiments, compiled into a folder when they are needed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from live_migration.experiments.errors import ExperimentError

FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")


def compile_into(folder: Path, names: Iterable[str]) -> None:
    """Compile NAME.c of this folder to folder/NAME. ExperimentError with what gcc said."""
    for name in names:
        source = Path(__file__).with_name(f"{name}.c")
        words = ["gcc", *FLAGS, str(source), "-o", str(folder / name), "-lm"]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            raise ExperimentError(f"{source.name}: there is no gcc to compile it; install gcc and libc6-dev") from None
        if done.returncode:
            raise ExperimentError(f"{source.name}: gcc refuses it; {done.stderr.strip()}")
