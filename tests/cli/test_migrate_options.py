"""The command line of lm-migrate: whose option is whose, and what is refused."""

from __future__ import annotations

import argparse

import pytest

from live_migration.cli import migrate_options, restore_options, serve_options
from live_migration.remote.migration import MigrateOptions
from live_migration.remote.ssh import in_shell
from live_migration.wire.errors import LocalError


def parse(*words: str) -> MigrateOptions:
    return migrate_options.parse_options(words).move


def test_options_go_to_the_command_that_has_them() -> None:
    words = ["--max-freeze", "3", "-v", "12", "--pre-copy", "root@there", "--map-path=/a=/b", "--map-path", "/c=/d"]
    words += ["--take-address", "192.0.2.50/24@eth0", "--netns", "not-here"]
    move = parse(*words, "--bandwidth-limit=5M", "--allow-uid", "nobody-here", "--tls-cert=c", "--tls-key=k")
    assert (move.pid, move.host, move.back) == (12, "root@there", False)
    assert move.serve == ("--max-freeze=3", "--bandwidth-limit=5M", "--tls-cert=c", "--tls-key=k", "-v")
    assert move.restore == (
        "--pre-copy", "--map-path=/a=/b", "--map-path=/c=/d", "--take-address=192.0.2.50/24@eth0",
        "--netns=not-here", "--bandwidth-limit=5M", "--allow-uid=nobody-here", "--tls-cert=c", "--tls-key=k", "-v",
    )  # fmt: skip


def test_an_option_that_looks_like_another_ones_value() -> None:
    assert parse("12", "there", "--map-path", "/--pre-copy=/b").restore == ("--map-path=/--pre-copy=/b",)


def test_files_are_compared_there_or_copied() -> None:
    """What lm-restore knows is passed on."""
    assert (parse("12", "there", "--files=size").restore, parse("12", "there").files) == (("--files=size",), "strict")
    for files in ("copy", "copy=place"):
        move = parse("12", "there", "--files", files)
        assert (move.restore, move.files) == ((), files)


def test_every_option_of_the_commands_is_there_or_chosen() -> None:
    own = {action.dest for action in migrate_options.make_parser()._actions if action.option_strings}
    chosen = {"to", "ticket_file", "insecure", "detach", "stdio"}
    for module in (serve_options, restore_options):
        options = {action.dest for action in module.make_parser()._actions if action.option_strings}
        assert options - own <= chosen


def test_modes() -> None:
    assert parse("--back", "there", "12") == MigrateOptions(pid=12, host="there", back=True)
    assert migrate_options.parse_options(["--list"]).host == ""
    line = migrate_options.parse_options(["--clean", "there"])
    assert (line.mode, line.host) == ("clean", "there")
    assert parse("12", "there", "--ssh", "ssh -p 22 -F 'a b'").ssh == ("ssh", "-p", "22", "-F", "a b")
    assert parse("12", "there", "--listen=[::1]:5").listen == "[::1]:5"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["12"], "both are needed"),
        (["there", "12"], "'there' is not a process id"),
        (["--back", "12", "there"], "'there' is not a process id"),
        (["0", "there"], "not a process id"),
        (["--list", "a", "b"], "takes one host"),
        (["--clean"], "takes one host"),
        (["12", ""], "no name of a host"),
        (["12", "a b"], "no name of a host"),
        (["12", "there", "--ssh="], "names no command"),
        (["12", "there", "--files=copy", "--map-path=/a=/b"], "does not go with --files copy"),
    ],
)
def test_what_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        migrate_options.parse_options(words)


@pytest.mark.parametrize("words", [["12", "there", "--detach"], ["--list", "--back", "a", "1"], ["12", "-oProxy=x"]])
def test_what_the_parser_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option of ssh does not get in by way of the host."""
    with pytest.raises(SystemExit) as ended:
        migrate_options.parse_options(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("lm-migrate: ")


def test_a_script_is_one_word_of_any_shell() -> None:
    assert in_shell("a;\n  b") == "exec sh -c 'a; b'"
    assert isinstance(migrate_options.make_parser(), argparse.ArgumentParser)
