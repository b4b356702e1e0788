"""What an agent does for --files copy: at the source it tells of files and reads them; at the destination it takes
them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import zstandard

from live_migration.remote import laying, needed, store

WAITING = "live_migration.remote.laying"
FAILURES = (OSError, ValueError, LookupError, zstandard.ZstdError)


@dataclass
class Errands:
    """What an agent knows: the files of the process at the source, the store at the destination and the mount
    namespace of the lm-restore that uses it, and what went wrong there while bytes came."""

    uses: needed.Uses | None = None
    store: store.Store | None = None
    namespace: int | None = None
    wrong: str = ""


def run_errand(errands: Errands, what: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Do what is asked for; the answer, with "error" if it has failed, or None where none is wanted."""
    try:
        return _run(errands, what, request)
    except FAILURES as error:
        known = isinstance(error, OSError) and error.filename is not None
        said = f"{error.filename}: {error.strerror}" if known and isinstance(error, OSError) else str(error)
        errands.wrong = errands.wrong or said
        return None if what == "take" else {"error": said}


def _run(errands: Errands, what: str, request: dict[str, Any]) -> dict[str, Any] | None:
    if what == "uses":
        errands.uses = needed.uses_of(request["pid"])
        return {"needed": errands.uses.found()}
    if what == "content":
        assert errands.uses is not None
        return {"content": needed.content_of(errands.uses, request["path"])}
    if what == "part":
        assert errands.uses is not None
        return {"part": needed.part_of(errands.uses, request["path"], request["offset"])}
    if what == "compare":
        laying.sweep()
        lacking, blockers = store.compare(_as(request["needed"], list[needed.Needed]), place=request["place"])
        return {"lacking": lacking, "blockers": blockers}
    if what == "store":
        errands.store = store.make(request["bytes"], place=request["place"])
        return {}
    taken = errands.store
    if taken is None:
        return None
    if what == "expect":
        one, content = _as(request["needed"], needed.Needed), _as(request["content"], needed.Content)
        return {"travels": store.expect(taken, one, content)}
    if what == "take":
        if not errands.wrong:
            store.take(taken, request["path"], _as(request["part"], needed.Part))
        return None
    if what == "taken":
        return {"error": errands.wrong} if errands.wrong else {"whole": store.check(taken, request["path"])}
    if what == "lay":
        store.lay_out(taken)
        return {}
    return None


def _as(content: Any, kind: Any) -> Any:
    """What came as JSON, as what it is. Raises ValueError."""
    return msgspec.json.decode(msgspec.json.encode(content), type=kind)


def hold_namespace(errands: Errands, pid: int) -> None:
    """Hold the mount namespace of lm-restore. In a PID namespace the process gets another one like it; but its files
    were opened in this one, and would lose their paths with it."""
    if errands.store is not None and errands.namespace is None:
        with contextlib.suppress(OSError):
            errands.namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def drop(errands: Errands, *, kept: bool = False) -> None:
    """The store is not filled any more. Unless its process may live (`kept`), what was placed is taken back. A process
    of its own waits for the end of whoever still sees it."""
    taken, errands.store = errands.store, None
    if taken is None:
        return
    if not kept:
        store.take_back(taken)
    if not taken.place and laying.users_of(taken.folder):
        line = [sys.executable, "-P", "-m", WAITING, str(taken.folder)]
        null = subprocess.DEVNULL
        held = [taken.lock, *([errands.namespace] if errands.namespace is not None else [])]
        subprocess.Popen(line, stdin=null, stdout=null, stderr=null, pass_fds=held, start_new_session=True)
    else:
        laying.remove(taken.folder)
    os.close(taken.lock)
    if errands.namespace is not None:
        os.close(errands.namespace)
        errands.namespace = None
