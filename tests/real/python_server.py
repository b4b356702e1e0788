"""A Python program with threads, a listening socket and a large dict, moved by test_real_programs."""

from __future__ import annotations

import hashlib
import json
import socketserver
import sys
import threading
import time


def value(number: int) -> bytes:
    """A value that follows from its number."""
    return hashlib.shake_128(b"%d" % number).digest(1000)


ENTRIES = {f"key {number}": value(number) for number in range(int(sys.argv[2]))}
COUNTS = [0, 0, 0]
GENERATOR = iter(range(10**9))


def count(which: int) -> None:
    """Count for ever, by computing, by sleeping, and by waiting for a lock."""
    lock = threading.Lock()
    lock.acquire()
    while True:
        COUNTS[which] += 1
        if which == 0:
            sum(range(2000))
        elif which == 1:
            time.sleep(0.002)
        else:
            lock.acquire(timeout=0.003)


class Handler(socketserver.StreamRequestHandler):
    """One request a line."""

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"check\n":
                wrong = sum(ENTRIES[f"key {number}"] != value(number) for number in range(len(ENTRIES)))
                answer = {"entries": len(ENTRIES), "wrong": wrong, "counts": COUNTS, "next": next(GENERATOR)}
            else:
                ENTRIES[f"key {len(ENTRIES)}"] = value(len(ENTRIES))
                answer = {"entries": len(ENTRIES)}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    """A thread for every client."""

    allow_reuse_address = True
    daemon_threads = True


for index in range(3):
    threading.Thread(target=count, args=(index,), daemon=True).start()
with Server(("0.0.0.0", int(sys.argv[1])), Handler) as server:
    server.serve_forever()
