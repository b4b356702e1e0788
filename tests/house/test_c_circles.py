"""No circles between C files either: by what they include, and by whose functions they name.

A unit is a C file with its header. It uses another one when it includes the other's header, or names a function that
the other defines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.test_layers import MAY_USE, ROOT, assert_no_circle, includes
from tests.house.test_unused import COMMENT

# Both begin their line; the parameters hold neither ; nor braces, what may stand behind them (attributes) no braces.
NAME = r"(?:__attribute__\(\(\w+\)\) )?\w[\w \t*]*?\b(lm_\w+)\([^;{}]*\)[^;{}]*?"
DEFINITION = re.compile(rf"^(?!return\b|else\b){NAME}\{{", re.MULTILINE)
DECLARATION = re.compile(rf"^(?!static\b|return\b|else\b){NAME};", re.MULTILINE)
LABELS = re.compile(r"^\s*\.globa?l\s+(.*)$", re.MULTILINE)
STRING = re.compile(r'"(?:\\.|[^"\\\n])*"')


def unit(path: Path | str) -> str:
    """pager/placing.c and pager/placing.h are one."""
    return str(Path(path).with_suffix(""))


def c_texts() -> dict[str, str]:
    """Every C and assembly file of the house by its name, without comments and strings."""
    files = [path for folder in MAY_USE for path in sorted((ROOT / folder).rglob("*.[chS]"))]
    return {
        str(path.relative_to(ROOT)): STRING.sub('""', COMMENT.sub(" ", path.read_text()))
        for path in files
        if path.name != "_lm.c"
    }


def definitions(texts: dict[str, str]) -> dict[str, set[str]]:
    """The units that define a function, by its name: several where each program has its own, as it has a main."""
    found: dict[str, set[str]] = {}
    for name, text in texts.items():
        labels = re.findall(r"\blm_\w+", " ".join(LABELS.findall(text)))
        for function in [*DEFINITION.findall(text), *labels]:
            found.setdefault(function, set()).add(unit(name))
    return found


def units_of(texts: dict[str, str]) -> dict[str, str]:
    """The one unit that defines a function, by its name."""
    return {function: next(iter(units)) for function, units in definitions(texts).items() if len(units) == 1}


def functions_used(texts: dict[str, str]) -> dict[str, dict[str, set[str]]]:
    """Which unit names functions of which other: unit -> the other -> the functions. A header that only declares one
    does not use it."""
    defined = units_of(texts)
    found: dict[str, dict[str, set[str]]] = {}
    for name, text in texts.items():
        own = unit(name)
        named = set(re.findall(r"\blm_\w+", text))
        if name.endswith(".h"):
            named -= set(DECLARATION.findall(text))
        for function in named:
            if (other := defined.get(function, own)) != own:
                found.setdefault(own, {}).setdefault(other, set()).add(function)
    return found


def headers_included() -> dict[str, set[str]]:
    """Which unit includes headers of which other."""
    found: dict[str, set[str]] = {}
    for name in c_texts():
        found.setdefault(unit(name), set()).update({unit(other) for other in includes(ROOT / name)} - {unit(name)})
    return found


def test_no_circles_of_c_files() -> None:
    uses = headers_included()
    for own, others in functions_used(c_texts()).items():
        uses[own] |= others.keys()
    assert len(uses) > 40, "nothing is seen"
    assert_no_circle(uses)


def test_a_header_tells_of_one_file() -> None:
    """The functions that a header declares are defined in one file: who looks for them finds it."""
    texts = c_texts()
    defined = units_of(texts)
    told = {
        name: {defined[function] for function in DECLARATION.findall(text) if function in defined}
        for name, text in texts.items()
        if name.endswith(".h")
    }
    assert {name: sorted(others) for name, others in told.items() if len(others) > 1} == {}


def test_every_function_that_is_declared_is_defined() -> None:
    texts = c_texts()
    headers = [text for name, text in texts.items() if name.endswith(".h")]
    declared = {function for text in headers for function in DECLARATION.findall(text)}
    assert sorted(declared - definitions(texts).keys()) == []


def test_circles_are_found() -> None:
    texts = {
        "one.h": "int lm_one(void);\nvoid lm_end(int status)\n    __attribute__((noreturn));\n",
        "one.c": "int lm_one(void) {\n    return lm_two(1);\n}\nvoid lm_end(int status) {\n}\n",
        "two.h": "int lm_two(int number);\nstatic inline int lm_small(void) {\n    return 1;\n}\n",
        "two.c": "static int (*const way)(void) = lm_one;\nint lm_two(int number) {\n    return way();\n}\n",
        "three.c": "void lm_three(void) {\n    lm_end(lm_small());\n}\n",
        "four.S": "    .globl _start, lm_four\nlm_four:\n    call lm_three\n    call lm_main\n",
        "program.c": "void lm_main(void) {\n}\n",
        "other.c": "void lm_main(void) {\n    lm_four();\n}\n",
    }
    assert functions_used(texts) == {
        "one": {"two": {"lm_two"}},
        "two": {"one": {"lm_one"}},
        "three": {"one": {"lm_end"}, "two": {"lm_small"}},
        "four": {"three": {"lm_three"}},
        "other": {"four": {"lm_four"}},
    }
    with pytest.raises(AssertionError, match="circle: one -> two -> one"):
        assert_no_circle({own: set(others) for own, others in functions_used(texts).items()})
