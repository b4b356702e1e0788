"""What follows from one run: quantities that figures, tables and findings share, and how they are written.

Units as in results.py: milliseconds, microseconds, bytes, bytes per second. None where a run does not tell.
"""

from __future__ import annotations

import math

from live_migration.experiments.results import Result

PAGE = 4096
WORKING_SET = "working_set_pages"
"""The sample that says how many pages the workload works on, of those that the process has."""


def downtime(result: Result) -> float | None:
    """Milliseconds without progress, by the closest observer there was: the process, its client, lm-restore."""
    for value in (result.downtime_ms, result.client_downtime_ms, result.reported_downtime_ms):
        if value is not None:
            return value
    return None


def observer(result: Result) -> str:
    """Who felt the downtime."""
    if result.downtime_ms is not None:
        return "the process"
    return "its client" if result.client_downtime_ms is not None else "lm-restore"


def page_multiple(result: Result) -> float | None:
    """Pages sent for each page of the process."""
    return result.pages_sent / result.pages if result.pages and result.pages_sent is not None else None


def bulk_rate(result: Result) -> float | None:
    """Memory that travelled per second of travelling, before compression: pages sent, over the time of the rounds and
    the time from the freeze to the last page."""
    frozen, complete = result.moments_ms.get("frozen"), result.moments_ms.get("complete")
    if not result.pages_sent:
        return None
    if frozen is None or complete is None:
        busy = result.total_ms or 0.0
    else:
        busy = complete - frozen + sum(round_times(result))
    return result.pages_sent * PAGE / busy * 1000 if busy > 0 else None


def round_times(result: Result) -> list[float]:
    """How long each round before the freeze lasted, milliseconds."""
    return [float(one.get("ms") or 0.0) for one in result.rounds]


def lost_ms(result: Result) -> float | None:
    """Operations lost until recovery, as milliseconds of work at the old speed."""
    speed = result.speed
    return speed.lost / speed.before * 1000 if speed is not None and speed.before > 0 else None


def dip_ms(result: Result) -> float | None:
    """What the dip at the handover cost: operations missing between the freeze and recovery, as milliseconds of work at
    the old speed. Unlike lost_ms without what the rounds before it cost."""
    speed, frozen = result.speed, result.moments_ms.get("frozen")
    if speed is None or speed.before <= 0 or frozen is None or not speed.timeline:
        return None
    end = speed.recovered_ms if speed.recovered_ms is not None else speed.timeline[-1][0] + speed.step_ms
    counts = [count for at, count in speed.timeline if at + speed.step_ms > frozen and at < end]
    return max(0.0, len(counts) * speed.step_ms - sum(counts) / speed.before * 1000)


def rounds_share(result: Result) -> float | None:
    """The speed while rounds were copied, as a share of the old speed."""
    speed = result.speed
    if speed is None or speed.during_rounds is None or speed.before <= 0:
        return None
    return speed.during_rounds / speed.before


def depth(result: Result) -> float | None:
    """How far the speed fell at the lowest, as a share of the old speed."""
    speed = result.speed
    return 1 - speed.lowest / speed.before if speed is not None and speed.before > 0 else None


def working_set(result: Result) -> float | None:
    """Pages that the workload works on, where the run tells."""
    value = result.samples.get(WORKING_SET)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def network_faults(result: Result) -> int:
    """Pages that came because they were touched: as lm-restore counted them, or as many faults as were timed. A process
    that times its own waits also counts those for the processor."""
    pages = (result.reports.get("restore") or {}).get("pages") or {}
    counted = pages.get("faulted")
    return counted if isinstance(counted, int) else result.faults.count


def fault_share(result: Result) -> float | None:
    """Faults over the network for each page of the working set."""
    pages = working_set(result)
    return network_faults(result) / pages if pages else None


def plain(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without exponents or zeros at its end: 0.05, 1.5, 12,000."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(milliseconds: float) -> str:
    """0.82 ms, 12.5 ms, 3.2 s."""
    if abs(milliseconds) >= 999.5:
        return f"{plain(milliseconds / 1000)} s"
    if milliseconds and abs(milliseconds) < 0.0995:
        return f"{plain(milliseconds * 1000)} us"
    return f"{plain(milliseconds)} ms"


def latency(microseconds: float) -> str:
    """82 us, 1.2 ms."""
    return f"{plain(microseconds)} us" if microseconds < 999.5 else duration(microseconds / 1000)


def size(amount: float) -> str:
    """64 MiB, 1.5 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(amount) >= unit:
            return f"{plain(amount / unit)} {name}"
    return f"{plain(amount)} bytes"


def rate(per_second: float) -> str:
    """10 MiB/s; 0 stays 0."""
    return f"{size(per_second)}/s" if per_second else "0"


def link_rate(per_second: float) -> str:
    """A link's rate, given in bytes per second, in the unit that links are sold in: 1 Gbit/s; 0 is no limit."""
    bits = per_second * 8
    if not bits:
        return "no limit"
    for unit, name in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits >= unit * 0.9995:
            return f"{plain(bits / unit)} {name}"
    return f"{plain(bits)} bit/s"


def dirty_words(value: float | None) -> str:
    """A dirty rate; None is a workload that writes as it likes."""
    return "its own" if value is None else rate(value)


def writing(value: float | None) -> str:
    """A dirty rate within a setting; nothing for a workload that writes as it likes."""
    return "" if value is None else f"writing {rate(value) if value else 'nothing'}"


def times(ratio: float, digits: int = 3) -> str:
    """A ratio: 1.4×."""
    return f"{plain(ratio, digits)}×"


def shortened(value: float) -> str:
    """1.2M, 233k."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{plain(value / unit)}{name}"
    return plain(value)
