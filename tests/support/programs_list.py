"""The programs of tests/programs, and what their comments say."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "programs"
KEYS = ("feature", "limits", "serve", "restore", "stopped", "refused", "untracked", "timing")


@dataclass
class Program:
    """A program and the fields of its first comment (tests/programs/check.h says what they are)."""

    name: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def serve(self) -> list[str]:
        """More arguments for lm-serve."""
        return shlex.split(self.fields.get("serve", ""))

    @property
    def restore(self) -> list[str]:
        """More arguments for lm-restore."""
        return shlex.split(self.fields.get("restore", ""))

    @property
    def refused(self) -> str:
        """A word of the blocker, for one that cannot be moved."""
        return self.fields.get("refused", "").strip()

    def becomes(self, strategy: str) -> str:
        """The strategy that it comes to be moved by: hybrid is post-copy for one whose writes cannot be tracked."""
        return "post-copy" if "untracked" in self.fields and strategy == "hybrid" else strategy

    @property
    def alone(self) -> bool:
        """What becomes of it depends on how fast the machine is, so that nothing may run beside it."""
        return "timing" in self.fields

    @property
    def stopped(self) -> bool:
        """Moved in a group-stop, and continued by SIGCONT afterwards."""
        return "stopped" in self.fields


def read_program(path: Path) -> Program:
    """A program from its source file. A line of the comment that begins with no key goes on with the last one."""
    comment = re.match(r"/\*\n(.*?)\*/", path.read_text(), re.DOTALL)
    assert comment, f"{path.name} does not begin with a comment"
    program, key = Program(path.stem), "feature"
    for line in comment[1].splitlines():
        text = line.strip().removeprefix("*").strip()
        begins = re.match(r"([a-z]+): *(.*)", text)
        if begins and begins[1] in KEYS:
            key, text = begins[1], begins[2]
        program.fields[key] = f"{program.fields[key]} {text}" if key in program.fields else text
    merged = [key for text in program.fields.values() for key in KEYS if f" {key}: " in f" {text}"]
    assert not merged, f"{path.name}: {merged} should begin a line"
    assert "feature" in program.fields, f"{path.name} does not name its feature"
    return program


def all_programs() -> list[Program]:
    """Every program, by its name."""
    return [read_program(path) for path in sorted(FOLDER.glob("*.c"))]
