"""Words of others (a peer, a program, a file's name) as they may be shown and told: nothing in them moves a cursor."""

from __future__ import annotations

from typing import Any

import msgspec


def one_line(text: str) -> str:
    """The text in one line, with everything escaped that does not print: control characters, which a terminal obeys,
    and bytes of file names that are not UTF-8."""
    return text if text.isprintable() else "".join(map(_shown, text))


def printable(text: str) -> str:
    """The same for text of several lines, whose ends are ours."""
    return text if text.isprintable() else "\n".join(map(one_line, text.split("\n")))


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def json_line(value: object) -> bytes:
    """A value as one line of JSON, in which everything is escaped that does not print; what is not UTF-8 stands as in
    `one_line`."""
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        text = msgspec.json.encode(_without_surrogates(msgspec.to_builtins(value))).decode()
    if not text.isprintable():
        # JSON itself escapes what ASCII has of it. All else can only be within a string.
        text = "".join(letter if letter.isprintable() else _json_escape(letter) for letter in text)
    return text.encode() + b"\n"


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(one) for key, one in value.items()}
    return [_without_surrogates(one) for one in value] if isinstance(value, list | tuple) else value
