"""/proc/PID/maps and /proc/PID/smaps: the mappings of a process (proc_pid_maps(5), proc_pid_smaps(5))."""

from __future__ import annotations

from dataclasses import dataclass

from linux.errors import ProcessGone


@dataclass(frozen=True)
class MapEntry:
    """One mapping: addresses and the offset in bytes, `permissions` as four letters, `device` as major:minor in hex.

    `flags` are the two-letter VmFlags, known from smaps alone."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str
    flags: frozenset[str] = frozenset()


def maps_text(pid: int) -> bytes:
    """The raw text of /proc/PID/maps: equal texts mean equal layouts. Raises ProcessGone, PermissionError."""
    return _read(pid, "maps")


def maps(pid: int) -> list[MapEntry]:
    """All mappings in the order of their addresses. Raises ProcessGone, PermissionError."""
    return parse_maps(maps_text(pid))


def parse_maps(text: bytes) -> list[MapEntry]:
    """The mappings that a text of /proc/PID/maps lists."""
    return [_entry(line) for line in text.splitlines()]


def smaps(pid: int) -> list[MapEntry]:
    """All mappings with their flags. The kernel walks the memory for it: 13 ms per GiB of small pages.

    Raises ProcessGone, PermissionError."""
    entries: list[MapEntry] = []
    head = b""
    for line in _read(pid, "smaps").splitlines():
        if line.startswith(b"VmFlags:"):
            entries.append(_entry(head, frozenset(line[8:].decode().split())))
        elif not line[:1].isupper():
            head = line
    return entries


def _entry(line: bytes, flags: frozenset[str] = frozenset()) -> MapEntry:
    fields = line.split(None, 5)
    start, _, end = fields[0].partition(b"-")
    path = fields[5].decode("utf-8", "surrogateescape") if len(fields) > 5 else ""
    return MapEntry(
        int(start, 16),
        int(end, 16),
        fields[1].decode(),
        int(fields[2], 16),
        fields[3].decode(),
        int(fields[4]),
        path,
        flags,
    )


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
