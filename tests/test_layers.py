"""The house's rules, checked on the files: which floor may use which, no circles, no callbacks, short files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each folder may use beside the standard library, installed packages and _lm. Imports only go down.
MAY_USE = {
    "linux": {"linux"},
    "wire": {"wire"},
    "process": {"linux", "wire", "process"},
    "pager": {"linux", "wire", "pager"},
    "source_server": {"linux", "wire", "process", "pager", "source_server"},
    "restorer": {"linux", "wire", "process", "pager", "restorer"},
}
# Outside the house: only through the commands and their reports.
APART = ("demo", "experiments")
LIMIT = 400
# Files over the limit, each with the reason why it stays one file.
LONG: dict[str, str] = {}


def python_files(folder: str) -> list[Path]:
    """Every Python file of a folder of the house."""
    return sorted((ROOT / folder).rglob("*.py"))


def is_type_checking(node: ast.AST) -> bool:
    """True for `if TYPE_CHECKING:`, whose imports do not happen when the program runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> list[tuple[int, str]]:
    """The modules that a file imports, anywhere in it, with the line: `from a.b import c` gives a.b.c and a.b."""
    found: list[tuple[int, str]] = []
    pending: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        if isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found += [(node.lineno, prefix), *((node.lineno, f"{prefix}.{name.name}") for name in node.names)]
        pending += ast.iter_child_nodes(node)
    return found


def module_name(path: Path) -> str:
    """linux/pidfd.py is linux.pidfd, linux/__init__.py is linux."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wrong_imports(folder: str, allowed: set[str]) -> list[str]:
    """Imports of a folder that lead to a folder of the house it must not use, or are relative."""
    wrong = []
    for path in python_files(folder):
        for line, name in imports(path):
            first = name.split(".")[0]
            if not first or (first in MAY_USE and first not in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


@pytest.mark.parametrize("folder", MAY_USE)
def test_imports_only_go_down(folder: str) -> None:
    assert wrong_imports(folder, MAY_USE[folder]) == []


@pytest.mark.parametrize("folder", APART)
def test_demo_and_experiments_use_only_the_commands(folder: str) -> None:
    assert wrong_imports(folder, set()) == []


def test_no_circles() -> None:
    modules = {module_name(path): path for folder in MAY_USE for path in python_files(folder)}
    uses = {name: {used for _, used in imports(path) if used in modules} for name, path in modules.items()}
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        assert name not in way, "circle: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for used in sorted(uses[name]):
                # A package's __init__ is run before its modules: only a module it imports itself makes a circle.
                if used != name:
                    walk(used, [*way, name])
            done.add(name)

    for name in sorted(modules):
        walk(name, [])


@pytest.mark.parametrize("folder", MAY_USE)
def test_includes_only_go_down(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).glob("*.[ch]")):
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            if included.split("/")[0] not in MAY_USE[folder] or not (ROOT / included).exists():
                wrong.append(f"{path.relative_to(ROOT)} includes {included}")
    assert wrong == []


def test_c_never_calls_python() -> None:
    """A callback would take the interpreter's lock on the way of a page."""
    files = [path for folder in MAY_USE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h")]
    pattern = re.compile(r'extern\s+"Python|ffi\.callback|def_extern|#\s*include\s*<Python\.h>')
    assert [str(path.relative_to(ROOT)) for path in files if pattern.search(path.read_text())] == []


def test_files_are_short() -> None:
    folders = (*MAY_USE, *APART, "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LIMIT and name not in LONG} == {}
    assert [name for name in LONG if lengths.get(name, 0) <= LIMIT] == [], "no longer over the limit"
