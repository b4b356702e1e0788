"""The report, and how its amounts are shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from live_migration.wire.errors import LocalError
from live_migration.wire.report import Report, as_markdown, show_bytes, summary, write_report
from tests.support.reports import report

ROOT = Path(__file__).resolve().parents[2]


def test_the_last_line_says_the_result() -> None:
    assert summary(report()) == "resumed in 4.1 ms; 412 faults, p99 0.31 ms; 1.0 GiB in 1.4 s"


def test_a_migration_that_did_not_happen() -> None:
    failed = Report(side="source", outcome="failed", strategy="", pid=12, started=0.0, total_ms=20.0)
    assert summary(failed) == "failed after 20.0 ms"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (2048, "2.0 KiB"), (300 << 20, "300 MiB"), (3 << 40, "3.0 TiB")],
)
def test_amounts(count: int, text: str) -> None:
    assert show_bytes(count) == text


def test_the_report_is_json_as_documented(tmp_path: Path) -> None:
    write_report(f"{tmp_path}/report", report())
    content = json.loads((tmp_path / "report").read_text())
    assert content["downtime_ms"] == 4.12
    nothing = dict.fromkeys(("p50_us", "p90_us", "max_us", "sum_us", "measured"), 0)
    assert content["faults"] == nothing | {"count": 412, "p99_us": 310.0, "at_most": []}
    assert content["rounds"] == []
    assert os.listdir(tmp_path) == ["report"]
    assert (ROOT / "docs/report.md").read_text() == as_markdown()
    with pytest.raises(LocalError, match="No such file or directory"):
        write_report(f"{tmp_path}/none/report", report())
