"""Live migration of running Linux processes.

    import live_migration

    live_migration.check(6598)                                          # what stands in its way: ()
    report = live_migration.migrate(6598, "root@other.example")         # to another host, over ssh
    report = live_migration.serve(6598, ticket_file="/root/ticket")     # on the source
    report = live_migration.restore("@/root/ticket", detach=True)       # on the destination
    print(report.downtime_ms)

These start the commands lm-migrate, lm-serve and lm-restore as processes of their own; their docstrings are in
cli/api.py. They are imported when they are first used.

The folders of this package are links to those at the top of the tree, so that every module has one name, the same in
the tree, in tests, for type checkers and where it is installed. A package-dir in pyproject.toml would be known to
setuptools alone: type checkers and a Python started at the top of the tree look for folders.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from live_migration.cli.api import Event, MigrationFailed, check, migrate, restore, serve
    from live_migration.wire.blockers import Blocker
    from live_migration.wire.exit_codes import ExitCode
    from live_migration.wire.report import Report

__all__ = ["Blocker", "Event", "ExitCode", "MigrationFailed", "Report", "check", "migrate", "restore", "serve"]

_HOMES = {
    "Blocker": "wire.blockers",
    "Event": "cli.api",
    "ExitCode": "wire.exit_codes",
    "MigrationFailed": "cli.api",
    "Report": "wire.report",
    "check": "cli.api",
    "migrate": "cli.api",
    "restore": "cli.api",
    "serve": "cli.api",
}


def __getattr__(name: str) -> Any:
    """What is imported when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
