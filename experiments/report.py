"""lm-bench report: from the results in a folder its figures, a page that shows them, and a CSV of all runs if asked."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.findings import find
from live_migration.experiments.quantities import WORKING_SET
from live_migration.experiments.results import FLOORS, NAME, VERSION, Floor, OtherVersion, Result, read
from live_migration.experiments.summary import NO_MIGRATION, Setting, by_series, series_of, setting_of

PAGE_NAME = "index.html"
TITLE = "Moving a running process: what each strategy costs"


def report(folder: Path, say: Callable[[str], None], table: Path | None = None) -> None:
    """Write DIR/index.html, each figure as DIR/NAME.png, and all runs as CSV to `table`; `say` hears what is done.

    Raises ExperimentError: no results, results of another version, damaged ones, a folder that cannot be written to."""
    results, floors = read_results(folder), read_floors(folder)
    try:
        # Here and not above: whoever only runs experiments needs no matplotlib.
        from live_migration.experiments import figures, page, page_brownout, page_tables
    except ImportError as error:
        raise ExperimentError(
            f"the report's figures: {error}; install matplotlib: pip install 'live-migration[experiments]'",
            Status.SYSTEM,
        ) from error
    failed = sum(1 for one in results if not one.verified)
    say(f"{folder / NAME}: {counted(len(results), 'run')}, {failed} failed, {counted(len(floors), 'floor')}")
    if table is not None:
        write(table, page_tables.runs_csv(results).encode())
        say(f"{table}: every run")
    drawn = []
    for figure in figures.draw(results, floors):
        write(folder / f"{figure.name}.png", figure.png)
        say(f"{folder / figure.name}.png")
        drawn.append(figure)
    verified = [one for one in results if one.verified]
    parts = [
        page.findings_part(find(results)),
        page_brownout.brownout_part(verified, floors),
        page_tables.choice_part(verified),
        page_tables.floor_part(verified, floors),
        *(page.figure_part(figure) for figure in drawn),
        page_tables.links_part(results, floors),
        page_tables.machines_part(results, floors),
        page_tables.failed_part(results),
        page_tables.runs_part(results),
    ]
    text = page.whole(TITLE, page.paragraph(summary(results), "lead"), parts)
    write(folder / PAGE_NAME, text.encode())
    say(f"{folder / PAGE_NAME}: the report")


def summary(results: Sequence[Result]) -> str:
    """What was measured, in two sentences."""
    moved = [one for one in results if one.cell.peer != NO_MIGRATION]
    failed = sum(1 for one in results if not one.verified)
    workloads = listed(sorted({setting_of(one.cell).workload for one in results}))
    links = listed(sorted({one.cell.link for one in results}))
    series = listed([one.label for one in by_series(moved)])
    settings = len({setting_of(one.cell) for one in results})
    told = f" {failed:,} of them failed and {'is' if failed == 1 else 'are'} left out." if failed else ""
    return (
        f"{counted(len(results), 'run')} in {counted(settings, 'setting')}: {workloads} moved over {links} by "
        f"{series or 'nothing'}.{told} Everything here is computed from results.jsonl beside this page."
    )


def counted(number: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def place_of(result: Result) -> tuple[object, ...]:
    """The order of runs in tables: by setting, then as in the legend."""
    setting: Setting = setting_of(result.cell)
    return (*setting.rank(), *series_of(result).rank(), result.cell.run)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file of results becomes a sentence."""
    try:
        yield
    except OtherVersion as error:
        words = f"{error}; measure again, or use the lm-bench that wrote them"
        raise ExperimentError(words, Status.BAD_DATA) from error
    except (msgspec.DecodeError, AttributeError, UnicodeDecodeError) as error:
        raise ExperimentError(
            f"{path}: a line is not a result of lm-bench ({error}); remove that line, or measure again",
            Status.BAD_DATA,
        ) from error
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}; check it and its permissions", status_of(error)) from error


def read_results(folder: Path) -> list[Result]:
    """The runs in order, the last one of each cell if one was run again. Raises ExperimentError."""
    path = folder / NAME
    latest: dict[str, Result] = {}
    with readable(path):
        if not folder.is_dir():
            words = f"{folder}: there is no such folder; name the one that lm-bench run wrote to (-o DIR)"
            raise ExperimentError(words, Status.BAD_DATA)
        if not path.exists():
            words = f"{folder}: it holds no {NAME}; measure by lm-bench run -o {folder} first"
            raise ExperimentError(words, Status.BAD_DATA)
        for result in read(path):
            # Samples are most of a result's size, and nothing else of them is drawn.
            result.samples = {key: value for key, value in result.samples.items() if key == WORKING_SET}
            latest[result.cell.key()] = result
    if not latest:
        words = f"{path}: it holds no finished run; run lm-bench run -o {folder} again, which resumes it"
        raise ExperimentError(words, Status.BAD_DATA)
    return sorted(latest.values(), key=place_of)


def read_floors(folder: Path) -> list[Floor]:
    """The floors in the order in which they were measured, none if there are none. Raises ExperimentError."""
    path = folder / FLOORS
    floors: list[Floor] = []
    with readable(path):
        if not path.exists():
            return floors
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            if (found := msgspec.json.decode(line).get("version")) != VERSION:
                raise OtherVersion(f"{path}: results of version {found}, this lm-bench reads version {VERSION}")
            floors.append(msgspec.json.decode(line, type=Floor))
            floors[-1].samples = {}
    return floors


def write(path: Path, content: bytes) -> None:
    """The file, complete when it appears. Raises ExperimentError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        status = status_of(error)
        full = status is Status.NO_SPACE
        remedy = "free some space" if full else "make it writable, or copy the results to a folder that is"
        raise ExperimentError(f"{path}: it cannot be written: {error.strerror}; {remedy}", status) from error


def status_of(error: OSError) -> Status:
    """The status that says what kind of blocker it was."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Status.NO_SPACE
    return Status.NO_PERMISSION if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else Status.SYSTEM
