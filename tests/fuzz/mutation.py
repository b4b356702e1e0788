"""Changing valid inputs a little: bytes anywhere, or within MessagePack a value in its place, so that what is changed
is still read."""

from __future__ import annotations

import random
from typing import Any

import msgspec

ODD_NUMBERS = (0, 1, -1, 2, 255, 4095, 4096, 1 << 31, (1 << 32) - 1, 1 << 47, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63))
ODD_WORDS = ("", "/", "/\0", "a" * 300, "/tmp/../etc/passwd", "\x1b[2J", "é\u202e", "/proc/self/mem", "0:0")
ODD_BYTES = (b"", b"\0", b"\xff" * 64, b"/", b"\0name", b"/tmp/nothing\0x")


def mutate(data: bytes, numbers: random.Random) -> bytes:
    """A changed input."""
    if numbers.random() < 0.7:
        try:
            return mutate_value(data, numbers)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError, OverflowError, TypeError):
            pass
    return mutate_bytes(data, numbers)


def mutate_bytes(data: bytes, numbers: random.Random) -> bytes:
    """Some bytes changed, inserted, repeated or cut out."""
    changed = bytearray(data)
    for _ in range(numbers.randint(1, 4)):
        place = numbers.randint(0, len(changed))
        length = numbers.randint(1, 8)
        what = numbers.randrange(4)
        if what == 0 and place < len(changed):
            changed[place] ^= 1 << numbers.randrange(8)
        elif what == 1:
            changed[place:place] = numbers.randbytes(length)
        elif what == 2:
            del changed[place : place + length]
        else:
            changed[place:place] = changed[max(0, place - length) : place]
    return bytes(changed)


def mutate_value(data: bytes, numbers: random.Random) -> bytes:
    """MessagePack with some values changed in their places. Raises msgspec.DecodeError for what is none."""
    value = msgspec.msgpack.decode(data)
    for _ in range(numbers.randint(1, 3)):
        value = _changed(value, numbers)
    return msgspec.msgpack.encode(value)


def _changed(value: Any, numbers: random.Random) -> Any:
    if isinstance(value, dict) and value and numbers.random() < 0.95:
        key = numbers.choice(list(value))
        if numbers.random() < 0.03:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: _changed(value[key], numbers)}
    if isinstance(value, list) and value and numbers.random() < 0.95:
        place = numbers.randrange(len(value))
        if numbers.random() < 0.1:
            return numbers.choice([value[:place], value[place:], value + value[place : place + 1], value[::-1]])
        return [*value[:place], _changed(value[place], numbers), *value[place + 1 :]]
    if isinstance(value, bool) or value is None:
        return numbers.choice([True, False, None])
    if isinstance(value, int):
        return numbers.choice([*ODD_NUMBERS, _clamped(value + 1), _clamped(value - 1), _clamped(value << 3)])
    if isinstance(value, str):
        return numbers.choice([*ODD_WORDS, value + "x", value[:-1], value * 2])
    if isinstance(value, bytes):
        return numbers.choice([*ODD_BYTES, value[: len(value) // 2], mutate_bytes(value, numbers)])
    return numbers.choice([*ODD_NUMBERS, *ODD_WORDS, *ODD_BYTES, [], {}, 0.5])


def _clamped(number: int) -> int:
    return max(-(1 << 63), min(number, (1 << 64) - 1))
