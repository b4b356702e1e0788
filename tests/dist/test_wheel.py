"""What `make dist` builds: it is installed into an empty environment and works there, without tree and compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine, start, wait_for
from tests.conftest import skip

ROOT = Path(__file__).resolve().parents[2]
# Of the machine's programs, what moves and lm-bench use. No compiler, no tools beside it.
TOOLS = ("ip", "nsenter", "sh")
OURS = ("cli", "remote", "kernel", "wire", "process", "pager", "source_server", "restorer", "experiments", "demo", "tests")

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Installed:
    """An environment with nothing but the wheel and what it needs."""

    folder: Path

    def path(self, command: str) -> str:
        return str(self.folder / "venv/bin" / command)

    @property
    def site_packages(self) -> Path:
        (found,) = (self.folder / "venv/lib").glob("python3*/site-packages")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """That of a machine where nobody can compile."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        return kept | {"PATH": str(self.folder / "tools")}

    def run(self, *words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run an installed command, far from the tree."""
        name, *arguments = map(str, words)
        done = subprocess.run(
            [self.path(name), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel, built anew."""
    done = subprocess.run(["make", "dist"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (ROOT / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an empty environment."""
    there = Installed(tmp_path_factory.mktemp("installed"))
    (there.folder / "tools").mkdir()
    for tool in TOOLS:
        where = shutil.which(tool)
        assert where
        (there.folder / "tools" / tool).symlink_to(where)
    assert not any(shutil.which(name, path=there.environment["PATH"]) for name in ("cc", "gcc", "clang", "ld"))
    subprocess.run([sys.executable, "-m", "venv", str(there.folder / "venv")], check=True)
    given = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "http", "HTTP", "SSL_"))}
    # lm-bench needs pyroute2 to measure; what it draws with is large, and has tests of its own.
    words = ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", str(wheel), "pyroute2"]
    done = subprocess.run(
        [there.path("pip"), *words], env=there.environment | given, cwd=there.folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return there


def test_the_wheel_is_for_every_python_from_3_11_on(wheel: Path) -> None:
    assert "-cp311-abi3-manylinux_2_" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    tops = {name.partition("/")[0].partition("-")[0] for name in names}
    assert tops == {"live_migration", "live_migration.libs"}
    assert [name for name in names if name.endswith(".so")] == ["live_migration/_lm.abi3.so"]
    for library in ("zstd", "ssl", "crypto"):
        assert any(name.startswith(f"live_migration.libs/lib{library}") for name in names)
    # Every file of Python and of data that is in the tree's folders, and nothing else that looks like one.
    package = ROOT / "live_migration"
    folders = [path for path in package.iterdir() if path.is_symlink()]
    kinds = (".py", ".js", ".css")
    here = {f"live_migration/{path.name}" for path in package.glob("*.py")}
    here |= {
        f"live_migration/{folder.name}/{path.relative_to(folder.resolve())}"
        for folder in folders
        for path in folder.resolve().rglob("*")
        if path.suffix in kinds
    }
    assert {name for name in names if name.endswith(kinds)} == here
    programs = {f"live_migration/experiments/bin/{path.stem}" for path in (ROOT / "experiments").glob("*.c")}
    programs |= {"live_migration/restorer/bin/husk", "live_migration/restorer/bin/init"}
    programs |= {"live_migration/source_server/bin/lm-custodian"}
    assert {name for name in names if "/bin/" in name and not name.endswith("/")} == programs
    assert {"live_migration/py.typed", "live_migration/_lm.pyi"} < {*names}


def test_one_name_is_installed(installed: Installed) -> None:
    assert not [name for name in OURS if (installed.site_packages / name).exists()]
    program = (
        "import importlib, json, pkgutil, sys\n"
        "import live_migration\n"
        "names = [m.name for m in pkgutil.walk_packages(live_migration.__path__, 'live_migration.')]\n"
        # What draws needs matplotlib.
        "left_out = [n for n in names if n.split('.')[-1].startswith(('draw', 'figures', 'page', 'report'))\n"
        "            and '.experiments.' in n]\n"
        "[importlib.import_module(n) for n in names if n not in left_out]\n"
        "print(json.dumps([[n, getattr(m, '__file__', None)] for n, m in sys.modules.items()]))"
    )
    modules = json.loads(installed.run("python", "-c", program).stdout)
    files = [file for name, file in modules if file and name != "__main__"]
    assert not [file for file in files if file.startswith(f"{ROOT}/")]
    ours = [file for file in files if "/live_migration/" in file]
    assert len(ours) == len({*ours}) > 150
    assert not {name for name, _ in modules} & {*OURS}


@pytest.mark.parametrize("command", ["lm-serve", "lm-restore", "lm-migrate", "lm-bench"])
def test_help(installed: Installed, command: str) -> None:
    assert installed.run(command, "--help").stdout.startswith(f"usage: {command} ")


COUNTER = """
import os, sys, time
memory = bytearray(os.urandom(1 << 20)) * 16
with open(sys.argv[1], "a") as log:
    for number in range(1 << 30):
        assert memory[number % 16 << 20] == memory[0]
        print(number, file=log, flush=True)
        time.sleep(0.002)
"""


def numbers(log: Path) -> list[int]:
    """What the counter has written, its last line only if it is whole."""
    return [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def await_numbers(log: Path, more: int) -> None:
    begin = len(numbers(log))
    wait_for("the counter", lambda: len(numbers(log)) >= begin + more or None, 60)


@pytest.mark.parametrize("strategy", ["post-copy", "pre-copy"])
def test_a_move_by_the_installed_commands(
    installed: Installed, machines: tuple[Machine, Machine], tmp_path: Path, orphans: None, strategy: str
) -> None:
    source, destination = machines
    log, ticket = tmp_path / "log", tmp_path / "ticket"
    counter = start(source, [sys.executable, "-c", COUNTER, str(log)], tmp_path, "counter", start_new_session=True)
    wait_for("the counter", lambda: log.exists() or None)
    await_numbers(log, 5)
    common = {"env": installed.environment, "cwd": installed.folder}
    words = [installed.path("lm-serve"), str(counter.process.pid), "--listen", f"{source.address}:0"]
    serve = start(source, [*words, "--ticket-file", str(ticket), "--json"], tmp_path, "serve", **common)
    wait_for("the ticket", lambda: ticket.exists() or None)
    words = [installed.path("lm-restore"), f"@{ticket}", f"--strategy={strategy}", "--detach", "--json"]
    restore = start(destination, [*words, "--stdio=null"], tmp_path, "restore", **common)
    restore.event("complete")
    assert restore.process.wait(60) == 0, restore.said()
    assert serve.process.wait(60) == 0, serve.said()
    await_numbers(log, 20)
    found = numbers(log)
    assert found == list(range(len(found)))


def test_a_move_by_the_installed_package(installed: Installed, tmp_path: Path, orphans: None) -> None:
    if os.geteuid() != 0:
        skip("moving a process needs root")
    log = tmp_path / "log"
    counter = start(None, [sys.executable, "-c", COUNTER, str(log)], tmp_path, "counter", start_new_session=True)
    wait_for("the counter", lambda: log.exists() or None)
    await_numbers(log, 5)
    program = (
        "import concurrent.futures, queue, live_migration\n"
        f"pid, tickets = {counter.process.pid}, queue.Queue()\n"
        "def on_event(event):\n"
        "    if event.name == 'listening':\n"
        "        tickets.put(event.details['ticket'])\n"
        "with concurrent.futures.ThreadPoolExecutor() as pool:\n"
        "    serving = pool.submit(live_migration.serve, pid, on_event=on_event)\n"
        "    there = live_migration.restore(tickets.get(timeout=60), detach=True)\n"
        "    print(serving.result(60).outcome, there.outcome)"
    )
    assert installed.run("python", "-c", program).stdout == "complete complete\n"
    await_numbers(log, 20)
    found = numbers(log)
    assert found == list(range(len(found)))


def test_lm_bench(installed: Installed, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip("network namespaces need root")
    words = ["run", "--memory", "8MiB", "--seconds", "0.3", "--strategy", "post-copy", "--link", "rtt=1ms"]
    installed.run("lm-bench", *words, "-o", tmp_path)
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert result["verified"]
    assert result["downtime_ms"] > 0
    # Drawing needs more packages, and says so.
    assert "live-migration[experiments]" in installed.run("lm-bench", "report", tmp_path, status=71).stderr
