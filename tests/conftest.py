"""What the tests share: two machines, and the end of everything that a test started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from live_migration.experiments.machines import Machine, adopt_orphans, leave_on_signals, two_machines
from tests.support.lan import Lan, lan
from tests.support.started import end_everything, end_warm

# Its assertions are to show what they compared, too.
pytest.register_assert_rewrite("tests.support.laws", "tests.support.commands", "tests.pager.paging")
# How long an example takes is the machine's, which may be busy.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """A test run that is told to end (a time limit's SIGTERM, a closed terminal) cleans up as after Ctrl-C."""
    leave_on_signals((signal.SIGTERM, signal.SIGHUP), lambda n: pytest.exit.Exception(f"signal {n}", 128 + n))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The warm process ends with the tests."""
    end_warm()


@pytest.fixture(scope="session")
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two network namespaces with a link between them."""
    if os.geteuid() != 0:
        skip("network namespaces need root")
    with two_machines() as pair:
        yield pair


@pytest.fixture
def net() -> Iterator[Lan]:
    """Three machines on a LAN."""
    if os.geteuid() != 0:
        skip("network namespaces need root")
    with lan() as found:
        yield found


@pytest.fixture
def orphans() -> Iterator[None]:
    """Every process that the test leaves behind is ended after it."""
    adopt_orphans()
    yield
    end_everything()
    adopt_orphans(False)


def skip(reason: str) -> None:
    """Skip a test, or fail it where LM_NO_SKIP=1 says that nothing may be skipped."""
    if os.environ.get("LM_NO_SKIP") == "1":
        pytest.fail(f"would be skipped: {reason}")
    pytest.skip(reason)
