"""Builds the C side: one cffi extension module, live_migration._lm, and the small static programs.

C stands beside the Python whose work it does. Every header of a layer holds its Python-visible declarations
between the lines `/* cffi: begin */` and `/* cffi: end */`; they are collected here, in the order of the layers,
into one API-mode module, so that the compiler checks each against the C it describes. Headers are written in
terms of their folder (`#include "wire/channel.h"`).

The one assembly file is assembled here and handed over as an object: setuptools' compiler takes C alone, and whether it
may be taught more has changed from version to version.

setup.py builds it, for an installation and, run as `python build_native.py`, in place: one way, so that the extension
has one name. LM_SANITIZE=address,undefined builds the extension with those sanitizers.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent
LAYERS = ("kernel", "wire", "process", "pager", "source_server", "restorer")
EXTENSION = "_lm.abi3.so"
# Of kernel/arch/, the files of this machine's architecture, which begin with its name.
ARCHITECTURE = platform.machine()
STUB_SOURCE = ROOT / "kernel" / "arch" / f"{ARCHITECTURE}.S"
STUB_OBJECT = ROOT / "build" / "native" / "stub.o"
# Not parts of the extension: programs of their own, freestanding, without libc.
STATIC_PROGRAMS = {"restorer/husk.c": "restorer/bin/husk", "restorer/init.c": "restorer/bin/init"}
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
STATIC_FLAGS = [
    "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie",
    "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-Wl,--build-id=none", "-Wl,-z,noseparate-code",
    "-Wl,-z,noexecstack", "-s",
]


def headers() -> list[Path]:
    """The headers with declarations for Python, layer by layer, each layer's in the order of their names."""
    return [
        path
        for layer in LAYERS
        for path in sorted((ROOT / layer).rglob("*.h"))
        if "/* cffi: begin */" in path.read_text()
    ]


def sources() -> list[str]:
    """The C files of the extension, relative to the project's top."""
    return [
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in sorted((ROOT / layer).rglob("*.c"))
        if str(path.relative_to(ROOT)) not in STATIC_PROGRAMS
        if path.parent != STUB_SOURCE.parent or path.name.startswith(ARCHITECTURE)
    ]


def declarations() -> str:
    """Everything between the cffi markers of all headers, as one text for ffi.cdef."""
    parts = []
    for path in headers():
        for piece in path.read_text().split("/* cffi: begin */")[1:]:
            body, closed, _ = piece.partition("/* cffi: end */")
            if not closed:
                raise SystemExit(f"{path}: a cffi block is not closed")
            parts.append(body)
    return "\n".join(parts)


def make_ffi() -> cffi.FFI:
    """The builder of the extension module `live_migration._lm`, which setup.py names."""
    sanitize = os.environ.get("LM_SANITIZE", "")
    flags = ["-std=gnu11", "-O2", "-g", "-iquote", str(ROOT), *WARNINGS]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    ffi.set_source(
        "live_migration._lm",
        "\n".join(f'#include "{path.relative_to(ROOT)}"' for path in headers()),
        sources=sources(),
        extra_objects=[str(STUB_OBJECT)],
        libraries=["zstd", "pthread"],
        # One file for every Python from 3.11 on, named _lm.abi3.so.
        py_limited_api=True,
        extra_compile_args=flags,
        extra_link_args=[f"-fsanitize={sanitize}"] if sanitize else [],
        depends=[str(path) for layer in LAYERS for path in (ROOT / layer).rglob("*.[hS]")],
    )
    return ffi


def build_objects() -> None:
    """Build what setuptools cannot, before it is asked for the extension."""
    build_stub()
    build_static_programs()


def build_stub() -> None:
    """Assemble the stub. Raises SystemExit where it has not been written for this machine."""
    if not STUB_SOURCE.exists():
        raise SystemExit(f"this runs on x86-64 alone: there is no {STUB_SOURCE}, see kernel/arch/arch.h")
    STUB_OBJECT.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler(), "-c", "-iquote", str(ROOT), str(STUB_SOURCE), "-o", str(STUB_OBJECT)]
    subprocess.run(command, check=True)


def compiler() -> str:
    """The C compiler, as setuptools finds it."""
    return os.environ.get("CC", "cc")


def build_static_programs() -> None:
    """Compile the husk and process 1 of a namespace, each a static program of a few hundred bytes."""
    for source, target in STATIC_PROGRAMS.items():
        if not (ROOT / source).exists():
            continue
        output = ROOT / target
        output.parent.mkdir(exist_ok=True)
        if output.exists() and output.stat().st_mtime > (ROOT / source).stat().st_mtime:
            continue
        flags = ["-std=gnu11", "-iquote", str(ROOT), *WARNINGS, *STATIC_FLAGS]
        subprocess.run([compiler(), *flags, str(ROOT / source), "-o", str(output)], check=True)


def remove_other_extensions() -> None:
    """Remove what an earlier build left of the extension under another name: Python would prefer _lm.cpython-*.so."""
    for folder in (ROOT, ROOT / "live_migration"):
        for path in folder.glob("_lm.*"):
            if path.suffix in (".so", ".c", ".o") and path != ROOT / "live_migration" / EXTENSION:
                path.unlink()


def main() -> None:
    """Build everything in place, quietly unless it fails."""
    command = [sys.executable, "-W", "ignore", "setup.py"]
    options = ["build_ext", "--inplace", "--build-temp", "build/native"]
    subprocess.run([*command, *([] if "-v" in sys.argv else ["-q"]), *options], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
