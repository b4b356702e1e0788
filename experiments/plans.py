"""What a sweep varies, the cells that follow from it and their order, and what of it is done already."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.moves import STRATEGIES
from live_migration.experiments.results import NAME, Cell, Link, OtherVersion, read
from live_migration.experiments.workloads import KEYS, Toucher, variant_of

WORKLOADS = ("toucher", "redis", "python", "node", "sqlite")
PEERS = {"criu": ("stop-and-copy", "post-copy")}
"""Other programs that move processes, and which strategies each has; criu calls its post-copy lazy-pages."""
UNITS = {"": 1, "B": 1, "K": 2**10, "KiB": 2**10, "M": 2**20, "MiB": 2**20, "G": 2**30, "GiB": 2**30}


@dataclass(frozen=True)
class Plan:
    """What a sweep varies; sizes in bytes, rates in bytes per second, None: as the workload likes."""

    workloads: tuple[str, ...] = ("toucher",)
    strategies: tuple[str, ...] = STRATEGIES
    links: tuple[Link, ...] = (Link(name="loopback"),)
    memory: tuple[int, ...] = (64 * 2**20,)
    dirty_rates: tuple[int | None, ...] = (None,)
    runs: int = 1
    peers: dict[str, str] = field(default_factory=dict)
    toucher: Toucher = field(default_factory=Toucher)
    keys: str = KEYS[0]

    def cells(self, link: Link) -> Iterator[Cell]:
        """All cells of a link. Strategies take turns, so that what disturbs the machine for a while disturbs all."""
        for run in range(self.runs):
            for workload in self.workloads:
                variant = variant_of(workload, self.toucher, self.keys)
                for memory in self.memory:
                    for rate in self.dirty_rates:
                        for peer, strategy in self.movers():
                            yield Cell(
                                workload=workload, strategy=strategy, link=link.name, memory=memory, dirty_rate=rate,
                                peer=peer, run=run, variant=variant,
                            )  # fmt: skip

    def movers(self) -> list[tuple[str, str]]:
        """(peer, strategy): ours, then those of the peers that know a strategy that was asked for."""
        ours = [("", strategy) for strategy in self.strategies]
        return ours + [(peer, s) for peer in self.peers for s in self.strategies if s in PEERS[peer]]


def choose(text: str, what: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """A list with commas, or "all". ExperimentError (USAGE) naming the first that is not known."""
    words = tuple(dict.fromkeys(text.split(",")))
    if "all" in words:
        return known
    for word in words:
        if word not in known:
            raise ExperimentError(
                f"{what} {word!r}: there is none of that name; choose from {', '.join(known)}", Status.USAGE
            )
    return words


def parse_size(text: str, what: str = "--memory") -> int:
    """64MiB, 2G: bytes. ExperimentError (USAGE)."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text)
    if not matched or matched[2] not in UNITS:
        raise ExperimentError(f"{what} {text!r}: not an amount; say it as 512MiB or 2GiB", Status.USAGE)
    return int(float(matched[1]) * UNITS[matched[2]])


def parse_memory(text: str) -> tuple[int, ...]:
    """The sizes of --memory. ExperimentError (USAGE)."""
    sizes = tuple(dict.fromkeys(parse_size(word) for word in text.split(",")))
    if least := [size for size in sizes if size < 2**20]:
        raise ExperimentError(f"--memory {least[0]}: less than 1MiB is no workload; ask for more", Status.USAGE)
    return sizes


def parse_rates(text: str) -> tuple[int | None, ...]:
    """The rates of --dirty-rate: 0, 10MiB/s, own. ExperimentError (USAGE)."""
    words = dict.fromkeys(text.split(","))
    return tuple(None if w == "own" else parse_size(w.removesuffix("/s"), "--dirty-rate") for w in words)


def parse_peers(words: list[str]) -> dict[str, str]:
    """--peer NAME=PATH. ExperimentError (USAGE) for another name, or a file that is not there."""
    found = {}
    for word in words:
        name, _, path = word.partition("=")
        if name not in PEERS or not path:
            raise ExperimentError(f"--peer {word!r}: say it as {'=PATH or '.join(PEERS)}=PATH", Status.USAGE)
        if not Path(path).is_file():
            raise ExperimentError(f"--peer {name}: {path} is not a program; name its file", Status.USAGE)
        found[name] = str(Path(path).absolute())
    return found


def done_already(folder: Path) -> set[str]:
    """Keys of the cells whose verified results are in a folder. A torn last line, of a sweep that was killed, is
    removed. ExperimentError (BAD_DATA) when the file is of another version or no file of results."""
    path = folder / NAME
    if not path.exists():
        return set()
    try:
        keys = {result.cell.key() for result in read(path) if result.verified}
    except OtherVersion as error:
        raise ExperimentError(f"{error}; name another folder with -o", Status.BAD_DATA) from None
    except msgspec.MsgspecError as error:
        raise ExperimentError(
            f"{path}: not a file of results ({error}); name another folder with -o", Status.BAD_DATA
        ) from None
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    return keys
