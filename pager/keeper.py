"""Keepers, and what they hold: how another pager goes on where one was killed (recovery.h)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from live_migration._lm import ffi, lib
from live_migration.kernel import pidfd
from live_migration.kernel.errors import check_errno
from live_migration.kernel.proc import proc_text, stat_fields
from live_migration.pager.pager import Pager

NAME = "lm-keeper"
LEDGER = "/memfd:lm-ledger"
USERFAULTFD = "anon_inode:[userfaultfd]"
LARGEST_NOTE = 64 << 20
LOCK_SECONDS = 10.0
PAUSE_SECONDS = 0.01


class TakenOver(Exception):
    """Somebody else goes on already."""


@dataclass(frozen=True)
class Keeper:
    """A keeper, process `pid`, of the memory of process `moved`.

    worker  the last pager's process id
    lives   whether that lives
    complete  whether every page is there, and only the source has not heard it
    ledger  the path by which the ledger is opened
    note    what the pager has kept for its successor
    """

    pid: int
    moved: int
    worker: int
    lives: bool
    complete: bool
    ledger: Path
    note: bytes


def find_keepers(proc: Path = Path("/proc")) -> Iterator[Keeper]:
    """Every keeper of ours. Raises PermissionError."""
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = proc_text(f"{process}/comm").strip()
            if name != NAME or process.stat().st_uid != os.geteuid():
                continue
            ledgers = (_keeper_of(process, process / "fd" / str(number)) for number in _descriptors(process, LEDGER))
            found = next(filter(None, ledgers), None)
            if found:
                yield found


def _descriptors(process: Path, target: str) -> Iterator[int]:
    """The process's descriptors that begin with `target`."""
    for name in os.listdir(process / "fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(process / "fd" / name).startswith(target):
                yield int(name)


def _keeper_of(process: Path, ledger: Path) -> Keeper | None:
    """None if the ledger does not count, or is another version's."""
    descriptor = os.open(ledger, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts, room = ffi.new("struct lm_ledger_facts *"), ffi.new("char[]", 1)
        if lib.lm_pager_facts(descriptor, facts, room, 0) or not facts.counts or facts.note > LARGEST_NOTE:
            return None
        room = ffi.new("char[]", facts.note or 1)
        check_errno(lib.lm_pager_facts(descriptor, facts, room, facts.note))
        note = bytes(ffi.buffer(room, facts.note))
    finally:
        os.close(descriptor)
    # When the worker has ended, its children have another parent.
    lives = int(stat_fields(int(process.name))[1]) == facts.worker
    return Keeper(int(process.name), facts.pid, facts.worker, lives, bool(facts.complete), ledger, note)


def recover(pager: Pager, keeper: Keeper, ledger: int = -1) -> None:
    """Fill a fresh pager with what a keeper holds whose worker is dead, and start it; that keeper leaves. `ledger`: as
    take_ledger has given it, if it has.

    Raises TakenOver, OSError (ESRCH: no process needs the memory any more)."""
    with contextlib.ExitStack() as undo:
        ledger = take_ledger(keeper) if ledger < 0 else ledger
        undo.callback(os.close, ledger)
        handle = pidfd.open_pidfd(keeper.pid)
        undo.callback(os.close, handle)
        found = []
        for number in _descriptors(keeper.ledger.parent.parent, USERFAULTFD):
            found.append((number, pidfd.fetch_descriptor(handle, number)))
        pager.recover(ledger, found)
        undo.pop_all()
        os.close(handle)
        pager.start()


def take_ledger(keeper: Keeper) -> int:
    """A descriptor of the ledger; while it is open nobody else gets one. Raises TakenOver, OSError."""
    ledger = os.open(keeper.ledger, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(ledger)
        facts = ffi.new("struct lm_ledger_facts *")
        check_errno(lib.lm_pager_facts(ledger, facts, ffi.new("char[]", 1), 0))
        if not facts.counts:
            raise TakenOver
    except BaseException:
        os.close(ledger)
        raise
    return ledger


def abandon(ledger: int) -> None:
    """Nobody needs what is in it any more: its keeper leaves. Closes the descriptor. Raises OSError."""
    try:
        check_errno(lib.lm_pager_abandon(ledger))
    finally:
        os.close(ledger)


def _lock(ledger: int) -> None:
    """The keeper has the lock for moments only."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK or time.monotonic() > end:
                raise TakenOver from None
        time.sleep(PAUSE_SECONDS)
