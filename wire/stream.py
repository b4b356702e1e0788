"""A stream: a connected socket, and the TLS session on it. A thin cover of tls.h.

Nothing here waits. `receive` and `send` raise BlockingIOError when poll(2) has to show something first, and another
OSError when the connection is of no use any more; EBADMSG: what came was changed on its way.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.meeting_point import Certificates

RECORD_BYTES: int = lib.LM_TLS_RECORD_BYTES
KEY_BYTES: int = lib.LM_TLS_KEY_BYTES
CHANGED = "what came was changed on its way"
# What calls on a connection fail with when its end, or the way to it, is gone: not all of it is a ConnectionError.
_GONE = (errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENETRESET)


def means_lost(error: OSError) -> bool:
    """Whether a call failed because the connection is lost, and not for what this side did."""
    return isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _GONE


def _check(result: int) -> int:
    if result >= 0:
        return result
    raise OSError(-result, CHANGED if result == -errno.EBADMSG else os.strerror(-result))


class TlsContext:
    """What the TLS sessions of one side have in common. Raises LocalError (USAGE) for certificates that are useless."""

    def __init__(self, certificates: Certificates | None = None) -> None:
        made = ffi.new("struct lm_tls_context **")
        files = [ffi.NULL] * 3
        if certificates:
            files = [os.fsencode(path) for path in (certificates.certificate, certificates.key, certificates.authority)]
        error = lib.lm_tls_context_create(*files, made)
        if error and certificates:
            cause = f"{certificates.certificate}, {certificates.key} and {certificates.authority} cannot be used"
            raise LocalError(
                step="reading the certificates",
                object="--tls-cert, --tls-key and --tls-ca",
                cause=f"{cause}: {os.strerror(-error)}",
                remedy="give PEM files: a certificate, its own key, and the certificate of who signed the other host's",
                code=ExitCode.USAGE,
            )
        _check(error)
        self.certified = certificates is not None
        self.handle = ffi.gc(made[0], lib.lm_tls_context_destroy)


def ended_stream() -> Stream:
    """A stream whose other end has closed already, in the place of one that was lost."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return Stream(ours)


class Stream:
    """One end of a connection. It owns the socket; without `secure` there is no TLS on it.

    One thread may send while another receives. `close` while neither does.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._tls = ffi.NULL

    def secure(self, context: TlsContext, *, listening: bool, identity: bytes, key: bytes) -> None:
        """Begin a TLS session; `handshake` goes on with it. Raises OSError."""
        made = ffi.new("struct lm_tls **")
        _check(lib.lm_tls_create(context.handle, self.fileno(), listening, identity, key, made))
        self._tls = made[0]

    def handshake(self) -> None:
        """Go on with the handshake, to its end. Raises EACCES for a peer without the key, or a certificate that counts,
        EPROTO for one that speaks something else."""
        _check(lib.lm_tls_handshake(self._tls))

    def exported(self) -> bytes:
        """Bytes that only both ends of this TLS session know; zeros where there is none."""
        if self._tls == ffi.NULL:
            return bytes(KEY_BYTES)
        bound = ffi.new("uint8_t[]", KEY_BYTES)
        _check(lib.lm_tls_export(self._tls, bound))
        return bytes(bound)

    def link(self) -> Any:
        """A struct lm_link for C, which takes a duplicate and a share."""
        return ffi.new("struct lm_link *", (self.fileno(), self._tls))

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self.socket.fileno()

    def pending(self) -> bool:
        """Is there something to receive that poll(2) does not show?"""
        return bool(self._tls != ffi.NULL and lib.lm_tls_pending(self._tls))

    def receive(self, size: int) -> bytes:
        """Bytes that are there, at most `size`; empty when the peer has closed."""
        if self._tls == ffi.NULL:
            return self.socket.recv(size, socket.MSG_DONTWAIT)
        size = min(size, RECORD_BYTES)
        buffer = ffi.new("char[]", size)
        got = lib.lm_tls_read(self._tls, buffer, size)
        return b"" if got == -errno.EPIPE else bytes(ffi.buffer(buffer, _check(got)))

    def send(self, data: bytes | memoryview) -> int:
        """Send what can be sent at once of `data`; how much that was. After a BlockingIOError send the same again."""
        if self._tls == ffi.NULL:
            return self.socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return _check(lib.lm_tls_write(self._tls, ffi.from_buffer(data), len(data), len(data) > RECORD_BYTES))

    def shutdown(self) -> None:
        """End the connection in both directions, for all who share it."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give back the socket and the session."""
        self.socket.close()
        tls, self._tls = self._tls, ffi.NULL
        lib.lm_tls_put(tls)
