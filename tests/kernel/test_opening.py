"""Opening what a path is said to lead to: nothing else, and nothing is waited for."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from live_migration.kernel.opening import TYPES, open_as


def make_all(folder: Path) -> dict[int, Path]:
    """A path of each type."""
    found = {stat.S_IFREG: folder / "file", stat.S_IFDIR: folder / "directory", stat.S_IFIFO: folder / "fifo"}
    found[stat.S_IFREG].write_bytes(b"content")
    found[stat.S_IFDIR].mkdir()
    os.mkfifo(found[stat.S_IFIFO])
    return found | {stat.S_IFCHR: Path("/dev/zero")}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_PATH])
def test_only_what_is_said(flags: int, tmp_path: Path) -> None:
    for file_type, path in make_all(tmp_path).items():
        for other in TYPES.keys() - {file_type}:
            with pytest.raises(OSError, match=r"it is not a|Not a directory"):
                open_as(other, str(path), flags)
    assert len(TYPES) == 4


def test_flags_are_those_asked_for(tmp_path: Path) -> None:
    for file_type, path in make_all(tmp_path).items():
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_NONBLOCK, os.O_PATH):
            number = open_as(file_type, str(path), flags)
            try:
                assert stat.S_IFMT(os.fstat(number).st_mode) == file_type
                found = fcntl.fcntl(number, fcntl.F_GETFL)
                assert found & (os.O_NONBLOCK | os.O_PATH | os.O_ACCMODE) == flags
                assert not os.get_inheritable(number)
                assert os.readlink(f"/proc/self/fd/{number}") == str(path)
            finally:
                os.close(number)


def test_the_device_that_is_said() -> None:
    os.close(open_as(stat.S_IFCHR, "/dev/null", os.O_RDWR, os.makedev(1, 3)))
    with pytest.raises(OSError, match="another device") as caught:
        open_as(stat.S_IFCHR, "/dev/null", os.O_RDWR, os.makedev(1, 5))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(FileNotFoundError):
        open_as(stat.S_IFREG, "/nonexistent/x", os.O_RDONLY)
