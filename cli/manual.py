"""Manual pages and completion for a shell, made from the parsers of the commands: `make manual`.

    python -m live_migration.cli.manual FOLDER

writes FOLDER/man/man1/lm-*.1 and FOLDER/bash-completion/lm-migrate.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from live_migration.cli import migrate_options, restore_options, serve_options

PARSERS = {
    "lm-migrate": migrate_options.make_parser,
    "lm-restore": restore_options.make_parser,
    "lm-serve": serve_options.make_parser,
}
SUMMARIES = {
    "lm-migrate": "move a running process to another host, over ssh",
    "lm-restore": "take over a running process from another host",
    "lm-serve": "offer a running process to another host",
}
FILES = ("--ticket-file", "--report", "--metrics", "--bundle", "--tls-cert", "--tls-key", "--tls-ca")
"""Options whose value is the name of a file."""


def escaped(text: str) -> str:
    """Text as roff takes it: nothing in it is a request, and a - can be copied (groff_man_style(7))."""
    text = text.replace("\\", "\\(rs").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def usage_lines(parser: argparse.ArgumentParser) -> list[str]:
    """The command lines, one a line."""
    text = parser.format_usage().removeprefix("usage: ")
    if parser.usage is None:
        return [" ".join(text.split())]
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def shown(action: argparse.Action) -> str:
    """An option or an argument, with what it takes."""
    names = action.option_strings
    if not names:
        return f"\\fI{escaped(str(action.metavar or action.dest))}\\fR"
    value = ""
    if action.nargs != 0:
        value = " \\fI" + escaped(str(action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}")) + "\\fR"
    return ", ".join(f"\\fB{escaped(name)}\\fR" for name in names) + value


def helped(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an option."""
    return escaped((action.help or "") % {"prog": parser.prog, "default": action.default})


def manual_page(name: str) -> str:
    """The page of a command, section 1."""
    parser = PARSERS[name]()
    lines = [f'.TH {name.upper()} 1 "" "live\\-migration"', ".SH NAME", f"{escaped(name)} \\- {SUMMARIES[name]}"]
    lines.append(".SH SYNOPSIS")
    for line in usage_lines(parser):
        lines += [escaped(line), ".br"]
    lines += [".SH DESCRIPTION", escaped(parser.description or "")]
    for group in parser._action_groups:
        if group._group_actions:
            lines.append(f".SH {escaped((group.title or '').upper())}")
            for action in group._group_actions:
                lines += [".TP", shown(action), helped(parser, action)]
    # The rest of --help stands as it is laid out.
    lines += [".SH NOTES", ".nf", escaped(parser.epilog or ""), ".fi", ".SH SEE ALSO"]
    lines.append(", ".join(f"\\fB{escaped(other)}\\fR(1)" for other in PARSERS if other != name))
    return "\n".join(lines) + "\n"


def completion() -> str:
    """Completion of all commands for bash: options, their choices, files, processes, and the hosts that ssh knows."""
    cases, words = [], []
    for name, make_parser in PARSERS.items():
        options = [action for action in make_parser()._actions if action.option_strings]
        words.append(f'    {name}) options="{" ".join(text for one in options for text in one.option_strings)}" ;;')
        for action in options:
            if action.choices:
                patterns = "|".join(f"{name}:{text}" for text in action.option_strings)
                cases.append(f'    {patterns}) choices="{" ".join(map(str, action.choices))}" ;;')
    files = "|".join(f"*:{option}" for option in FILES)
    return "\n".join([
        "# Completion of lm-migrate, lm-restore and lm-serve for bash.",
        "_live_migration() {",
        '    local command="${COMP_WORDS[0]##*/}" word="${COMP_WORDS[COMP_CWORD]}"',
        '    local before="${COMP_WORDS[COMP_CWORD-1]}" options="" choices="" hosts=""',
        '    case "$command" in',
        *words,
        "    esac",
        '    case "$command:$before" in',
        *cases,
        f'    {files}) COMPREPLY=($(compgen -f -- "$word")); return ;;',
        "    esac",
        '    if [ -z "$choices" ] && [ "${word#-}" = "$word" ]; then',
        '        choices="$(cd /proc && echo [0-9]*)"',
        '        if [ "$command" = lm-migrate ] && [ -r "$HOME/.ssh/config" ]; then',
        '            hosts="$(sed -n "s/^ *[Hh]ost  *//p" "$HOME/.ssh/config" | tr " " "\\n" | grep -v "[*?!]")"',
        "        fi",
        "    fi",
        '    [ -n "$choices" ] || choices="$options"',
        '    COMPREPLY=($(compgen -W "$choices $hosts" -- "$word"))',
        "}",
        f"complete -F _live_migration {' '.join(PARSERS)}",
        "",
    ])  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Write all of it; the exit status."""
    folder = Path(arguments[0])
    for name in PARSERS:
        page = folder / "man" / "man1" / f"{name}.1"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(manual_page(name))
    script = folder / "bash-completion" / "lm-migrate"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(completion())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
