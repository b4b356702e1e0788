"""The package of Debian 12, in a clean root, and the bill of what the bundle carries."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from live_migration.experiments.machines import start, wait_for
from live_migration.remote.bundle import PROGRAM, TOP
from tests.remote.conftest import Hosts
from tests.support import laws


def test_the_bill_of_what_is_carried() -> None:
    (archive,) = (laws.ROOT / "dist").glob("live-migration-*.tar.gz")
    with tarfile.open(archive) as content:
        files = {
            member.name.removeprefix(f"{TOP}/"): read.read()
            for member in content.getmembers()
            if member.isfile() and (read := content.extractfile(member))
        }
    text = files["sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    parts = [bill["metadata"]["component"], *bill["components"]]
    names = {part["name"] for part in parts}
    assert {"live-migration", "cpython", "pyinstaller", "msgspec", "zstandard", "libssl3", "libzstd1"} <= names
    assert all(part["version"] and part["purl"].startswith("pkg:") for part in parts)
    listed = {one["name"]: one["hashes"][0]["content"] for part in parts for one in part.get("components", [])}
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in listed} == listed
    binaries = {name for name in files if name == PROGRAM or re.search(r"\.so(\.|$)", name)}
    assert binaries <= listed.keys()


def test_a_package_in_a_clean_root(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    """It is installed, takes a process over, and goes without a trace."""
    (package,) = (laws.ROOT / "dist").glob("live-migration_*.deb")
    shutil.copy2(package, hosts.shared / "package.deb")
    hosts.far.run("dpkg", "--install", str(hosts.shared / "package.deb"))
    for name in ("lm-migrate", "lm-serve", "lm-restore"):
        assert hosts.far.run(name, "--help").startswith(f"usage: {name} ")
        assert hosts.far.path(f"/usr/share/man/man1/{name}.1.gz").exists()
        assert hosts.far.path(f"/usr/share/bash-completion/completions/{name}").exists()
    assert hosts.far.path("/lib/systemd/system/lm-restore@.service").exists()
    counting = hosts.count()
    ticket = hosts.shared / "ticket"
    line = [str(laws.ROOT / ".venv/bin/python"), "-m", "live_migration.cli.serve", str(counting.pid)]
    words = [f"--listen={hosts.near.address}:0", f"--ticket-file={ticket}"]
    serving = start(None, hosts.near.command(*line, *words), tmp_path, "serve", cwd=laws.ROOT)
    wait_for("the ticket", lambda: ticket.exists() or None, 60)
    hosts.far.run("lm-restore", "--detach", "--stdio=null", f"@{ticket}")
    assert serving.process.wait(60) == 0, serving.said()
    assert not counting.runs_here()
    counting.goes_on()
    hosts.far.run("dpkg", "--remove", "live-migration")
    assert not hosts.far.path("/usr/lib/live-migration").exists()
    assert not [name for name in os.listdir(hosts.far.path("/usr/bin")) if name.startswith("lm-")]
