"""What /proc/PID tells of a process (proc(5)), each file read once: the snapshot is handed on, instead of the id."""

from __future__ import annotations

import functools
import os

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.proc import read_proc


class ProcessSnapshot:
    """A process as it is while this is used: a file is read when it is first needed, and stays what it was then.

    Everything raises ProcessGone when the process has ended, and PermissionError if it may not be read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        """The content of /proc/PID/NAME."""
        if name not in self._files:
            self._files[name] = read_file(self.pid, name)
        return self._files[name]

    def link(self, name: str) -> bytes:
        """Where /proc/PID/NAME leads."""
        if name not in self._files:
            try:
                self._files[name] = os.readlink(os.fsencode(f"/proc/{self.pid}/{name}"))
            except (FileNotFoundError, ProcessLookupError):
                raise ProcessGone(self.pid) from None
        return self._files[name]

    def in_our_namespace(self, kind: str) -> bool:
        """Does the process live in this process's namespace of this kind, a name in /proc/PID/ns?"""
        return self.link(f"ns/{kind}") == os.readlink(os.fsencode(f"/proc/self/ns/{kind}"))

    @property
    def status_text(self) -> bytes:
        """The raw lines of its status, proc_pid_status(5)."""
        return self.read("status")

    @functools.cached_property
    def status(self) -> dict[str, str]:
        """The lines of its status by name."""
        return parse_status(self.status_text)

    @functools.cached_property
    def stat(self) -> list[str]:
        """The fields of its stat; index n-1 is field n of proc_pid_stat(5)."""
        return parse_stat(self.read("stat"))

    @functools.cached_property
    def name(self) -> str:
        """Its name, for messages; "gone" where there is none any more."""
        try:
            return self.read("comm").decode(errors="replace").strip()
        except (OSError, ProcessGone):
            return "gone"

    @functools.cached_property
    def executable(self) -> str:
        """The path of its program."""
        return os.fsdecode(self.link("exe"))

    @functools.cached_property
    def thread_ids(self) -> list[int]:
        """Its threads, as this host sees their ids."""
        try:
            return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))
        except FileNotFoundError:
            raise ProcessGone(self.pid) from None

    def thread_status(self, tid: int) -> dict[str, str]:
        """The lines of a thread's status by name. Raises ProcessGone when the thread has ended."""
        if tid == self.pid:
            return self.status
        try:
            return parse_status(self.read(f"task/{tid}/status"))
        except ProcessGone:
            raise ProcessGone(tid) from None


def read_file(pid: int, name: str) -> bytes:
    """The content of /proc/PID/NAME as it is now. Raises ProcessGone, PermissionError."""
    try:
        return read_proc(f"/proc/{pid}/{name}")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def parse_status(raw: bytes) -> dict[str, str]:
    """The lines of a status by name, without the surrounding space."""
    lines = {}
    for line in raw.splitlines():
        name, separator, value = line.partition(b":")
        if separator:
            lines[name.decode()] = value.strip().decode("utf-8", "surrogateescape")
    return lines


def parse_stat(raw: bytes) -> list[str]:
    """The fields of a stat. The name may hold anything but its last ")"."""
    before, _, after = raw.decode(errors="surrogateescape").rpartition(")")
    pid, _, name = before.partition("(")
    return [pid.strip(), name, *after.split()]
