"""Memory that arrives after the process: every page right, whatever the process does meanwhile."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.paging import moving


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled paged_program."""
    path = tmp_path_factory.mktemp("paging") / "paged_program"
    source = Path(__file__).with_name("paged_program.c")
    subprocess.run(["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", path], check=True)
    return path


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_faults_alone_bring_every_page(program: Path, kind: str) -> None:
    with moving(program, 300, kind) as move:
        assert move.destination.ask("check", 0, 300) == 0
        counters = move.pager.counters
        assert counters["wanted_pages"] == 0
        assert counters["remote_faults"] == 300
        move.complete()


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_bulk_alone_brings_every_page(program: Path, kind: str) -> None:
    with moving(program, 20000, kind) as move:
        move.complete()
        assert move.destination.ask("check", 0, 20000) == 0
        assert move.pager.counters["faults"] == 0


def test_random_faults_of_threads_beside_bulk(program: Path) -> None:
    with moving(program, 40000) as move:
        move.destination.send("threads", 40000, 8, 2000)
        move.complete()
        assert move.destination.answer() == 0
        assert move.destination.ask("check", 0, 40000) == 0
