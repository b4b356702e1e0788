"""Lists what a bundle carries, as CycloneDX (JSON): the interpreter, Python distributions and Debian packages, each
with its version, and with the SHA-256 of those of its files that lie in the bundle as they are.

Where everything came from is known from PyInstaller's own lists; whose it is, from the distributions of the
environment and from dpkg. What is nobody's ends the build.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

NAME = "sbom.cdx.json"
OWN = "live-migration"
STARTER = "pyinstaller"
"""Its bootloader is the program itself."""
INSIDE = "_internal"
KINDS = ("BINARY", "EXTENSION", "DATA", "PYMODULE")
STANDARD = "base_library.zip"
"""What PyInstaller makes of modules of the interpreter."""


def carried(work: Path) -> Iterator[tuple[str, Path]]:
    """What is in a bundle, as PyInstaller has written it down: the name of the file there, empty for a module, and
    where it came from."""
    for name in ("COLLECT-00.toc", "PYZ-00.toc"):
        written = ast.literal_eval((work / name).read_text())
        for destination, source, kind, *_ in next(part for part in written if isinstance(part, list)):
            if kind in KINDS and source not in ("", "-"):
                yield destination if name.startswith("COLLECT") else "", Path(source)


def distributions() -> dict[Path, metadata.Distribution]:
    """Whose the files of this environment are."""
    return {
        Path(str(one.locate_file(path))).resolve(): one for one in metadata.distributions() for path in one.files or ()
    }


def debian_package(path: Path) -> PackageURL:
    """The package that has installed a file. Raises LookupError."""
    names = {str(path), str(path.resolve())}
    # dpkg knows it under the name that the package has, from before or after /usr was merged.
    names |= {f"/usr{name}" for name in names} | {name.removeprefix("/usr") for name in names}
    done = subprocess.run(["dpkg-query", "--search", *sorted(names)], capture_output=True, text=True, check=False)
    owner = re.match(r"[^\s:,]+", done.stdout)
    if not owner:
        raise LookupError(f"the bundle carries {path}, which is nobody's")
    shown = ["dpkg-query", "--show", "--showformat=${Version}\n", owner[0]]
    version = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return PackageURL("deb", "debian", owner[0], version)


def of_python(name: str) -> PackageURL:
    """A distribution."""
    return PackageURL("pypi", name=re.sub("[-_.]+", "-", name).lower(), version=metadata.version(name))


def owners(root: Path, work: Path) -> dict[PackageURL, list[str]]:
    """Whose the parts of a bundle are, and which of its files."""
    known, standard = distributions(), Path(platform.__file__).resolve().parent
    found: dict[PackageURL, list[str]] = {of_python(STARTER): [], of_python(OWN): []}
    for name, given in carried(work):
        path = given.resolve()
        if path in known:
            url = of_python(known[path].metadata["Name"])
        elif name == STANDARD or path.is_relative_to(standard) or path.name.startswith("libpython"):
            url = PackageURL("generic", name="cpython", version=platform.python_version())
        elif path.is_relative_to(root):
            url = of_python(OWN)
        else:
            url = debian_package(given)
        files = found.setdefault(url, [])
        if name and name != STANDARD:
            files.append(f"{INSIDE}/{name}")
    return found


def write_bill(root: Path, work: Path, folder: Path, program: str) -> None:
    """Write the bill of materials of the bundle in a folder, into that folder. Raises LookupError."""
    found = owners(root, work)
    found[of_python(STARTER)].append(program)
    digests = {
        file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for files in found.values() for file in files
    }
    own = of_python(OWN)
    # The same content has the same bill.
    newest = int(max(path.stat().st_mtime for _, path in carried(work)))
    described = component(own, found.pop(own), digests, ComponentType.APPLICATION)
    bill = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, repr(sorted(digests.items()))),
        metadata=BomMetaData(component=described, timestamp=datetime.fromtimestamp(newest, UTC)),
        components=[component(url, files, digests, ComponentType.LIBRARY) for url, files in found.items()],
    )
    bill.register_dependency(described, bill.components)
    (folder / NAME).write_text(JsonV1Dot6(bill).output_as_string(indent=1) + "\n")


def component(url: PackageURL, files: list[str], digests: Mapping[str, str], kind: ComponentType) -> Component:
    """A package, with its files."""
    return Component(
        name=url.name, version=url.version, type=kind, purl=url, bom_ref=str(url),
        components=[
            Component(name=file, type=ComponentType.FILE, bom_ref=f"file:{file}",
                      hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digests[file])])
            for file in sorted({*files})
        ],
    )  # fmt: skip
