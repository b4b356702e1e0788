"""The report as files: every figure even from one run, a page that shows them, and clear sentences for bad input."""

from __future__ import annotations

import csv
import errno
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import NoReturn

import pytest

from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.figures import FIGURES
from live_migration.experiments.page_brownout import brownout_part
from live_migration.experiments.page_tables import choice_part, floor_part
from live_migration.experiments.report import read_results, report
from live_migration.experiments.results import FLOORS, NAME, Histogram, Result, append
from tests.experiments.report_help import LINKS, MIB, floor, put, result, sweep

NAMES = [one.name for one in FIGURES]
EMPTY_TAGS = {"meta", "img"}
PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "results"


class Page(HTMLParser):
    """What a browser would find: elements that are not closed, identifiers, what is loaded, the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "xlink:href", "src", "srcset", "data"):
                self.references.append(value or "")
            self.references += [f"#{found}" for found in re.findall(r"url\(#([^)]*)\)", value or "")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, text: str) -> None:
        self.words.append(text)

    @property
    def text(self) -> str:
        """All words, with single spaces."""
        return " ".join("".join(self.words).split())


def made(folder: Path) -> Page:
    """The report of a folder, with everything that holds for each."""
    report(folder, lambda text: None)
    for name in NAMES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert (page.wrong, page.open) == ([], [])
    assert {name for name, times in page.ids.items() if times > 1} == set()
    assert [one for one in page.references if one.startswith("#") and one[1:] not in page.ids] == []
    files = {f"{name}.png" for name in NAMES}
    assert {one for one in page.references if not one.startswith("#")} == files, "nothing is loaded from elsewhere"
    assert page.tags["script"] == page.tags["link"] == page.tags["svg"] == page.tags["image"] == 0
    assert page.tags["img"] == len(NAMES)
    assert {path.name for path in folder.iterdir()} - {NAME, FLOORS} == files | {"index.html"}
    assert "@import" not in text
    assert "url(http" not in text
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []
    return page


@pytest.mark.experiment
def test_one_run_of_one_size(tmp_path: Path) -> None:
    page = made(put(tmp_path, [result("stop-and-copy", dirty=None)]))
    assert "1 run in 1 setting" in page.text
    assert "No floor was measured" in page.text


def test_a_run_that_tells_nothing(tmp_path: Path) -> None:
    bare = result("hybrid", downtime_ms=None, reported_downtime_ms=None, total_ms=None, wire_bytes=None, pages=None,
                  pages_sent=None, pages_resent=None, faults=Histogram(), speed=None, moments_ms={}, rounds=[],
                  costs={}, samples={})  # fmt: skip
    made(put(tmp_path, [bare]))


@pytest.mark.experiment
def test_a_sweep_with_everything(tmp_path: Path) -> None:
    runs = sweep(memories=[64 * MIB, 512 * MIB], dirty=[0, 100 * MIB], runs=2)
    runs += sweep(memories=[64 * MIB], dirty=[10 * MIB], links=["wan"], runs=1)
    runs += sweep(memories=[64 * MIB], dirty=[None], runs=1, workload="redis")
    runs += [result(one, 64 * MIB, 0, peer="criu") for one in ("lazy-pages", "stop-and-copy")]
    runs += [result("", 64 * MIB, 0, peer="none", moments_ms={})]
    runs += [result("post-copy", 64 * MIB, 0, run=9, verified=False, error="the <data> & more was wrong")]
    page = made(put(tmp_path, runs, [floor(link) for link in LINKS]))
    for words in ("CRIU lazy-pages", "no migration", "the <data> & more was wrong", "A <processor> & more",
                  "floor over 1gbit", "97.6 Mbit/s", "holds"):  # fmt: skip
        assert words in page.text
    report(tmp_path, lambda text: None, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(runs)
    failed = [row for row in rows if row["verified"] == "no"]
    assert [row["error"] for row in failed] == ["the <data> & more was wrong"]
    assert {row["peer"] for row in rows} == {"", "criu", "none"}


@pytest.mark.experiment
def test_failed_runs_are_listed_and_not_drawn_and_files_change_only_with_the_results(tmp_path: Path) -> None:
    page = made(put(tmp_path, [result("post-copy", 64 * MIB, run=run) for run in range(2)], [floor()]))
    assert "Failed runs" not in page.text
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".png"}
    assert len(before) == len(NAMES)
    bad = result("post-copy", 64 * MIB, run=2, downtime_ms=9e4, verified=False, error="process 12: it is gone")
    put(tmp_path, [bad])
    assert "process 12: it is gone" in made(tmp_path).text
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_what_is_published_is_small_and_whole() -> None:
    files = {path.name: path.stat().st_size for path in PUBLISHED.iterdir()}
    assert set(files) == {NAME, FLOORS, "index.html", *(f"{name}.png" for name in NAMES)}
    assert sum(files.values()) < 2_000_000


def test_only_failed_runs(tmp_path: Path) -> None:
    page = made(put(tmp_path, [result("post-copy", verified=False, error=None)]))
    assert "its data was not as it should be" in page.text


def test_a_cell_that_was_run_again_counts_once(tmp_path: Path) -> None:
    put(tmp_path, [result("post-copy", verified=False, error="first"), result("post-copy")])
    assert [one.verified for one in read_results(tmp_path)] == [True]


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, [result("post-copy")])
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"version":1,"cell":{"workl')
    assert len(read_results(tmp_path)) == 1


def test_tables_of_all_settings() -> None:
    runs = sweep(runs=1, dirty=[0])
    chosen = str(choice_part(runs))
    assert chosen.count("<tr>") == 1 + 3, "the titles, and a setting for each size"
    assert "all alike" in chosen, "without writes, all send the same pages"
    ratios = str(floor_part(runs, [floor()]))
    assert "bare C pager" in ratios
    assert ratios.count("×") == 4 * 2 + 2, "four strategies, of which one has faults"


def test_the_brownout_stands_beside_stop_and_copy_s() -> None:
    text = str(brownout_part(sweep(runs=1, dirty=[0]), [floor()]))
    assert text.count("bare link") == 3, "a row for each size of the link whose floor is known"
    assert text.count("×") == 3 * 3 * 3, "three sizes, three other strategies, three measures"
    assert "Nothing was migrated" in str(brownout_part([], []))


def refused(folder: Path, status: Status = Status.BAD_DATA) -> str:
    """The sentence of a report that cannot be made."""
    with pytest.raises(ExperimentError) as caught:
        report(folder, lambda text: None)
    assert caught.value.status == status
    return str(caught.value)


def other_version() -> Result:
    one = result("post-copy")
    one.version = 7
    return one


def test_results_of_another_version(tmp_path: Path) -> None:
    assert "results of version 7, this lm-bench reads version 1" in refused(put(tmp_path, [other_version()]))


def test_a_floor_of_another_version(tmp_path: Path) -> None:
    put(tmp_path, [result("post-copy")])
    other = floor()
    other.version = 7
    append(tmp_path / "floor.jsonl", other)
    assert f"{tmp_path / 'floor.jsonl'}: results of version 7" in refused(tmp_path)


def test_folders_without_results(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "nothing")
    assert "it holds no results.jsonl" in refused(tmp_path)
    (tmp_path / NAME).write_bytes(b'{"version":1,')
    assert "it holds no finished run" in refused(tmp_path)


@pytest.mark.parametrize("line", [b"no JSON\n", b"[1]\n", b'{"version":1}\n', b'{"version":1,"\xff":1}\n'])
def test_damaged_results(tmp_path: Path, line: bytes) -> None:
    (tmp_path / NAME).write_bytes(line)
    assert f"{tmp_path / NAME}: a line is not a result of lm-bench" in refused(tmp_path)


@pytest.mark.parametrize(
    ("number", "status", "remedy"),
    [
        (errno.ENOSPC, Status.NO_SPACE, "free some space"),
        (errno.EACCES, Status.NO_PERMISSION, "make it writable"),
        (errno.EIO, Status.SYSTEM, "make it writable"),
    ],
)
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: Status, remedy: str
) -> None:
    def fail(self: Path, content: bytes) -> NoReturn:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(number, "cannot")

    put(tmp_path, [result("post-copy")])
    monkeypatch.setattr(Path, "write_bytes", fail)
    sentence = refused(tmp_path, status)
    assert sentence.startswith(f"{tmp_path / NAMES[0]}.png: it cannot be written: cannot; ")
    assert remedy in sentence
    assert [one.name for one in tmp_path.iterdir()] == [NAME]
