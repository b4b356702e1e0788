"""The status and the counters of a part of C that works by itself: a thin cover of status.h."""

from __future__ import annotations

from typing import Any

from live_migration._lm import ffi, lib


def wait(block: Any, state: int, timeout: float | None) -> int:
    """Wait until the state in a struct lm_status is no longer `state`, at most `timeout` seconds; return it then."""
    return int(lib.lm_status_wait(block, state, -1 if timeout is None else int(timeout * 1000)))


def cause(block: Any) -> str:
    """The cause of the state in a struct lm_status, "" if there is none."""
    buffer = ffi.new("char[256]")
    lib.lm_status_cause(block, buffer, 256)
    return bytes(ffi.string(buffer)).decode(errors="replace")


def counters(struct: str, memory: Any) -> dict[str, int]:
    """The counters of a `struct` of C in a piece of memory of its size, by their names."""
    block = ffi.from_buffer(f"struct {struct} *", memory)
    fields = ffi.typeof(f"struct {struct}").fields
    return {name: int(getattr(block, name)) for name, field in fields if field.type.kind == "primitive"}
