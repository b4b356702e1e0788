"""The house's rules, checked on the files: which floor may use which, no circles, no callbacks, short files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "live_migration"
# What each folder may use beside the standard library, installed packages and _lm. Imports only go down.
MAY_USE = {
    "kernel": {"kernel"},
    "wire": {"wire"},
    "process": {"kernel", "wire", "process"},
    "pager": {"kernel", "wire", "pager"},
    "source_server": {"kernel", "wire", "process", "pager", "source_server"},
    "restorer": {"kernel", "wire", "process", "pager", "restorer"},
    "remote": {"wire", "remote"},
    "cli": {"wire", "source_server", "restorer", "remote", "cli"},
}
# The subfolders of kernel/, each of which may use those before it.
KERNEL_ORDER = ("arch", "memory", "tracing", "injection")
# Outside the house: only through the commands and their reports.
APART = ("demo", "experiments")
LIMIT = 600
"""Lines of a file."""
BEND = 400
"""Above so many lines a file is named in a warning: it may have a place where it bends."""


def python_files(folder: str) -> list[Path]:
    """Every Python file of a folder of the house."""
    return sorted((ROOT / folder).rglob("*.py"))


def house_folder(name: str) -> str:
    """The folder of the house that a module's name leads to, empty for modules from elsewhere."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in {*MAY_USE, *APART} else ""


def is_type_checking(node: ast.AST) -> bool:
    """True for `if TYPE_CHECKING:`, whose imports do not happen when the program runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
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
    """kernel/pidfd.py is live_migration.kernel.pidfd, kernel/__init__.py is live_migration.kernel."""
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wrong_imports(folder: str, allowed: set[str]) -> list[str]:
    """Imports of a folder that lead to a folder of the house it must not use, or are relative."""
    wrong = []
    for path in python_files(folder):
        for line, name in imports(path):
            place = house_folder(name)
            if name.startswith(".") or name.split(".")[0] in MAY_USE or (place and place not in allowed):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


@pytest.mark.parametrize("folder", MAY_USE)
def test_imports_only_go_down(folder: str) -> None:
    assert wrong_imports(folder, MAY_USE[folder]) == []


@pytest.mark.parametrize("folder", APART)
def test_demo_and_experiments_use_only_the_commands(folder: str) -> None:
    assert wrong_imports(folder, {"experiments"}) == []


def unit(path: Path) -> str:
    """The subfolder of a file, or the file itself where it stands beside subfolders."""
    return "/".join(path.relative_to(ROOT).parts[:2])


def subfolder_uses() -> dict[str, set[str]]:
    """Which unit uses which, in Python and in C."""
    found: dict[str, set[str]] = {}
    modules = {module_name(path): path for folder in MAY_USE for path in python_files(folder)}
    for path in modules.values():
        if path.name != "__init__.py":
            used = {modules[other] for _, other in imports(path) if other in modules}
            found.setdefault(unit(path), set()).update(unit(other) for other in used if other.name != "__init__.py")
    for folder in MAY_USE:
        for path in (ROOT / folder).rglob("*.[chS]"):
            found.setdefault(unit(path), set()).update(unit(ROOT / included) for included in includes(path))
    return {name: used - {name} for name, used in found.items()}


def includes(path: Path) -> list[str]:
    """The files of the house that a C file includes."""
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)


def assert_no_circle(uses: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        assert name not in way, "circle: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for used in sorted(uses.get(name, ())):
                walk(used, [*way, name])
            done.add(name)

    for name in sorted(uses):
        walk(name, [])


def test_no_circles_of_subfolders() -> None:
    uses = subfolder_uses()
    assert "kernel/tracing" in uses["kernel/injection"], "nothing is seen"
    assert_no_circle(uses)


def test_subfolders_of_the_kernel_only_use_lower_ones() -> None:
    """Its single files are used by them, or use them, and never both, a C file and its header taken as one."""
    uses = subfolder_uses()
    merged: dict[str, set[str]] = {}
    for name, used in uses.items():
        own = name.removesuffix(".c").removesuffix(".h")
        merged.setdefault(own, set()).update({other.removesuffix(".h") for other in used} - {own})
    assert_no_circle({name: used for name, used in merged.items() if name.startswith("kernel/")})
    folders = [f"kernel/{name}" for name in KERNEL_ORDER]
    assert {path.name for path in (ROOT / "kernel").iterdir() if path.is_dir()} - {"__pycache__"} == {*KERNEL_ORDER}
    upwards = {name: uses[name] & set(folders[place:]) for place, name in enumerate(folders)}
    assert {name: used for name, used in upwards.items() if used} == {}


def test_no_circles() -> None:
    modules = {module_name(path): path for folder in MAY_USE for path in python_files(folder)}
    # A package's __init__ is run before its modules: only a module it imports itself makes a circle.
    uses = {name: {used for _, used in imports(path) if used in modules} - {name} for name, path in modules.items()}
    assert f"{PACKAGE}.kernel.errors" in uses[f"{PACKAGE}.kernel.tracing.tracee"], "nothing is seen"
    assert_no_circle(uses)


@pytest.mark.parametrize("folder", MAY_USE)
def test_includes_only_go_down(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.[chS]")):
        for included in includes(path):
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
    kinds = (".py", ".c", ".h", ".S")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    for name, length in lengths.items():
        if length > BEND:
            print(f"{name} has {length} lines: does it bend somewhere?")
    assert {name: length for name, length in lengths.items() if length > LIMIT} == {}


def test_every_module_has_one_name() -> None:
    """The package's folders are links to those at the top: a file that is there in fact would be imported twice."""
    package = ROOT / PACKAGE
    assert {path.name for path in package.iterdir() if path.is_symlink()} == {*MAY_USE, "experiments"}
    folders = [path.name for path in package.iterdir() if path.is_dir() and not path.is_symlink()]
    assert [name for name in folders if name != "__pycache__"] == []


def test_the_extension_has_one_name() -> None:
    """Of two files Python would prefer _lm.cpython-*.so, however old it is."""
    assert [path.name for path in (ROOT / PACKAGE).glob("_lm*.so")] == ["_lm.abi3.so"]


IMPORT_ALL = """
import collections, importlib, os, pkgutil, sys
import live_migration
for module in pkgutil.walk_packages(live_migration.__path__, "live_migration."):
    importlib.import_module(module.name)
files = collections.defaultdict(list)
for name, module in sys.modules.items():
    if name != "__main__" and getattr(module, "__file__", None):
        files[os.path.realpath(module.__file__)].append(name)
print({path: names for path, names in files.items() if len(names) > 1 and "live_migration" in str(names)})
print(sorted(set(sys.modules) & set(sys.argv[1:])))
"""


def test_no_module_is_imported_twice() -> None:
    """At the top of the tree `import wire` would be found, too: nobody does that, not even by a name made up later."""
    words = [sys.executable, "-c", IMPORT_ALL, *MAY_USE, "experiments"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["{}", "[]"]
    for folder in ("demo", "tests"):
        assert wrong_imports(folder, {*MAY_USE, "experiments"}) == []
