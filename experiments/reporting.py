"""Draw: DIR/index.html with findings and tables, and the figures it shows as PNG, from the results in DIR."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from live_migration.experiments.errors import ExperimentError, Status


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb's options."""
    parser = verbs.add_parser("report", help=(__doc__ or "").partition("\n")[0], description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the results, as given to run -o")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every run with its numbers to FILE too")
    parser.set_defaults(verb=report_verb)


def report_verb(given: argparse.Namespace) -> Status:
    """`lm-bench report`. Raises ExperimentError."""
    draw(given.folder, given.csv)
    return Status.OK


def draw(folder: Path, table: Path | None = None) -> None:
    """Write everything that follows from a folder's results. ExperimentError."""
    try:
        # Only here: drawing needs packages that measuring does not.
        drawing = importlib.import_module("live_migration.experiments.report")
    except ImportError as error:
        raise ExperimentError(f"report: {error.name} is not installed; install live-migration[experiments]") from None
    drawing.report(folder, lambda text: print(text, file=sys.stderr), table)
