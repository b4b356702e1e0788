"""Builds the bundle, dist/live-migration-MACHINE.tar.gz: all that a host needs but a kernel and a C library.

PyInstaller puts the interpreter, the extension and their libraries into one folder. Manual pages, the list of its
files, what they are (build_sbom.py) and the version of the C library that they need come beside them
(remote/bundle.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import build_sbom
from live_migration.cli import manual
from live_migration.remote.bundle import LIBRARY, PROGRAM, TOP, pack, write_list
from live_migration.remote.bundled import COMMANDS

ROOT = Path(__file__).resolve().parent
WORK = ROOT / "build" / "bundle"
APART = ("live_migration.experiments", "matplotlib", "numpy", "PIL", "pyroute2", "tkinter", "setuptools", "pytest",
         "attr", "attrs", "cffi", "mypy", "pip", "unittest", "pydoc", "sqlite3", "distutils", "lib2to3",
         "ensurepip")  # fmt: skip


def modules() -> list[str]:
    """Every module that a command may import."""
    folders = [path for path in (ROOT / "live_migration").iterdir() if path.is_symlink() and path.name != "experiments"]
    files = [(folder, path) for folder in folders for path in folder.resolve().rglob("*.py")]
    names = [".".join((at.name, *path.relative_to(at.resolve()).with_suffix("").parts)) for at, path in files]
    return sorted(f"live_migration.{name.removesuffix('.__init__')}" for name in names)


def needed_library(folder: Path) -> str:
    """The newest version of the C library that a file asks for."""
    found: set[bytes] = set()
    for path in folder.rglob("*"):
        if path.is_file():
            found |= {*re.findall(rb"\0GLIBC_(2\.[0-9]+)(?=\0)", path.read_bytes())}
    newest = max(found, key=lambda version: int(version.partition(b".")[2]))
    return newest.decode()


def main() -> None:
    """Build it."""
    line = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR", "--onedir", f"--name={PROGRAM}",
            "--strip", f"--distpath={WORK}", f"--workpath={WORK}/work", f"--specpath={WORK}", f"--paths={ROOT}",
            "--copy-metadata=live-migration", "--hidden-import=_cffi_backend"]  # fmt: skip
    line += [f"--add-data={ROOT}/{side}/bin:live_migration/{side}/bin" for side in ("restorer", "source_server")]
    line += [f"--hidden-import={name}" for name in (*modules(), "live_migration._lm")]
    line += [f"--exclude-module={name}" for name in APART]
    subprocess.run([*line, str(ROOT / "remote" / "bundled.py")], check=True, cwd=ROOT)
    folder = WORK / PROGRAM
    for name in COMMANDS:
        (folder / name).symlink_to(PROGRAM)
    manual.main([str(folder / "share")])
    build_sbom.write_bill(ROOT, WORK / "work" / PROGRAM, folder, PROGRAM)
    (folder / LIBRARY).write_text(f"{needed_library(folder)}\n")
    write_list(folder)
    (ROOT / "dist").mkdir(exist_ok=True)
    archive = ROOT / "dist" / f"{TOP}-{os.uname().machine}.tar.gz"
    pack(folder, archive)
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
