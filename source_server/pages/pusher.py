"""Pushes while the process stands still, by a thread beside the one that describes it.

Pushes are C and never hold the interpreter's lock, so both threads go on at once.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

from live_migration.kernel.errors import ProcessGone
from live_migration.source_server.pages.client import PageClient

Push = Callable[[], object]


class Work:
    """Something else that the thread does, and how it ended."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._done = threading.Event()
        self._error: Exception | None = None

    def __call__(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error
        self._done.set()

    def wait(self, seconds: float) -> None:
        """Wait until it is done. Raises its error, or TimeoutError."""
        if not self._done.wait(seconds):
            raise TimeoutError("it was not done in time")
        if self._error is not None:
            raise self._error


class Pusher:
    """A thread that makes one push after the other."""

    def __init__(self) -> None:
        self.failed: OSError | ProcessGone | None = None
        """The first error of a push: whoever waits for the pages waits in vain."""
        self._pushes: queue.SimpleQueue[Push | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (push := self._pushes.get()) is not None:
            try:
                push()
            except (OSError, ProcessGone) as error:
                self.failed = self.failed or error

    def do(self, push: Push) -> None:
        """Do this after all before it."""
        self._pushes.put(push)

    def begin(self, work: Callable[[], object]) -> Work:
        """Do this after all before it, for somebody who waits for its end."""
        begun = Work(work)
        self.do(begun)
        return begun

    def wait(self, seconds: float) -> bool:
        """Wait for everything that the thread was given; False when it was not done in time."""
        done = threading.Event()
        self._pushes.put(done.set)
        return done.wait(seconds)

    def close(self) -> None:
        """Wait for everything that the thread was given, and end it."""
        self._pushes.put(None)
        self._thread.join()


@contextlib.contextmanager
def pushing(client: PageClient) -> Iterator[Pusher]:
    """Within, a thread makes pushes. An error ends the client's connections, and with them the current push."""
    pusher = Pusher()
    try:
        yield pusher
    except BaseException:
        client.hang_up()
        raise
    finally:
        pusher.close()
