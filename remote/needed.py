"""The files that a process uses, for --files copy: what they are, and what is in them.

A file is read by what the process itself has of it: a descriptor, a mapping, its executable (/proc/PID/fd, map_files,
exe). So no path leads astray, and nothing is read that the process could not read itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zstandard

PART = 1 << 20
"""Bytes of a file that travel at once."""
DELETED = " (deleted)"
OF_THE_KERNEL = ("/proc", "/sys", "/dev")
PRIVATE_ATTRIBUTES = ("security.selinux", "security.ima", "security.evm")
"""Labels that a host's own policy gives."""
READS_ALL = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
OPENED_FOR_WRITING = stat.S_IWUSR
"""So /proc/PID/map_files shows that the file was opened for writing."""


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory. Times in nanoseconds since the epoch.

    why         what the process has of it, for messages; empty for a directory that only leads to others
    identity    the same for the names of one file
    written     the process may write to it
    readable    the process may read it
    """

    path: str
    directory: bool
    why: str
    identity: str
    mode: int
    uid: int
    gid: int
    size: int
    accessed: int
    modified: int
    written: bool = False
    readable: bool = True


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What else belongs to one: the SHA-256 of its bytes (empty for a directory), its extended attributes (ACLs are
    some), and how many bytes it has that are no hole."""

    digest: str = ""
    attributes: dict[str, bytes] = {}
    amount: int = 0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a file, packed by zstd, and where what comes next begins; -1: nothing does."""

    offset: int
    packed: bytes
    next: int


@dataclass
class Uses:
    """What a process uses. `ways`: by which path of /proc each can be opened."""

    pid: int
    needed: dict[str, Needed] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)

    def found(self) -> list[Needed]:
        """All of it, directories before what is in them."""
        return [self.needed[path] for path in sorted(self.needed)]


def uses_of(pid: int) -> Uses:
    """The files that process `pid` uses by a path of theirs. Raises OSError.

    What has no path any more travels with the process. What nobody here can put in words (a path that is not UTF-8) is
    left out: lm-restore refuses the process if that is missing there."""
    uses = Uses(pid)
    _add(uses, f"/proc/{pid}/exe", "its executable", executed=True)
    for start_end, shared in _mappings(pid):
        way = f"/proc/{pid}/map_files/{start_end}"
        with contextlib.suppress(FileNotFoundError):
            written = shared and bool(os.lstat(way).st_mode & OPENED_FOR_WRITING)
            _add(uses, way, "mapped", written=written)
    for number in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        with contextlib.suppress(FileNotFoundError):
            flags = int(_field(pid, number), 8)
            written = flags & os.O_ACCMODE != os.O_RDONLY
            named = bool(flags & os.O_PATH) or flags & os.O_ACCMODE == os.O_WRONLY
            _add(uses, f"/proc/{pid}/fd/{number}", f"descriptor {number}", written=written, executed=named)
    _add(uses, f"/proc/{pid}/cwd", "its working directory")
    for path in list(uses.needed):
        for above in _directories_above(path):
            if above not in uses.needed:
                with contextlib.suppress(FileNotFoundError):
                    uses.needed[above] = _described(above, "", os.lstat(f"/proc/{pid}/root{above}"))
    return uses


def _mappings(pid: int) -> Iterator[tuple[str, bool]]:
    """The addresses of mappings of files, as map_files has them, and whether they are shared."""
    known = set()
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        place, rights, _, _, _, *rest = line.split(None, 5)
        name = rest[0] if rest else ""
        if name.startswith("/") and (name, rights[3]) not in known:
            known.add((name, rights[3]))
            yield "-".join(number.lstrip("0") or "0" for number in place.split("-")), rights[3] == "s"


def _field(pid: int, number: str) -> str:
    for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines():
        if line.startswith("flags:"):
            return line.split()[1]
    raise FileNotFoundError(number)


def _add(uses: Uses, way: str, why: str, *, written: bool = False, executed: bool = False) -> None:
    """Add what `way` leads to, if it is a file or directory that a path leads to. `executed`: that the process has it
    does not mean that it may read it."""
    path, status = os.readlink(way), os.stat(way)
    kind = stat.S_IFMT(status.st_mode)
    if not path.startswith("/") or kind not in (stat.S_IFREG, stat.S_IFDIR) or path.endswith(DELETED):
        return
    if path == "/" or any(path == one or path.startswith(f"{one}/") for one in OF_THE_KERNEL) or not _plain(path):
        return
    if not _leads_to(uses.pid, path, status):
        return
    readable = not executed or _may_read(uses.pid, status)
    known = uses.needed.get(path)
    if known is not None:
        written, readable = written or known.written, readable or known.readable
        why = known.why or why
    if known is None or (readable and not known.readable):
        uses.ways[path] = way
    one = _described(path, why, status)
    uses.needed[path] = msgspec.structs.replace(one, written=written, readable=readable)


def _plain(path: str) -> bool:
    """Can it be told, as it is?"""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in path


def _leads_to(pid: int, path: str, status: os.stat_result) -> bool:
    for place in (f"/proc/{pid}/root{path}", path):
        with contextlib.suppress(OSError):
            found = os.lstat(place)
            if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                return True
    return False


def _may_read(pid: int, status: os.stat_result) -> bool:
    """By owner, group and mode, or by its capabilities."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    user, group = (int(fields[name].split()[3]) for name in ("Uid", "Gid"))
    groups = {group, *map(int, fields["Groups"].split())}
    if int(fields["CapEff"], 16) & READS_ALL:
        return True
    if user == status.st_uid:
        return bool(status.st_mode & stat.S_IRUSR)
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid in groups else stat.S_IROTH))


def _described(path: str, why: str, status: os.stat_result) -> Needed:
    return Needed(
        path=path,
        directory=stat.S_ISDIR(status.st_mode),
        why=why,
        identity=f"{status.st_dev}:{status.st_ino}",
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        accessed=status.st_atime_ns,
        modified=status.st_mtime_ns,
    )


def _directories_above(path: str) -> Iterator[str]:
    while (path := os.path.dirname(path)) != "/":
        yield path


@contextlib.contextmanager
def opened(uses: Uses, path: str) -> Iterator[int]:
    """One of them, for reading. Raises OSError: ESTALE if something else is there by now."""
    one = uses.needed[path]
    way = uses.ways.get(path, f"/proc/{uses.pid}/root{path}")
    kind = os.O_DIRECTORY | (0 if path in uses.ways else os.O_NOFOLLOW) if one.directory else os.O_NONBLOCK
    number = os.open(way, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | kind)
    try:
        status = os.fstat(number)
        if f"{status.st_dev}:{status.st_ino}" != one.identity or stat.S_ISDIR(status.st_mode) != one.directory:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        yield number
    finally:
        os.close(number)


def content_of(uses: Uses, path: str) -> Content:
    """What is in it. Raises OSError."""
    with opened(uses, path) as number:
        attributes = {
            name: os.getxattr(number, name) for name in os.listxattr(number) if name not in PRIVATE_ATTRIBUTES
        }
        if uses.needed[path].directory:
            return Content(attributes=attributes)
        return Content(digest=digest_of(number), attributes=attributes, amount=_amount(number))


def digest_of(number: int) -> str:
    """The SHA-256 of an open file's bytes. Raises OSError."""
    with open(os.dup(number), "rb", buffering=0) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _amount(number: int) -> int:
    return sum(end - start for start, end in data_of(number))


def data_of(number: int) -> Iterator[tuple[int, int]]:
    """Where an open file has bytes that are no hole (lseek(2)). Raises OSError."""
    size, end = os.fstat(number).st_size, 0
    while end < size:
        try:
            start = os.lseek(number, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(number, start, os.SEEK_HOLE)
        yield start, end


def part_of(uses: Uses, path: str, offset: int) -> Part:
    """The bytes of a file from the first at or after `offset` that is in no hole. Raises OSError."""
    with opened(uses, path) as number:
        for start, end in data_of(number):
            if end > offset:
                begin = max(start, offset)
                data = os.pread(number, min(PART, end - begin), begin)
                packed = zstandard.ZstdCompressor(level=3).compress(data)
                return Part(offset=begin, packed=packed, next=begin + len(data) if data else -1)
    return Part(offset=offset, packed=b"", next=-1)
