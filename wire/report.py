"""The report of a migration (--report FILE), JSON, the same form on both sides.

`python -m live_migration.wire.report` prints docs/report.md from the descriptions below.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import msgspec

from live_migration.wire.errors import LocalError

MOST_BOUNDS = 64
"""Pairs in a histogram."""


def _said(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Pages(msgspec.Struct, kw_only=True):
    """Pages of 4096 bytes."""

    total: Annotated[int, _said("pages that the process had in pageable memory, zero ones included")] = 0
    zero: Annotated[int, _said("of these, pages that were zero and needed no payload")] = 0
    faulted: Annotated[int, _said("pages that came because the process touched them")] = 0
    prefetched: Annotated[int, _said("pages that came in bulk, before they were touched")] = 0
    pushed: Annotated[int, _said("pages that came before the resume: by rounds, eagerly, or for being hot")] = 0
    resent: Annotated[int, _said("pages that came a second time or more, since they had changed")] = 0
    late: Annotated[int, _said("pages that came when they were there already: touched while on their way in bulk")] = 0


class Bytes(msgspec.Struct, kw_only=True):
    """Amounts of data, in bytes."""

    memory: Annotated[int, _said("memory of the process that was moved")] = 0
    wire: Annotated[int, _said("what travelled on all connections, in both directions, after compression")] = 0
    eager: Annotated[
        int, _said("memory that cannot be paged on demand and travelled before COMMIT, before compression")
    ] = 0


class Faults(msgspec.Struct, kw_only=True):
    """Faults on missing pages. Times are measured in the fault loop, from reading the fault to placing the page."""

    count: Annotated[int, _said("faults that needed the source")] = 0
    p50_us: Annotated[float, _said("median, microseconds")] = 0.0
    p90_us: Annotated[float, _said("90 of 100 took at most this, microseconds")] = 0.0
    p99_us: Annotated[float, _said("99 of 100 took at most this, microseconds")] = 0.0
    max_us: Annotated[float, _said("the slowest, microseconds")] = 0.0
    measured: Annotated[int, _said("faults whose times these are: also those that were answered with zeros here")] = 0
    sum_us: Annotated[float, _said("their times together, microseconds")] = 0.0
    at_most: Annotated[
        list[tuple[float, int]],
        msgspec.Meta(
            max_length=MOST_BOUNDS,
            description="their histogram: pairs of a time, microseconds, and how many took at most that",
        ),
    ] = []


class Round(msgspec.Struct, kw_only=True):
    """One round of copying while the source runs."""

    pages: Annotated[int, _said("pages sent")] = 0
    zero: Annotated[int, _said("of these, pages that were zero and needed no payload")] = 0
    again: Annotated[int, _said("of these, pages that an earlier round had sent")] = 0
    deferred: Annotated[int, _said("pages that are written to in every round and wait for the end")] = 0
    bytes: Annotated[int, _said("bytes sent, after compression")] = 0
    ms: Annotated[float, _said("how long it took, milliseconds")] = 0.0
    dirty: Annotated[int, _said("pages that were dirty at its end")] = 0
    rate: Annotated[float, _said("what the link carried, bytes per second")] = 0.0


class Report(msgspec.Struct, kw_only=True):
    """A migration as one side saw it."""

    side: Annotated[str, _said('"source" or "destination"')]
    outcome: Annotated[str, _said('"complete", "failed" or "stalled"')]
    strategy: Annotated[str, _said("post-copy, hybrid, pre-copy or stop-and-copy: what it came to be")]
    pid: Annotated[int, _said("the moved process, as this side's host sees it; 0 before there was one")]
    started: Annotated[float, _said("when the command started, seconds since 1970")]
    downtime_ms: Annotated[
        float | None,
        _said(
            "freeze to resume, milliseconds: the source's clock up to COMMIT sent, half a measured round trip, "
            "the destination's clock from COMMIT received; null when it did not come to that"
        ),
    ] = None
    downtime_us: Annotated[
        dict[str, float],
        _said(
            "what this side did in the downtime, step by step, microseconds; "
            "the other side's steps are in the step that waits for them"
        ),
    ] = {}
    total_ms: Annotated[float, _said("from the authenticated connection to the last page in place, milliseconds")] = 0.0
    phases_ms: Annotated[
        dict[str, float],
        _said(
            "how long each phase lasted here, milliseconds; source: staging, freezing (until COMMIT), committed; "
            "destination: preflight, staging, staged (until the resume), resumed"
        ),
    ] = {}
    pages: Annotated[Pages, _said("see below")] = msgspec.field(default_factory=Pages)
    bytes: Annotated[Bytes, _said("see below")] = msgspec.field(default_factory=Bytes)
    faults: Annotated[Faults, _said("see below")] = msgspec.field(default_factory=Faults)
    rounds: Annotated[list[Round], _said("one for each round before the freeze, see below; empty if none")] = []
    tracking: Annotated[str, _said('how writes were tracked: "userfaultfd", "soft-dirty" or "none"')] = "none"
    error: Annotated[str | None, _said("the sentence that ended it, if it failed")] = None
    exit_status: Annotated[
        int | None, _said("destination without --detach: the status of the process, once it has ended")
    ] = None


def show_bytes(count: float) -> str:
    """1.0 GiB, 12 KiB: an amount for human readers."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_seconds(milliseconds: float) -> str:
    """4.1 ms, 1.4 s: a duration for human readers."""
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def summary(report: Report) -> str:
    """The last line of a command: `resumed in 4.1 ms; 412 faults, p99 0.31 ms; 1.0 GiB in 1.4 s`."""
    if report.downtime_ms is None:
        return f"{report.outcome} after {show_seconds(report.total_ms)}"
    faults = f"{report.faults.count} faults"
    if report.faults.count:
        faults += f", p99 {report.faults.p99_us / 1000:.2f} ms"
    memory = f"{show_bytes(report.bytes.memory)} in {show_seconds(report.total_ms)}"
    return f"resumed in {show_seconds(report.downtime_ms)}; {faults}; {memory}"


def write_report(path: str, report: Report) -> None:
    """Write the report as JSON; it is complete at the moment it appears. Raises LocalError (SYSTEM)."""
    text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    try:
        write_whole(path, text)
    except OSError as error:
        raise LocalError(
            step="writing the report",
            object=path,
            cause=error.strerror or str(error),
            remedy="name a file in a folder that exists and can be written to",
        ) from None


def write_whole(path: str, data: bytes) -> None:
    """Write a file, which is complete at the moment it appears. Raises OSError, with nothing left behind."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.rename(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def check_report_path(path: str, what: str = "the report") -> None:
    """Can a report be written there? Checked before anything begins. Raises LocalError (SYSTEM) if not."""
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LocalError(
            step=f"writing {what}",
            object=path,
            cause=f"the folder {folder} does not exist or cannot be written to",
            remedy="name a file in a folder that exists and can be written to",
        )


def _rows(kind: Any, prefix: str) -> list[str]:
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = []
    for name in kind.__struct_fields__:
        value, meta = typing.get_args(hints[name])
        shown = str(value) if isinstance(value, types.UnionType | types.GenericAlias) else value.__name__
        shown = shown.replace(f"{__name__}.", "").replace(" | None", " or null")
        rows.append(f"| `{prefix}{name}` | {shown} | {meta.description} |")
    return rows


def as_markdown() -> str:
    """docs/report.md."""
    lines = [
        "# The report",
        "",
        "Generated by `python -m live_migration.wire.report`; the form itself is `wire/report.py`.",
        "",
        "`--report FILE` writes one JSON object. lm-restore writes it when the last page has arrived, lm-serve when",
        "the source's copy has left; both also write it when the migration fails after they have connected. Fields may",
        "be added later; those here stay. What only the other side can know is 0 or null.",
    ]
    parts: list[tuple[Any, str]] = [
        (Report, ""), (Pages, "pages."), (Bytes, "bytes."), (Faults, "faults."), (Round, "rounds[]."),
    ]  # fmt: skip
    for kind, prefix in parts:
        lines += [
            "",
            f"## {kind.__doc__.rstrip('.')}",
            "",
            "| field | type | meaning |",
            "|---|---|---|",
            *_rows(kind, prefix),
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(as_markdown(), end="")
