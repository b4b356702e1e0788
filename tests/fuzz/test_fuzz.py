"""A short form of `make fuzz`: the corpus, and some thousand inputs made of it by chance, the same each time."""

from __future__ import annotations

import random
import resource
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.mutation import mutate, mutate_bytes
from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"ticket": 5000, "opening": 3000, "control": 3000, "payloads": 3000, "description": 100}
C_COUNTS = {"frames": 20_000, "requests": 100_000, "discards": 1000, "values": 100_000, "maps": 20_000}
C_SOURCES = (
    "tests/fuzz/c/driver.c", "tests/fuzz/c/parsers.c", "tests/fuzz/c/discards.c", "wire/page_stream.c", "wire/values.c",
    "kernel/memory/maps.c", "pager/discard_list.c",
)  # fmt: skip
FLAGS = (
    "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-iquote", ".",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
)  # fmt: skip
MOST_KIB = 64 << 10


@pytest.mark.parametrize("name", TARGETS)
def test_python_parsers(name: str) -> None:
    target, numbers = TARGETS[name], random.Random(name)
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    for data in inputs:
        target(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change = mutate_bytes if name == "ticket" else mutate
    for number in range(COUNTS[name]):
        data = change(numbers.choice(inputs), numbers)
        try:
            target(data)
        except BaseException:
            print(f"input {number}: {data!r}")
            raise
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parsers in C, with sanitizers."""
    program = tmp_path_factory.mktemp("fuzz") / "driver"
    subprocess.run(["gcc", *FLAGS, *C_SOURCES, "-lzstd", "-o", str(program)], check=True, cwd=ROOT)
    return program


@pytest.mark.parametrize("name", C_COUNTS)
def test_c_parsers(driver: Path, name: str) -> None:
    seeds = sorted((CORPUS / name).iterdir())
    assert seeds
    subprocess.run([driver, name, "1", str(C_COUNTS[name]), *seeds], check=True, timeout=100)
