"""What is defined and used nowhere, or by tests alone: in Python found by vulture, in C by the names of functions."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parents[2]
# Folders whose files are no use of anything, or are not ours.
APART = {"tests", "stubs", "docs", "build"}
# Names that stay though nothing in the sources reads them, each with the reason.
PYTHON_EXCEPTIONS = {
    "arg_end": "struct prctl_mm_map",
    "arg_start": "struct prctl_mm_map",
    "auxv_size": "struct prctl_mm_map",
    "brk": "struct prctl_mm_map",
    "env_end": "struct prctl_mm_map",
    "env_start": "struct prctl_mm_map",
    "exe_fd": "struct prctl_mm_map",
    "start_brk": "struct prctl_mm_map",
    "set_tid_size": "struct clone_args",
    "signal_count": "struct lm_husk_custody",
    "FAULT": "a role, which the loops over all roles take",
    "begun_file": "struct lm_husk_custody",
    "IDLE": "a state that comes from C as a number",
    "DROPPED": "a state that comes from C as a number",
    "daemon_threads": "read by socketserver",
    "load": "a field of the results, for whoever reads them",
    "faulted": "a field of the report",
    "prefetched": "a field of the report",
    "resent": "a field of the report",
    "wire": "a field of the report",
    "fault_pages": "tests try windows of other sizes",
    "memory_source": "the page source that tests drive the pager from",
    "encoding": "read by rich, of a stream of text",
    "lasting": "processes of the other host of make test-ssh, which tests spare",
    "__getattr__": "called by Python for what a module does not have (PEP 562)",
    "make_ffi": "named in setup.py, and called by cffi",
}
C_EXCEPTIONS: dict[str, str] = {}
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# A declaration or a definition that begins its line and is not static. The parameters hold neither ; nor braces.
FUNCTION = re.compile(
    r"^(?!static\b|return\b|else\b)\w[\w \t*]*?\b(lm_\w+)(?=\([^;{}]*\)[^;{}()]*(?:\(\([^;{}]*\)\)\s*)?[;{])",
    re.MULTILINE,
)


def folders() -> list[Path]:
    """The folders of the sources; a link to one is not another one."""
    found = [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(path for path in found if path.name not in APART and not path.name.startswith(("_", ".")))


def sources(*endings: str) -> list[Path]:
    """The files of the sources with one of these endings."""
    found = [*(path for folder in folders() for path in folder.rglob("*")), *ROOT.iterdir()]
    return sorted(path for path in found if path.suffix in endings)


def unused_python(files: list[Path]) -> dict[str, str]:
    """What none of the files uses by its name: name -> what it is, and where."""
    found = Vulture()
    found.scavenge([str(path) for path in files])
    return {
        str(item.name): f"{item.typ} at {item.filename}:{item.first_lineno}"
        for item in found.get_unused_code(min_confidence=60)
    }


def unused_c(c: dict[str, str], python: list[str]) -> set[str]:
    """The functions that are declared or defined in C, and named neither in other places of it nor in Python."""
    declared: set[str] = set()
    named: Counter[str] = Counter()
    for text in c.values():
        plain = COMMENT.sub(" ", text)
        own = Counter(FUNCTION.findall(plain))
        declared |= own.keys()
        named.update(Counter(re.findall(r"\blm_\w+", plain)) - own)
    for text in python:
        named.update(re.findall(r"\blm_\w+", text))
    return {name for name in declared if not named[name]}


def test_python_that_nothing_uses() -> None:
    found = unused_python(sources(".py"))
    assert {name: where for name, where in found.items() if name not in PYTHON_EXCEPTIONS} == {}
    assert sorted(PYTHON_EXCEPTIONS.keys() - found) == [], "used by now, or gone"


def test_c_that_nothing_uses() -> None:
    c = {str(path): path.read_text() for path in sources(".c", ".h", ".S")}
    found = unused_c(c, [path.read_text() for path in sources(".py")])
    assert sorted(found - C_EXCEPTIONS.keys()) == []
    assert sorted(C_EXCEPTIONS.keys() - found) == [], "used by now, or gone"


def test_what_is_unused_is_found(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("def used() -> None: ...\n\n\ndef unused() -> None: ...\n")
    second.write_text("from first import used\n\nused()\n")
    assert list(unused_python([first, second])) == ["unused"]
    header = (
        "int lm_used(int number);\n/* lm_unused is told of in a comment. */\n"
        "struct lm_thing *lm_unused(\n    int number);\nlong lm_asked(void);\n"
    )
    source = "struct lm_thing *lm_unused(int number) {\n    return lm_used(number);\n}\nlong lm_asked(void) {\n}\n"
    assert unused_c({"one.h": header, "one.c": source}, ["lib.lm_asked()"]) == {"lm_unused"}
