"""Manual pages and completion say what the parsers say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from live_migration.cli import manual


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual")
    assert manual.main([str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", manual.PARSERS)
def test_a_page_has_every_option(written: Path, name: str) -> None:
    text = (written / "man" / "man1" / f"{name}.1").read_text()
    assert text.startswith(f".TH {name.upper()} 1 ")
    for action in manual.PARSERS[name]()._actions:
        for option in action.option_strings:
            assert f"\\fB{manual.escaped(option)}\\fR" in text
    assert not [line for line in text.splitlines() if line.startswith("'")]
    requests = {line.split()[0] for line in text.splitlines() if line.startswith(".")}
    assert requests <= {".TH", ".SH", ".br", ".TP", ".nf", ".fi"}
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-ww", "-Tutf8"], input=text, capture_output=True, text=True)
        assert done.stderr == ""
        assert name in done.stdout


def complete(written: Path, home: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = (
        f'HOME={home}; . "{written}/bash-completion/lm-migrate"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_live_migration; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(written: Path, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host web-1 web-2\n  User root\nHost *.example\n")
    assert complete(written, tmp_path, "lm-migrate", "12", "web") == ["web-1", "web-2"]
    assert complete(written, tmp_path, "lm-migrate", "--via", "s") == ["ssh"]
    assert complete(written, tmp_path, "/usr/bin/lm-serve", "--max-f") == ["--max-freeze"]
    assert complete(written, tmp_path, "lm-restore", "--strategy", "h") == ["hybrid"]
    assert "1" in complete(written, tmp_path, "lm-serve", "")
    (tmp_path / "report").touch()
    assert complete(written, tmp_path, "lm-serve", "--report", f"{tmp_path}/rep") == [f"{tmp_path}/report"]
