"""Nobody outside of kernel/arch/ knows an architecture: its registers, its instructions, its files."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house.test_layers import APART, MAY_USE, ROOT, imports, includes

ARCH = ROOT / "kernel" / "arch"
# Registers of x86-64, those of struct user_regs_struct (sys/user.h) among them. `ss` and the like are other words too:
# as registers they are fields, or stand behind a %.
WHOLE = re.compile(
    r"\b(?:orig_rax|[re][abcd]x|[re](?:[sd]i|[sb]p|ip|flags)|r(?:[89]|1[0-5])[dwb]?|[fg]s_base|[xyz]mm\d+|mxcsr|xcr0"
    r"|REG_(?:R|E|CR|CS)\w*|gregs)\b",
    re.IGNORECASE,
)
FIELD = re.compile(r"(?:->|%|\b(?:registers|regs|state|home|saved|context)\.)(?:[cdefgs]s|[abcd][xlh])\b")
ASSEMBLY = re.compile(r"\b__asm__\b|\basm\s*(?:volatile|\()|\b(?:cpuid|sigcontext|ucontext)\.h\b")


def sources(*endings: str) -> list[Path]:
    """The sources outside of kernel/arch/ with these endings."""
    files = [path for folder in (*MAY_USE, *APART) for path in (ROOT / folder).rglob("*")]
    return sorted(path for path in files if path.suffix in endings and not path.is_relative_to(ARCH))


def found(text: str) -> list[str]:
    """The words in a text that are an architecture's."""
    return [match[0] for pattern in (WHOLE, FIELD, ASSEMBLY) for match in pattern.finditer(text)]


def test_registers_are_found() -> None:
    struct = re.search(r"_NAMES = \[(.*?)\]", (ARCH / "x86_64" / "registers.py").read_text(), re.DOTALL)
    assert struct is not None
    names = re.findall(r'"(\w+)"', struct[1])
    assert len(names) == 27
    assert [name for name in names if not found(f"registers->{name} = 0;")] == []
    assert [name for name in names if not found(f"mov %{name}, 8")] == []
    assert found("the linux/fs.h of r15 and ss, esp. home->cs") == ["r15", "esp", "->cs"]


def test_nobody_else_names_a_register() -> None:
    named = {str(path.relative_to(ROOT)): found(path.read_text()) for path in sources(".c", ".h", ".S", ".py")}
    assert {name: words for name, words in named.items() if words} == {}


def test_nobody_else_chooses_an_architecture() -> None:
    """Whoever uses one goes by arch.h and arch.py."""
    folders = [path.name for path in ARCH.iterdir() if (path / "stub.S").exists()]
    assert folders == ["x86_64"]
    used = {path: [name for _, name in imports(path)] for path in sources(".py")}
    used |= {path: [name.replace("/", ".") for name in includes(path)] for path in sources(".c", ".h", ".S")}
    pattern = re.compile(rf"\bkernel\.arch\.(?:{'|'.join(folders)})\b")
    assert {str(path.relative_to(ROOT)): names for path, names in used.items() if pattern.search(" ".join(names))} == {}
