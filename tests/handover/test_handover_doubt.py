"""The source's decision is lost on its way: nobody at the destination can know, so the husk is kept, stopped, until the
two sides reach each other again and the source is asked. Nobody and nothing has to be done by hand."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.experiments.machines import wait_for
from live_migration.wire.exit_codes import ExitCode
from tests.support import laws
from tests.support.doubt import custodians, doubt


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.mark.parametrize("in_order", [True, False], ids=["finished", "reset"])
@pytest.mark.parametrize("source_listens", [True, False], ids=["source-listens", "destination-listens"])
def test_commit_is_lost(source_listens: bool, in_order: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, source_listens=source_listens, in_order=in_order) as found:
        found.await_doubt()
        found.tunnel.is_open.set()
        assert found.move.restore.process.wait(60) == ExitCode.OK
        assert found.move.serve.process.wait(60) == ExitCode.OK
        found.goes_on()


@pytest.mark.parametrize("source_listens", [True, False], ids=["source-listens", "destination-listens"])
def test_the_no_is_lost(source_listens: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    """The process runs on at the source at once. lm-serve has left long ago, and its custodian tells it."""
    with doubt(program, tmp_path, source_listens=source_listens, fault="source-parked:fail") as found:
        assert found.move.serve.process.wait(60) == ExitCode.SYSTEM
        found.await_doubt()
        found.subject.await_progress()
        assert found.is_kept()
        found.tunnel.is_open.set()
        assert found.move.restore.process.wait(60) in (ExitCode.SYSTEM, ExitCode.LOST_BEFORE)
        laws.assert_untouched(found.subject)


@pytest.mark.parametrize("source_listens", [True, False], ids=["source-listens", "destination-listens"])
def test_the_tunnel_ends_with_commit_in_it(source_listens: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    """With every connection, in order: FIN is no no."""
    with doubt(program, tmp_path, source_listens=source_listens, entirely=True, strategy="stop-and-copy") as found:
        found.await_doubt()
        found.tunnel.is_open.set()
        found.goes_on()


@pytest.mark.parametrize("kill", ["worker", "serve", "both"])
def test_the_custodians_find_each_other(kill: str, program: Path, tmp_path: Path, orphans: None) -> None:
    """Whoever has died meanwhile."""
    with doubt(program, tmp_path, strategy="stop-and-copy") as found:
        found.await_doubt()
        if kill != "serve":
            os.kill(found.worker, signal.SIGKILL)
            assert found.move.restore.process.wait(60) == ExitCode.IN_DOUBT
            assert found.is_kept()
            os.kill(found.husk, signal.SIGCONT)
            assert found.is_kept()
        if kill != "worker":
            os.kill(found.move.serve.process.pid, signal.SIGKILL)
        found.tunnel.is_open.set()
        found.goes_on()
        wait_for("the end of the custodians", lambda: not custodians(found) or None, 60)


def test_the_custodians_find_each_other_after_a_no(program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, fault="source-parked:kill") as found:
        found.await_doubt()
        os.kill(found.worker, signal.SIGKILL)
        assert found.move.restore.process.wait(60) == ExitCode.IN_DOUBT
        assert found.is_kept()
        found.tunnel.is_open.set()
        laws.assert_untouched(found.subject)
        # Nobody has to look after it, and nothing is left by which somebody could.
        listed = found.list_source()
        assert (listed.returncode, f"process {found.subject.pid}" in listed.stderr) == (0, False)
        assert not list(Path("/dev/shm").glob(f"lm-*-{found.subject.pid}-*"))


def test_what_became_of_it_is_lost(program: Path, tmp_path: Path, orphans: None) -> None:
    """RESUMED, in the tunnel: everything goes on, and the custodians leave when it has been heard."""
    with doubt(program, tmp_path) as found:
        found.await_doubt()
        found.tunnel.broken.clear()
        found.tunnel.breaks = (lib.LM_WORD_ACKNOWLEDGED,)
        found.tunnel.is_open.set()
        assert found.move.restore.process.wait(60) == ExitCode.OK
        assert found.move.serve.process.wait(60) == ExitCode.OK
        found.tunnel.is_open.set()
        found.goes_on()
        wait_for("the end of the custodians", lambda: not custodians(found) or None, 60)


def test_a_husk_that_is_ended_by_hand(program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path) as found:
        found.await_doubt()
        husk = found.husk
        os.kill(husk, signal.SIGKILL)
        assert found.move.restore.process.wait(60) == ExitCode.IN_DOUBT
        assert f"process {husk}: was ended here while nobody knew" in found.said()
        found.tunnel.is_open.set()
        wait_for("the end of the custodian", lambda: not custodians(found) or None, 60)
        laws.assert_inert(found.subject)
