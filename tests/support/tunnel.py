"""A tunnel between the two sides, as `ssh -L` is one: it can break with the source's decision in it, its ends close in
order or not, and it can be away for a while."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from live_migration._lm import lib
from live_migration.wire.handshake import Side

HELLO, ROLE_AT, SIDE_AT, DECISION = 64, 11, 10, 4
WORD = 48


@dataclass
class Tunnel:
    """What passes through it, and what it does to that.

    breaks     with the first word of these in it: nothing of that word comes out
    entirely   with every connection, not only the one of the decision
    in_order   its ends close by a FIN, not by a reset
    is_open    whether somebody who connects gets through
    """

    upstream: tuple[str, int]
    breaks: tuple[int, ...] = (lib.LM_WORD_COMMIT, lib.LM_WORD_NO)
    entirely: bool = False
    in_order: bool = True
    is_open: threading.Event = field(default_factory=threading.Event)
    broken: threading.Event = field(default_factory=threading.Event)
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it is entered."""
        return int(self.listener.getsockname()[1])

    def run(self) -> None:
        """Let in who comes, until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                entered = self.listener.accept()[0]
                if not self.is_open.is_set():
                    entered.close()
                    continue
                try:
                    pair = (entered, socket.create_connection(self.upstream))
                except OSError:
                    entered.close()
                    continue
                for one in pair:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.pairs.append(pair)
                threading.Thread(target=self.pass_on, args=pair, daemon=True).start()

    def pass_on(self, entered: socket.socket, beyond: socket.socket) -> None:
        """Pass on what comes, in both directions."""
        # A socket that another thread has closed is none that select(2) could wait for.
        with contextlib.suppress(OSError, ValueError):
            hello = entered.recv(HELLO, socket.MSG_WAITALL)
            beyond.sendall(hello)
            decides = len(hello) == HELLO and hello[ROLE_AT] == DECISION
            source = entered if decides and hello[SIDE_AT] == Side.SOURCE else beyond
            while True:
                for one in select.select([entered, beyond], [], [])[0]:
                    data = one.recv(1 << 16)
                    if decides and one is source and self.is_to_break(data):
                        self.end((entered, beyond))
                        return
                    if not data:
                        entered.shutdown(socket.SHUT_WR)
                        beyond.shutdown(socket.SHUT_WR)
                        return
                    (beyond if one is entered else entered).sendall(data)

    def is_to_break(self, data: bytes) -> bool:
        """Whether this is the word with which it breaks."""
        kind = struct.unpack_from("I", data)[0] if len(data) % WORD == 0 and data else 0
        return not self.broken.is_set() and kind in self.breaks

    def end(self, decision: tuple[socket.socket, socket.socket]) -> None:
        """Break, and let nobody in any more."""
        self.is_open.clear()
        self.broken.set()
        for one in [end for pair in (self.pairs if self.entirely else [decision]) for end in pair]:
            with contextlib.suppress(OSError):
                if self.in_order:
                    one.shutdown(socket.SHUT_RDWR)
                else:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()


@contextlib.contextmanager
def dug(upstream: tuple[str, int]) -> Iterator[Tunnel]:
    """A tunnel to an address, open."""
    tunnel = Tunnel(upstream)
    tunnel.is_open.set()
    running = threading.Thread(target=tunnel.run, daemon=True)
    running.start()
    try:
        yield tunnel
    finally:
        # Closed alone, it would not wake up who waits there; and who comes in yet has to be closed too.
        tunnel.listener.shutdown(socket.SHUT_RDWR)
        running.join(60)
        tunnel.listener.close()
        for pair in tunnel.pairs:
            for one in pair:
                one.close()
