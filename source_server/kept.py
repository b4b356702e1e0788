"""What lm-serve keeps in the file that it shares with its custodian (wire/custodians.py): another lm-serve can go on
from it when both were killed.

    0      struct lm_custody (custody.h)
    4080   which of two notes counts (u32), and the length of each (u32)
    4096   the notes, NOTE_BYTES each
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence

import msgspec

from live_migration.wire import messages
from live_migration.wire.kept_session import KeptSession
from live_migration.wire.messages import Numbered

NOTE_BYTES = 64 << 10
_PAGE = 4096
_HEAD = struct.Struct("=III")
_HEAD_AT = 4080
STATE_BYTES = _PAGE + 2 * NOTE_BYTES
# A help that is not worth its room.
EMPTY_HOT = messages.pack({})


class Posted(msgspec.Struct, frozen=True):
    """A message that the destination has not acknowledged."""

    message: messages.Signal | messages.Hot | messages.Goodbye


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The session, and how far it has come.

    space        of the process
    exit_status  of its copy
    pending      signals that were pending when they were looked at last, as masks, by thread id, 0: the process's
    """

    session: KeptSession
    space: int
    exit_status: int
    strategy: str = ""
    heard: int = 0
    serial: int = 0
    unheard: list[Posted] = []
    pending: dict[int, int] = {}


def advanced(kept: Kept, heard: int, serial: int, unheard: Sequence[Numbered], pending: Mapping[int, int]) -> Kept:
    """The same, as far as the session has come by now (ControlChannel.tell_progress)."""
    posted = []
    for message in unheard:
        if isinstance(message, messages.Hot):
            posted.append(Posted(messages.Hot(payload=EMPTY_HOT, serial=message.serial)))
        elif isinstance(message, messages.Signal | messages.Goodbye):
            posted.append(Posted(message))
    some = {tid: mask for tid, mask in pending.items() if mask}
    return msgspec.structs.replace(kept, heard=heard, serial=serial, unheard=posted, pending=some)


def keep(page: mmap.mmap, kept: Kept) -> None:
    """Write it; it counts as a whole, or not at all."""
    data = msgspec.msgpack.encode(kept)
    if len(data) > NOTE_BYTES:
        return
    current, *lengths = _HEAD.unpack_from(page, _HEAD_AT)
    following = 1 - current % 2
    begin = _PAGE + following * NOTE_BYTES
    page[begin : begin + len(data)] = data
    lengths[following] = len(data)
    # The length first; one store makes it count.
    page[_HEAD_AT + 4 : _HEAD_AT + 12] = struct.pack("=II", *lengths)
    page[_HEAD_AT : _HEAD_AT + 4] = struct.pack("=I", following)


def read_kept(page: mmap.mmap) -> Kept | None:
    """What was kept; None if that was nothing that can be read."""
    current, *lengths = _HEAD.unpack_from(page, _HEAD_AT)
    begin = _PAGE + current % 2 * NOTE_BYTES
    try:
        return msgspec.msgpack.decode(page[begin : begin + min(lengths[current % 2], NOTE_BYTES)], type=Kept)
    except msgspec.DecodeError:
        return None
