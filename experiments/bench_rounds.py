"""The part of make bench that is about rounds: every strategy side by side, and what the rounds promise."""

from __future__ import annotations

from collections.abc import Callable

from live_migration.experiments.judgements import Judgement, at_least, at_most, shown
from live_migration.experiments.measures import Laboratory, Samples
from live_migration.experiments.measures_rounds import measure_writer

STRATEGIES = ("stop-and-copy", "pre-copy", "post-copy", "hybrid")
SIDE_MIB, SIDE_RATE = 512, 20
IDLE_MIB = 1024
LINK = 100
"""MiB/s that --bandwidth-limit leaves of the link where the process is to write half as fast, or twice."""
LINK_MIB = 256
SET_MIB, SET_RATE, SPREAD_RATE, SET_SHARE, SET_LINK = 512, 20, 100, 10, 60
COST_MIB = 1024
IDLE_DOWNTIME, FEWER_FAULTS, SLOW_KEEPS, FAST_KEEPS = 2.0, 0.2, 0.95, 0.5


def measures(laboratory: Laboratory) -> dict[str, Callable[[], Samples]]:
    """What is measured, by name."""
    link, narrow = ["--bandwidth-limit", f"{LINK}M"], ["--bandwidth-limit", f"{SET_LINK}M"]
    raw = ["--compress", "none"]

    def writer(strategy: str, mebibytes: int, rate: int, **more: object) -> Callable[[], Samples]:
        return lambda: measure_writer(laboratory, strategy, mebibytes, rate, **more)  # type: ignore[arg-type]

    patient = ["--max-freeze", "60"]
    found = {f"side {name}": writer(name, SIDE_MIB, SIDE_RATE, serve=patient) for name in STRATEGIES}
    found |= {f"idle {name}": writer(name, IDLE_MIB, 1, share=1) for name in ("post-copy", "pre-copy")}
    found["half the link"] = writer("pre-copy", LINK_MIB, LINK // 2, serve=[*link, *raw, *patient])
    found["twice the link"] = writer("pre-copy", LINK_MIB, LINK * 2, serve=[*link, *raw, *patient])
    for name in ("post-copy", "hybrid"):
        found[f"set {name}"] = writer(name, SET_MIB, SET_RATE, share=SET_SHARE, serve=[*narrow, *raw])
    for order in ("hot", "order"):
        found[f"spread {order}"] = writer(
            "post-copy",
            SET_MIB,
            SPREAD_RATE,
            share=SET_SHARE,
            spread=True,
            serve=[*narrow, *raw],
            restore=["--prefetch", order],
        )
    some_rounds = ["--max-downtime", "1", "--max-rounds", "4", "--on-no-convergence", "post-copy"]
    found["cost slow"] = writer("pre-copy", COST_MIB, LINK, restore=some_rounds)
    found["cost fast"] = writer("pre-copy", COST_MIB, 0, restore=some_rounds)
    return found


def judge(samples: dict[str, list[Samples]]) -> list[Judgement]:
    """The table's lines; ratios are taken between measurements of the same round."""

    def every(name: str, value: str) -> list[float]:
        return [float(one[value]) for one in samples[name] if one[value] is not None]

    def ratios(name: str, other: str, value: str) -> list[float]:
        pairs = zip(samples[name], samples[other], strict=True)
        return [float(one[value]) / max(float(two[value]), 1e-9) for one, two in pairs]

    lines = []
    for name in STRATEGIES:
        title, of = f"{name}, {SIDE_MIB} MiB, writes {SIDE_RATE} MiB/s", samples[f"side {name}"]
        lines += [
            shown(f"{title}: downtime", every(f"side {name}", "downtime_ms"), "ms"),
            shown("  total time", every(f"side {name}", "total_ms"), "ms"),
            shown("  on the wire", [one["wire_bytes"] / 2**20 for one in of], "MiB"),
            shown("  pages sent again", [one["pages"]["resent"] for one in of], ""),
            shown("  faults", every(f"side {name}", "faults"), ""),
        ]
    idle = ratios("idle pre-copy", "idle post-copy", "downtime_ms")
    lines.append(at_most(f"pre-copy's downtime, idle {IDLE_MIB} MiB, to post-copy's", idle, "x", IDLE_DOWNTIME))
    for name, wanted in (("half the link", "pre-copy"), ("twice the link", "hybrid")):
        fits = [float(one["strategy"] == wanted) for one in samples[name]]
        verb = "converges" if wanted == "pre-copy" else "falls back"
        lines.append(at_least(f"pre-copy {verb} at {name}'s rate of writes", fits, "", 1))
        lines.append(shown("  rounds", [len(one["rounds"]) for one in samples[name]], ""))
    lines.append(shown("post-copy: pages sent again", [one["pages"]["resent"] for one in samples["set post-copy"]], ""))
    fewer = ratios("set hybrid", "set post-copy", "faults")
    lines.append(at_most("hybrid's faults to post-copy's, a tenth is touched", fewer, "x", FEWER_FAULTS))
    lines.append(shown("  hybrid: pages sent again", [one["pages"]["resent"] for one in samples["set hybrid"]], ""))
    for order, title in (
        ("hot", "post-copy, hot pages first, a spread tenth is touched"),
        ("order", "  in plain order"),
    ):
        lines.append(shown(f"{title}: faults", every(f"spread {order}", "faults"), ""))
        lines.append(shown("    back at its speed after", every(f"spread {order}", "recovered_ms"), "ms"))
    for name, least, what in (("slow", SLOW_KEEPS, f"{LINK} MiB/s"), ("fast", FAST_KEEPS, "as fast as it can")):
        kept = every(f"cost {name}", "speed_kept")
        lines.append(at_least(f"speed kept during rounds, writes {what}", kept, "x", least))
    return lines
