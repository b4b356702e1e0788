"""Keys: what a secret that both sides share is worth on a connection.

The secret is the ticket's for the first connection, and for all others the session's own, which travelled inside the
first. It is never a key itself: HKDF (RFC 5869) makes of it, for each side that may connect and each role of a
connection, a tag, which says in clear which key is meant, and a key. So nobody is answered by himself, and what was
heard on one connection is of no use on another.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

TAG_BYTES = 16
KEY_BYTES = 32
_SALT = b"live-migration 3"


@dataclass(frozen=True)
class Keys:
    """What one connection needs of a secret. Only the tag may be seen by others."""

    tag: bytes
    key: bytes = field(repr=False)


def derive_keys(secret: bytes, connecting: int, role: int) -> Keys:
    """The keys of the connections on which side `connecting` takes up `role` (wire/handshake.py)."""
    whole = hkdf(secret, _SALT, b"%d connects as %d" % (connecting, role), TAG_BYTES + KEY_BYTES)
    return Keys(whole[:TAG_BYTES], whole[TAG_BYTES:])


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF with SHA-256 (RFC 5869, sections 2.2 and 2.3)."""
    pseudorandom = hmac.digest(salt, secret, "sha256")
    made, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(pseudorandom, block + info + bytes([number]), "sha256")
        made += block
    return made[:length]
