"""Files that were brought to this host for one process (--files copy), in a folder of their own.

Nothing of the host is overwritten. Where a file differs, the one that was brought is to lie over it. Where one is
missing, a *mirror* is to lie over the directory that it is missing from: what is missing stands in it, and for
everything else a place at which the directory's own files will be shown. Only the process sees that (laying.py). With
`place` what is missing is made at its path instead.

Paths come from the other host: each is walked without following a symbolic link, or within what was made here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zstandard

from live_migration.remote.needed import PART, PRIVATE_ATTRIBUTES, Content, Needed, Part, data_of, digest_of
from live_migration.wire.blockers import Blocker

FOLDER = Path("/var/lib/live-migration/files")
MIRRORS, OVER, CONTENTS, PLAN = "mirrors", "over", "contents", "plan"
SPARE = 64 << 20
"""Bytes that stay free in the file system."""
ACL = "system.posix_acl_"
STALE_NS = 60 * 10**9
"""A file that is written to may be on storage that both hosts share, and has been written to since the source looked;
lm-restore compares it when the process is frozen. One that was last written so long before that is another one."""
COPY = "copy it there with its times (rsync -a), or let both hosts share it"


class Lacking(msgspec.Struct, frozen=True, kw_only=True):
    """What this host does not have as it is at the source; `missing`, or it differs."""

    path: str
    missing: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to lie over what: numbers of mirrors with the directory of each and the names in it that are the host's;
    numbers of files with the path of each. `made`: inode and change time of what was made, by its path in the store."""

    mirrors: list[tuple[int, str, list[str]]]
    over: list[tuple[int, str]]
    made: dict[str, tuple[int, int]]


@dataclass
class Store:
    """A store that is being filled.

    lock     held as long as somebody fills it, or waits for the end of its process
    brought  what it holds, with its content
    placed   what was made at its path, the oldest first, with the inode: for taking it away again
    """

    folder: Path
    lock: int
    place: bool
    brought: dict[str, tuple[Needed, Content]] = field(default_factory=dict)
    placed: list[tuple[str, int]] = field(default_factory=list)


def compare(needed: list[Needed], *, place: bool) -> tuple[list[Lacking], list[Blocker]]:
    """What this host lacks of it, and why that cannot be brought."""
    lacking, blockers = [], []
    for one in needed:
        try:
            missing = _compare(one, place=place)
        except ValueError as error:
            cause, _, remedy = str(error).partition("; ")
            blockers.append(Blocker(f"{one.path} ({one.why})", cause, remedy))
            continue
        if missing is not None and (one.why or missing):
            lacking.append(Lacking(path=one.path, missing=missing))
    # A directory that only leads to others is made for those.
    asked = [one.path for one in needed if one.why]
    wanted = [one for one in lacking if one.path in asked or any(path.startswith(f"{one.path}/") for path in asked)]
    return wanted, blockers


def _compare(one: Needed, *, place: bool) -> bool | None:
    """Is it missing, or does it differ (False), or is it the same here (None)? Raises ValueError with a cause and a
    remedy: it cannot be brought."""
    _check_path(one.path)
    try:
        found = os.stat(one.path)
    except (FileNotFoundError, NotADirectoryError):
        if not one.why:
            return True
        above = _present_above(one.path)[0]
        if not os.path.isdir(above):
            raise ValueError(f"{above} is not a directory there; remove it there") from None
        if os.path.lexists(one.path):
            raise ValueError("it is a symbolic link that leads nowhere there; remove it there") from None
        missing = True
    except OSError as error:
        raise ValueError(f"{error.strerror} there; look at that path there") from None
    else:
        if not one.why:
            return None
        if stat.S_ISDIR(found.st_mode) != one.directory or not (one.directory or stat.S_ISREG(found.st_mode)):
            kind = "directory" if one.directory else "regular file"
            raise ValueError(f"it is not a {kind} there; remove it there")
        if one.directory or (found.st_size, found.st_mtime_ns) == (one.size, one.modified):
            return None
        if one.written and found.st_mtime_ns != one.modified and found.st_mtime_ns > one.modified - STALE_NS:
            return None
        missing = False
    how = "is missing" if missing else "differs"
    if one.written:
        raise ValueError(f"it {how} there, and is open for writing; {COPY}")
    if not one.readable:
        raise ValueError(f"it {how} there, and the process itself may not read it; {COPY}")
    if place and not missing:
        raise ValueError("it is another one there, and nothing is overwritten; use --files copy without =place")
    return missing


def _check_path(path: str) -> None:
    parts = path.split("/")
    if parts[0] or any(part in ("", ".", "..") for part in parts[1:]) or "\0" in path or len(path) > 4000:
        raise ValueError("the path is no plain one; let the process use another one")


def _present_above(path: str) -> tuple[str, str]:
    """The lowest directory above a path that is there, and what of the path is missing in it."""
    above, missing = os.path.split(path)
    while not os.path.lexists(above):
        above, name = os.path.split(above)
        missing = f"{name}/{missing}"
    return above, missing


def make(needed_bytes: int, *, place: bool) -> Store:
    """A new store with room for so many bytes. Raises OSError."""
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    room = os.statvfs(FOLDER)
    # Contents come first, and then the files.
    if 2 * needed_bytes + SPARE > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(FOLDER))
    folder = FOLDER / secrets.token_hex(8)
    folder.mkdir(mode=0o700)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        for name in (MIRRORS, OVER, CONTENTS):
            (folder / name).mkdir(mode=0o700)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        raise
    return Store(folder, lock, place)


def expect(store: Store, one: Needed, content: Content) -> bool:
    """This is to be brought; whether its bytes have to travel. Raises OSError, ValueError."""
    _check_path(one.path)
    store.brought[one.path] = (one, content)
    if one.directory or _content(store, content).exists():
        return False
    # The host may have the same bytes there, with another time.
    with contextlib.suppress(OSError):
        number = os.open(one.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(number)
            if stat.S_ISREG(status.st_mode) and status.st_size == one.size and digest_of(number) == content.digest:
                _copy(number, _content(store, content))
                return False
        finally:
            os.close(number)
    with open(_content(store, content), "xb") as file:
        file.truncate(one.size)
    return True


def _content(store: Store, content: Content) -> Path:
    if len(content.digest) != 64 or not content.digest.isalnum():
        raise ValueError("it has no SHA-256")
    return store.folder / CONTENTS / content.digest


def take(store: Store, path: str, part: Part) -> None:
    """Bytes of a file that is expected. Raises OSError, ValueError."""
    one, content = store.brought[path]
    data = zstandard.ZstdDecompressor().decompress(part.packed, max_output_size=PART) if part.packed else b""
    if len(data) > PART or part.offset < 0 or part.offset + len(data) > one.size:
        raise ValueError("more came than was described")
    with open(_content(store, content), "r+b", buffering=0) as file:
        file.seek(part.offset)
        while data:
            data = data[file.write(data) :]


def check(store: Store, path: str) -> bool:
    """Has all of it come, as it was described? Raises OSError, ValueError."""
    _, content = store.brought[path]
    with open(_content(store, content), "rb", buffering=0) as file:
        return digest_of(file.fileno()) == content.digest


def lay_out(store: Store) -> Plan:
    """Everything has come: make the files, and plan what is to lie over what. Raises OSError, ValueError."""
    missing = {path: _present_above(path) for path in store.brought if not os.path.lexists(path)}
    mirrors: dict[str, list[str]] = {}
    over: list[tuple[int, str]] = []
    with contextlib.ExitStack() as opened:
        making = _Making(store, opened)
        making.bases[OVER] = making.held(os.open(store.folder / OVER, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        for path in sorted(store.brought):
            if path not in missing:
                if not store.brought[path][0].directory:
                    _make(making, OVER, str(len(over)), path)
                    over.append((len(over), os.path.realpath(path)))
                continue
            above, relative = missing[path]
            directory = os.path.realpath(above)
            if directory not in making.bases:
                if store.place:
                    making.bases[directory] = making.held(open_unfollowed(above))
                else:
                    mirror = store.folder / MIRRORS / str(len(mirrors))
                    mirrors[directory] = _make_mirror(directory, mirror)
                    making.bases[directory] = making.held(os.open(mirror, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            _make(making, directory, relative, path)
        # Last, for what is made in a directory changes its times.
        for number, one in making.directories:
            os.utime(number, ns=(one.accessed, one.modified))
    for left in (store.folder / CONTENTS).iterdir():
        left.unlink()
    numbered = [(number, directory, names) for number, (directory, names) in enumerate(mirrors.items())]
    plan = Plan(mirrors=numbered, over=over, made=made_in(store.folder))
    (store.folder / PLAN).write_bytes(msgspec.json.encode(plan))
    return plan


@dataclass
class _Making:
    """What is open while files are made: the directories that they are made in, by name, those that were made, and each
    file that has several names."""

    store: Store
    opened: contextlib.ExitStack
    bases: dict[str, int] = field(default_factory=dict)
    directories: list[tuple[int, Needed]] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)

    def held(self, number: int) -> int:
        """A descriptor that is closed in the end."""
        self.opened.callback(os.close, number)
        return number


def _make_mirror(directory: str, mirror: Path) -> list[str]:
    """A directory like that one, with a place for each thing in it; symbolic links are made again. The names of the
    places."""
    mirror.mkdir(mode=0o700)
    names = []
    for entry in os.scandir(directory):
        place = mirror / entry.name
        if entry.is_symlink():
            status = entry.stat(follow_symlinks=False)
            place.symlink_to(os.readlink(entry.path))
            os.chown(place, status.st_uid, status.st_gid, follow_symlinks=False)
            continue
        if entry.is_dir(follow_symlinks=False):
            place.mkdir(mode=0o700)
        else:
            place.touch(mode=0o600)
        names.append(entry.name)
    status = os.stat(directory)
    number = os.open(mirror, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = {name: os.getxattr(directory, name) for name in os.listxattr(directory)}
        _give(number, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), attributes)
        os.utime(number, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(number)
    return names


def open_unfollowed(directory: str) -> int:
    """A directory of the host, where a symbolic link on the way has to be root's. Raises OSError."""
    place = ""
    for name in directory.split("/")[1:]:
        place += f"/{name}"
        status = os.lstat(place or "/")
        if stat.S_ISLNK(status.st_mode) and status.st_uid != 0:
            raise OSError(errno.ELOOP, "a symbolic link of another user is on the way", place)
    number = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in os.path.realpath(directory).split("/")[1:]:
        if name:
            number = _step(number, name)
    return number


def _step(directory: int, name: str) -> int:
    """Go down one directory, and close the upper one. Raises OSError."""
    try:
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def _make(making: _Making, base: str, relative: str, path: str) -> None:
    """Make a file or directory at `relative` below a directory. Raises OSError: nothing that is there is touched."""
    one, content = making.store.brought[path]
    *above, name = relative.split("/")
    parent = os.dup(making.bases[base])
    for step in above:
        parent = _step(parent, step)
    try:
        if one.directory:
            os.mkdir(name, 0o700, dir_fd=parent)
            number = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            making.directories.append((number, one))
        else:
            if one.identity in making.first:
                with contextlib.suppress(OSError):
                    os.link(f"/proc/self/fd/{making.first[one.identity]}", name, dst_dir_fd=parent)
                    _note_placed(making.store, base, relative, making.first[one.identity])
                    return
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            number = os.open(name, flags, 0o600, dir_fd=parent)
            making.first[one.identity] = number
    finally:
        os.close(parent)
    making.held(number)
    _note_placed(making.store, base, relative, number)
    if not one.directory:
        with open(_content(making.store, content), "rb", buffering=0) as source:
            _fill(source.fileno(), number)
    _give(number, one.uid, one.gid, one.mode, content.attributes)
    os.utime(number, ns=(one.accessed, one.modified))


def _note_placed(store: Store, base: str, relative: str, number: int) -> None:
    if store.place:
        store.placed.append((os.path.join(base, relative), os.fstat(number).st_ino))


def _copy(source: int, path: Path) -> None:
    with open(path, "xb", buffering=0) as file:
        _fill(source, file.fileno())


def _fill(source: int, number: int) -> None:
    """Copy a file's bytes into an empty one, with its holes. Raises OSError."""
    os.truncate(number, os.fstat(source).st_size)
    for start, end in data_of(source):
        while start < end:
            data = os.pread(source, min(PART, end - start), start)
            if not data:
                raise OSError(errno.EIO, "the file has become shorter")
            start += os.pwrite(number, data, start)


def _give(number: int, uid: int, gid: int, mode: int, attributes: dict[str, bytes]) -> None:
    """Owner, attributes and permissions, in this order: a new owner takes some of them away. Raises OSError."""
    os.fchown(number, uid, gid)
    for name in os.listxattr(number):
        # What the directory around it has given it.
        if name.startswith(ACL) and name not in attributes:
            os.removexattr(number, name)
    for name, value in attributes.items():
        if name not in PRIVATE_ATTRIBUTES:
            os.setxattr(number, name, value)
    os.fchmod(number, mode)


def made_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a store that may hold something, by its path there: files and symbolic links, with inode and change
    time."""
    found = {}
    for top in (MIRRORS, OVER):
        for place, _, names in os.walk(folder / top):
            for name in names:
                path = Path(place, name)
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFLNK):
                        found[str(path.relative_to(folder))] = (status.st_ino, status.st_ctime_ns)
    return found


def take_back(store: Store) -> None:
    """Nothing of it is needed: remove what was placed, as far as it is as it was made."""
    for path, inode in reversed(store.placed):
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if status.st_ino == inode:
                os.rmdir(path) if stat.S_ISDIR(status.st_mode) else os.unlink(path)
