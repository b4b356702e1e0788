"""Moves to what takes itself for another host: lm-restore sees another boot id, all else is this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from live_migration.experiments.machines import Machine, Move
from live_migration.wire.exit_codes import ExitCode
from tests.support import programs_help
from tests.support.programs_list import all_programs
from tests.support.started import begin_move

BOOT = "/proc/sys/kernel/random/boot_id"
ELSEWHERE = f'mount --bind "$1" {BOOT} && shift && exec "$@"'
PROGRAM = next(program for program in all_programs() if program.name == "memory_shared_file")


class OtherHost:
    """A machine whose commands see the boot id in a file."""

    def __init__(self, machine: Machine, boot: Path) -> None:
        self.machine, self.address, self.boot = machine, machine.address, boot

    def command(self, *words: str) -> Any:
        """As of Machine."""
        boot = str(self.boot)
        return self.machine.command("unshare", "--mount", "sh", "-c", ELSEWHERE, "sh", boot, *words)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    programs_help.build()


@pytest.fixture(params=["/var/tmp", "/dev/shm"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """One on a disk, and one in memory."""
    path = Path(tempfile.mkdtemp(prefix="lm-other-host-", dir=request.param))
    yield path
    shutil.rmtree(path)


@pytest.mark.program
def test_a_file_that_is_mapped_to_be_written(
    folder: Path, tmp_path: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    """Both hosts must see what was stored into the mapping: on a disk it is written there, in memory nobody sees it."""
    boot = tmp_path / "boot"
    boot.write_text("11111111-2222-3333-4444-555555555555\n")
    running = programs_help.run(PROGRAM, folder, machines[0])
    running.wait_ready()
    hosts = machines[0], cast(Machine, OtherHost(machines[1], boot))
    move = begin_move(running.process.pid, hosts, tmp_path, restore=["--pid", "namespace"])
    if folder.is_relative_to("/dev/shm"):
        assert_refused(move)
        assert running.process.poll() is None
        return
    move.complete()
    running.say_moved()
    assert running.verdict() == "passed"


def assert_refused(move: Move) -> None:
    assert move.serve.process.wait(60) == ExitCode.REFUSED, move.said()
    assert "kept in this host's memory alone (tmpfs)" in move.serve.said()
    assert move.restore.process.wait(60) == ExitCode.REFUSED, move.said()
