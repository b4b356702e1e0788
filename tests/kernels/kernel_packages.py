"""Debian's packages with other kernels, fetched and unpacked under build/kernels; nothing is installed on the host."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kernels"
SERIES = ("6.1", "6.12")
PACKAGE = r"linux-image-{series}\.[0-9][0-9a-z.+-]*-cloud-amd64"
FETCH_SECONDS = 240


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package: its series, the kernel's image, and the folder of its modules."""

    series: str
    image: Path
    modules: Path


def newest_package(series: str) -> str:
    """The name of the newest cloud kernel of a series that apt knows. Raises LookupError."""
    known = subprocess.run(
        ["apt-cache", "pkgnames", f"linux-image-{series}."], capture_output=True, text=True, check=True
    ).stdout.split()
    pattern = re.compile(PACKAGE.format(series=re.escape(series)))
    found = [name for name in known if pattern.fullmatch(name)]
    if not found:
        raise LookupError(f"apt knows no linux-image-{series}.*-cloud-amd64; run apt-get update, or use Debian 12")
    return max(found, key=lambda name: [int(number) for number in re.findall("[0-9]+", name)])


def unpacked(package: str) -> Path:
    """The folder with a package's files, fetched if it is not there yet. Raises subprocess.CalledProcessError."""
    folder = BUILD / package
    if folder.exists():
        return folder
    fetched = BUILD / "fetched"
    fetched.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-qq", "download", package], cwd=fetched, check=True, timeout=FETCH_SECONDS)
    archive = next(fetched.glob(f"{package}_*.deb"))
    unfinished = BUILD / f"{package}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    subprocess.run(["dpkg", "-x", str(archive), str(unfinished)], check=True)
    archive.unlink()
    unfinished.rename(folder)
    return folder


def kernel(series: str) -> Kernel:
    """The newest kernel of a series."""
    folder = unpacked(newest_package(series))
    return Kernel(series, next(folder.glob("boot/vmlinuz-*")), next(folder.glob("lib/modules/*")))


def busybox() -> Path:
    """A static busybox for the initramfs."""
    folder = unpacked("busybox-static")
    return next(path for path in folder.glob("**/bin/busybox") if path.is_file())
