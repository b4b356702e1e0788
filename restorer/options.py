"""The options of lm-restore; cli/restore_options.py reads them from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from live_migration.wire.events import Watching
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.strategy import Parameters
from live_migration.wire.taken import TakenAddress


@dataclass(frozen=True)
class RestoreOptions:
    """The options of lm-restore.

    meeting       the ticket of the source, or where to listen
    reattach      instead of that: the process whose pages are to be brought again, 0: none
    source        where the source is now, for that
    parameters    the strategy and its limits, as lm-serve gets them
    pid           "keep", "namespace", or "auto": keep if the ids are free
    detach        exit when every page is in, and let the process live on
    stdio         "attach" or "null": what stands for descriptors 0 to 2 that lead outside
    files         "strict" (size and mtime), "size" or "trust"
    map_path      (old, new) prefixes of paths
    tcp           "keep", "close" or "refuse" established connections
    take_address  addresses that this host gets with the process
    netns         the name of the network namespace of the process, "": lm-restore's own
    max_memory    refuse a process with more bytes of memory
    allow_uid     users that a process may have; none: everybody
    allow_path    what it may have open, mapped, bound or as its directory; none: everything
    cpu           "strict", or "trust" that the process uses nothing that this processor lacks
    on_lost       what becomes of the process then: "wait" for its pages, "stop", or "poison" what is missing
    reconnect_timeout  seconds after which a connection that was lost after COMMIT is given up; None: never
    report        file for the report
    json, verbose how to tell
    json_fd       a descriptor that every event goes to, for a program that reads it
    watching      what programs are told
    """

    meeting: Meeting
    parameters: Parameters
    pid: str
    detach: bool
    stdio: str
    files: str
    map_path: tuple[tuple[str, str], ...]
    tcp: str
    cpu: str
    report: str | None
    json: bool
    verbose: int
    json_fd: int | None = None
    watching: Watching = field(default_factory=Watching)
    reconnect_timeout: float | None = None
    on_lost: str = "wait"
    reattach: int = 0
    source: tuple[str, int] | None = None
    max_memory: int | None = None
    allow_uid: tuple[int, ...] = ()
    allow_path: tuple[str, ...] = ()
    take_address: tuple[TakenAddress, ...] = ()
    netns: str = ""
