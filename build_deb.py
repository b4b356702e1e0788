"""Builds a Debian package of the bundle, dist/live-migration_VERSION_ARCHITECTURE.deb, by dpkg-deb.

It is the bundle in /usr/lib/live-migration, with the commands in /usr/bin, manual pages, completion and the unit of
systemd at their places. It needs nothing but the C library: the interpreter is the bundle's.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from live_migration.remote.bundle import LIBRARY
from live_migration.remote.bundled import COMMANDS

ROOT = Path(__file__).resolve().parent
NAME = "live-migration"
CONTROL = """Package: {name}
Version: {version}
Section: admin
Priority: optional
Architecture: {architecture}
Maintainer: The live-migration project <live-migration@localhost>
Installed-Size: {size}
Depends: libc6 (>= {library})
Recommends: openssh-client
Description: move running processes to another host
 lm-migrate moves a running Linux process to another machine over ssh, where
 nothing has to be installed. By default it stops for milliseconds, and its
 memory follows (post-copy); lm-serve and lm-restore are the two sides.
"""


def packed(source: bytes, target: Path) -> None:
    """Write a file as Debian has it in /usr/share."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(source, mtime=0))


def lay_out(bundle: Path, folder: Path) -> None:
    """Everything at its place."""
    own, share = folder / "usr/lib" / NAME, folder / "usr/share"
    shutil.copytree(bundle, own, symlinks=True)
    (folder / "usr/bin").mkdir()
    for name in COMMANDS:
        (folder / "usr/bin" / name).symlink_to(f"../lib/{NAME}/{name}")
    for page in (bundle / "share/man/man1").iterdir():
        packed(page.read_bytes(), share / "man/man1" / f"{page.name}.gz")
    completions = share / "bash-completion/completions"
    completions.mkdir(parents=True)
    for name in COMMANDS:
        shutil.copy2(bundle / "share/bash-completion/lm-migrate", completions / name)
    units = folder / "lib/systemd/system"
    units.mkdir(parents=True)
    shutil.copy2(ROOT / "systemd/lm-restore@.service", units)
    shutil.copy2(ROOT / "systemd/lm-limits", folder / "usr/bin")
    packed((ROOT / "CHANGELOG.md").read_bytes(), share / "doc" / NAME / "changelog.gz")
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def main() -> None:
    """Build it of the bundle's archive."""
    work = ROOT / "build/deb"
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "root"
    (folder / "DEBIAN").mkdir(parents=True)
    subprocess.run(["tar", "-xzf", sys.argv[1], "-C", str(work)], check=True)
    lay_out(work / NAME, folder)
    asked = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    version, architecture = metadata.version(NAME), asked.stdout.strip()
    size = sum(path.lstat().st_size for path in folder.rglob("*")) // 1024
    library = re.sub("[^0-9.]", "", (work / NAME / LIBRARY).read_text())
    (folder / "DEBIAN/control").write_text(
        CONTROL.format(name=NAME, version=version, architecture=architecture, size=size, library=library)
    )
    target = ROOT / "dist" / f"{NAME}_{version}_{architecture}.deb"
    line = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(folder), str(target)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
