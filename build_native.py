"""Builds the C side: one cffi extension module, live_migration._lm, and the programs.

C stands beside the Python whose work it does. Every header of a layer holds its Python-visible declarations
between the lines `/* cffi: begin */` and `/* cffi: end */`; they are collected here, in the order of the layers,
into one API-mode module, so that the compiler checks each against the C it describes. Headers are written in
terms of their folder (`#include "wire/channel.h"`).

The stub, an assembly file, is assembled here and handed over as an object: setuptools' compiler takes C alone, and how
it may be taught more has changed from version to version.

setup.py builds all of it, for an installation and, run as `python build_native.py`, in place: one way, so that the
extension has one name. LM_SANITIZE=address,undefined builds the extension with those sanitizers.
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
ARCHITECTURES = ROOT / "kernel" / "arch"
# This machine's.
ARCHITECTURE = ARCHITECTURES / platform.machine()
STUB = ROOT / "build" / "native" / "stub.o"
# Not parts of the extension: programs of their own, freestanding, without libc.
STATIC_PROGRAMS = {"restorer/husk.c": "restorer/bin/husk", "restorer/init.c": "restorer/bin/init"}
# With libc: programs that are started in place of a fork of Python, and do with a part of what the extension has.
SMALL_PROGRAMS = {
    "source_server/custodian.c": (
        "source_server/bin/lm-custodian",
        (
            "kernel/own_name.c",
            "kernel/pidfd.c",
            "process/descriptors/held_table.c",
            "process/descriptors/tcp_repair.c",
            "source_server/custody.c",
            "wire/decision.c",
            "wire/sha256.c",
        ),
    ),
}
BENCH = "experiments"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
STATIC_FLAGS = [
    "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie",
    "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-Wl,--build-id=none", "-Wl,-z,noseparate-code",
    "-Wl,-z,noexecstack", "-s",
]
# With libc, like the programs that anybody moves.
PROGRAM_FLAGS = ["-O2", "-pthread", "-lm"]


def is_for_this_machine(path: Path) -> bool:
    """Whether a file is not another architecture's."""
    return path.parent.parent != ARCHITECTURES or path.parent == ARCHITECTURE


def headers() -> list[Path]:
    """The headers with declarations for Python, layer by layer, each layer's in the order of their names."""
    return [
        path
        for layer in LAYERS
        for path in sorted((ROOT / layer).rglob("*.h"))
        if "/* cffi: begin */" in path.read_text() and is_for_this_machine(path)
    ]


def sources() -> list[str]:
    """The C files of the extension, relative to the project's top."""
    programs = STATIC_PROGRAMS.keys() | SMALL_PROGRAMS.keys()
    return [
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in sorted((ROOT / layer).rglob("*.c"))
        if str(path.relative_to(ROOT)) not in programs and is_for_this_machine(path)
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
        extra_objects=[str(STUB)],
        libraries=["zstd", "ssl", "crypto", "pthread"],
        # One file for every Python from 3.11 on, named _lm.abi3.so.
        py_limited_api=True,
        extra_compile_args=flags,
        extra_link_args=[f"-fsanitize={sanitize}"] if sanitize else [],
        depends=[str(path) for layer in LAYERS for path in (ROOT / layer).rglob("*.[hS]")],
    )
    return ffi


def build_stub() -> None:
    """Assemble the stub. Raises SystemExit where none has been written for this machine."""
    if not ARCHITECTURE.exists():
        raise SystemExit(f"{ARCHITECTURE.name} is not supported: there is no {ARCHITECTURE}, see kernel/arch/arch.h")
    STUB.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler(), "-c", "-iquote", str(ROOT), str(ARCHITECTURE / "stub.S"), "-o", str(STUB)]
    subprocess.run(command, check=True)


def compiler() -> str:
    """The C compiler, as setuptools finds it."""
    return os.environ.get("CC", "cc")


def build_programs() -> None:
    """Compile those that are not up to date: the husk, process 1 of a namespace, the custodian, and the programs of
    lm-bench.
    """
    for source, target in STATIC_PROGRAMS.items():
        _compile([ROOT / source, ARCHITECTURE / "start.S"], ROOT / target, STATIC_FLAGS)
    for source, (target, others) in SMALL_PROGRAMS.items():
        _compile([ROOT / source, *(ROOT / other for other in others)], ROOT / target, PROGRAM_FLAGS)
    for path in sorted((ROOT / BENCH).glob("*.c")):
        _compile([path], ROOT / BENCH / "bin" / path.stem, PROGRAM_FLAGS)


def _compile(parts: list[Path], output: Path, flags: list[str]) -> None:
    headers = [path for part in parts for path in part.parent.glob("*.h")]
    newest = max(path.stat().st_mtime for path in [*parts, *headers])
    if output.exists() and output.stat().st_mtime > newest:
        return
    output.parent.mkdir(exist_ok=True)
    words = [compiler(), "-std=gnu11", "-iquote", str(ROOT), *WARNINGS, *map(str, parts), "-o", str(output)]
    subprocess.run([*words, *flags], check=True)


def remove_other_extensions() -> None:
    """Remove what an earlier build left of the extension under another name: Python would prefer _lm.cpython-*.so."""
    for folder in (ROOT, ROOT / "live_migration"):
        for path in folder.glob("_lm.*"):
            if path.suffix in (".so", ".c", ".o") and path != ROOT / "live_migration" / EXTENSION:
                path.unlink()


def main() -> None:
    """Build everything in place, quietly unless it fails."""
    build_programs()
    command = [sys.executable, "-W", "ignore", "setup.py"]
    options = ["build_ext", "--inplace", "--build-temp", "build/native"]
    subprocess.run([*command, *([] if "-v" in sys.argv else ["-q"]), *options], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
