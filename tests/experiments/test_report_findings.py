"""The findings: each with its three outcomes, and the arithmetic beneath them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from live_migration.experiments.drawing import wrapped
from live_migration.experiments.findings import Finding, Outcome, find
from live_migration.experiments.quantities import (
    bulk_rate,
    dip_ms,
    downtime,
    duration,
    link_rate,
    network_faults,
    plain,
    shortened,
    size,
)
from live_migration.experiments.results import Histogram, Result, Speed
from live_migration.experiments.summary import fullest, panels, spread
from tests.experiments.report_help import MIB, result, sweep

FEW = Histogram(count=1000)
MANY = Histogram(count=60_000)


def finding(results: list[Result], words: str) -> Finding:
    """The finding whose claim begins so."""
    found = [one for one in find(results) if one.claim.startswith(words)]
    assert len(found) == 1
    return found[0]


def at_rates(strategy: str, downtimes: tuple[float, float], sent: tuple[int, int]) -> list[Result]:
    """Three runs each at two dirty rates."""
    return [
        result(strategy, dirty=rate, run=run, downtime_ms=still + run / 100, pages=1000, pages_sent=pages)
        for rate, still, pages in zip((0, 100 * MIB), downtimes, sent, strict=True)
        for run in range(3)
    ]


@pytest.mark.parametrize(
    ("downtimes", "sent", "outcome"),
    [
        ((10, 100), (1000, 3000), Outcome.HOLDS),
        ((10, 10), (1000, 3000), Outcome.FAILS),
        ((10, 100), (1000, 1000), Outcome.FAILS),
    ],
)
def test_pre_copy_grows_in_both(downtimes: tuple[float, float], sent: tuple[int, int], outcome: Outcome) -> None:
    found = finding(at_rates("pre-copy", downtimes, sent), "Pre-copy's")
    assert found.outcome is outcome
    assert f"from {duration(downtimes[0] + 0.01)} to {duration(downtimes[1] + 0.01)}" in found.sentence


@pytest.mark.parametrize(
    ("downtimes", "sent", "outcome"),
    [
        ((5, 5.5), (1000, 1000), Outcome.HOLDS),
        ((5, 9), (1000, 1000), Outcome.FAILS),
        ((5, 5), (1000, 1500), Outcome.FAILS),
    ],
)
def test_post_copy_grows_in_neither(downtimes: tuple[float, float], sent: tuple[int, int], outcome: Outcome) -> None:
    assert finding(at_rates("post-copy", downtimes, sent), "Post-copy's downtime and").outcome is outcome


def test_noise_is_not_growth() -> None:
    quiet = [result("post-copy", dirty=0, run=run, downtime_ms=value) for run, value in enumerate((5, 6, 15, 16))]
    loud = [result("post-copy", dirty=MIB, run=run, downtime_ms=value) for run, value in enumerate((7, 13, 15, 16))]
    assert finding(quiet + loud, "Post-copy's downtime and").outcome is Outcome.HOLDS


def test_a_finding_that_fails_in_one_setting_tells_that_one() -> None:
    good = at_rates("pre-copy", (10, 100), (1000, 3000))
    bad = [result("pre-copy", 64 * MIB, dirty=rate, downtime_ms=7) for rate in (0, 10 * MIB)]
    found = finding(good + bad, "Pre-copy's")
    assert found.outcome is Outcome.FAILS
    assert "64 MiB" in found.sentence
    assert found.sentence.endswith("It holds in 1 of 2 settings.")


@pytest.mark.parametrize(("large", "outcome"), [(5.2, Outcome.HOLDS), (50, Outcome.FAILS)])
def test_memory(large: float, outcome: Outcome) -> None:
    runs = [result("post-copy", 64 * MIB, downtime_ms=5), result("post-copy", 2048 * MIB, downtime_ms=large)]
    found = finding(runs, "Post-copy's downtime does")
    assert found.outcome is outcome
    assert "From 64 MiB to 2 GiB" in found.sentence


def test_each_page_once() -> None:
    once = [result("post-copy", run=run, pages_sent=1000, pages_resent=0) for run in range(2)]
    assert finding(once, "Post-copy sends").outcome is Outcome.HOLDS
    twice = [*once, result("post-copy", run=2, pages_sent=1000, pages_resent=3)]
    found = finding(twice, "Post-copy sends")
    assert found.outcome is Outcome.FAILS
    assert found.sentence == "Of 3,000 pages that it sent in 3 runs, 3 (0.1 %) went again, in 1 of the runs."
    silent = [result("post-copy", pages_resent=None)]
    assert finding(silent, "Post-copy sends").outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(("faults", "outcome"), [(FEW, Outcome.HOLDS), (MANY, Outcome.FAILS)])
def test_network_faults(faults: Histogram, outcome: Outcome) -> None:
    found = finding([result("post-copy", faults=faults)], "Prefetch")
    assert found.outcome is outcome
    assert "Hines and Gopalan" in found.claim


def test_faults_are_counted_by_lm_restore_where_it_can() -> None:
    counted = {"restore": {"pages": {"faulted": 100}}, "serve": {}}
    assert finding([result("post-copy", faults=MANY, reports=counted)], "Prefetch").outcome is Outcome.HOLDS
    assert network_faults(result("post-copy", faults=FEW, reports={"restore": {}})) == 1000


def test_without_a_working_set_the_share_of_faults_is_unknown() -> None:
    assert finding([result("post-copy", faults=FEW, samples={})], "Prefetch").outcome is Outcome.UNKNOWN


def dipping(strategy: str, missing: float) -> Result:
    """A run that did nothing for so many milliseconds at the handover."""
    steps = [(float(at), 0.0 if 0 <= at < missing else 10.0) for at in range(-100, 1000, 10)]
    speed = Speed(step_ms=10, timeline=steps, before=1000, recovered_ms=missing, lost=missing)
    return result(strategy, speed=speed, moments_ms={"frozen": 0.0})


@pytest.mark.parametrize(("hybrid", "outcome"), [(20, Outcome.HOLDS), (80, Outcome.FAILS)])
def test_smallest_dip(hybrid: float, outcome: Outcome) -> None:
    runs = [dipping("hybrid", hybrid), dipping("post-copy", 50), dipping("pre-copy", 30)]
    found = finding(runs, "Hybrid")
    assert found.outcome is outcome
    assert f"hybrid lost the work of {hybrid} ms" in found.sentence
    assert "post-copy 50 ms, pre-copy 30 ms" in found.sentence


def test_nothing_is_found_in_nothing() -> None:
    assert {one.outcome for one in find([])} == {Outcome.UNKNOWN}
    assert {one.outcome for one in find([result("stop-and-copy")])} == {Outcome.UNKNOWN}


def test_neither_failed_runs_nor_peers_make_findings() -> None:
    def unverified(one: Result) -> Result:
        one.verified = False
        return one

    peers = [result("post-copy", dirty=rate, peer="criu") for rate in (0, MIB)]
    failed = [unverified(one) for one in at_rates("post-copy", (5, 5), (1000, 1000))]
    assert {one.outcome for one in find(peers + failed)} == {Outcome.UNKNOWN}


def test_a_plausible_sweep_decides_every_finding() -> None:
    assert Outcome.UNKNOWN not in {one.outcome for one in find(sweep(runs=2))}


def test_medians_and_quartiles() -> None:
    assert spread([3]) == spread([3.0])
    middle = spread([1, 2, 3, 4, 100])
    assert (middle.median, middle.low, middle.high, middle.count) == (3, 2, 4, 5)


def test_the_panel_is_the_fullest_setting() -> None:
    runs = [*sweep(dirty=[0], runs=1), *sweep(memories=[64 * MIB], dirty=[10 * MIB], runs=5)]
    panel = fullest(runs, downtime, "memory")
    assert panel is not None
    assert panel.setting.dirty_rate == 0
    assert {one.cell.memory for one in panel.results} == {64 * MIB, 512 * MIB, 2048 * MIB}
    assert fullest([], downtime) is None


def test_a_single_place_is_shown_only_where_nothing_else_is() -> None:
    one_size = sweep(memories=[64 * MIB], dirty=[None], runs=1, workload="redis")
    assert [one.setting.workload for one in panels(one_size, downtime, "memory", ["workload"])] == ["redis"]
    both = one_size + sweep(dirty=[0], runs=1)
    assert [one.setting.workload for one in panels(both, downtime, "memory", ["workload"])] == ["toucher"]


def test_variants_of_a_workload_are_settings_of_their_own() -> None:
    runs = sweep(memories=[64 * MIB], dirty=[0], runs=1)
    others = [msgspec.structs.replace(one, cell=msgspec.structs.replace(one.cell, variant="locality=zipf,threads=2"))
              for one in runs]  # fmt: skip
    shown = [one.setting.words() for one in panels(runs + others, downtime, None, ["workload", "link"])]
    assert shown == ["toucher, 64 MiB, writing nothing, over 1gbit",
                     "toucher (locality=zipf, threads=2), 64 MiB, writing nothing, over 1gbit"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short, and so on", "short, and so on"),
        ("rtt=20ms,rate=100mbit,loss=0.1%", "rtt=20ms,\nrate=100mbit,\nloss=0.1%"),
        ("rtt=1ms,a b", "rtt=1ms,a b"),
        ("averylongnamewithoutany", "averylongnamewithoutany"),
        ("", ""),
    ],
)
def test_long_names_are_wrapped(text: str, lines: str) -> None:
    assert wrapped(text, 16) == lines


def test_quantities() -> None:
    moved = result("post-copy", pages_sent=1000, moments_ms={"frozen": -10.0, "complete": 990.0}, rounds=[])
    assert bulk_rate(moved) == 4096_000
    moved.rounds = [{"ms": 1000.0}]
    assert bulk_rate(moved) == 2048_000
    assert downtime(result("post-copy", downtime_ms=None, client_downtime_ms=7, reported_downtime_ms=3)) == 7
    assert dip_ms(result("post-copy", speed=None)) is None


@pytest.mark.parametrize(
    ("words", "value", "text"),
    [
        (plain, 0.000123, "0.000123"), (plain, 1234.5, "1,234"), (plain, 2.0, "2"), (plain, 0, "0"),
        (duration, 0.05, "50 us"), (duration, 8.53, "8.53 ms"), (duration, 999.7, "1 s"), (duration, 74_000, "74 s"),
        (size, 1536 * MIB, "1.5 GiB"), (size, 100, "100 bytes"), (link_rate, 125e6, "1 Gbit/s"),
        (link_rate, 0, "no limit"), (shortened, 233_197, "233k"),
    ],
)  # fmt: skip
def test_numbers_in_words(words: Callable[[float], str], value: float, text: str) -> None:
    assert words(value) == text
