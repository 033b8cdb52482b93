"""Options of the test run, and fixtures that several files use."""

import os
import pathlib
import signal
from collections.abc import Generator, Iterator

import pytest

from sniproxy.resolver.hosts import Hosts
from tests.plane import Plane

NOT_APPLICABLE = "not applicable: "
"""Begins the reason of a skipped test that no package and no right would let run here."""


def pytest_configure() -> None:
    """Let the programs that tests start be interrupted: a job in the background ignores that, and
    they would inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sniproxy",
        metavar="COMMAND",
        help="the sniproxy that the end-to-end tests start (default: this interpreter's)",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="attack at full size and length: make test-faults FULL=1",
    )
    parser.addoption(
        "--update-tables", action="store_true", help="write the tables of docs/ that tests make"
    )
    parser.addoption(
        "--nothing-missing",
        action="store_true",
        help="fail each test that is skipped, unless its reason begins with: not applicable",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn skips into failures where everything must be there that a test asks for."""
    report = yield
    if (
        report.skipped
        and item.config.getoption("--nothing-missing")
        and isinstance(report.longrepr, tuple)
        and not report.longrepr[2].removeprefix("Skipped: ").startswith(NOT_APPLICABLE)
    ):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]}: nothing may be missing, says --nothing-missing"
    return report


@pytest.fixture
def hosts_directory(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Enter a hosts directory, and leave it at the end."""
    before = os.open(".", os.O_PATH)
    (tmp_path / "hosts").mkdir()
    os.chdir(tmp_path / "hosts")
    yield tmp_path / "hosts"
    os.fchdir(before)
    os.close(before)


@pytest.fixture
def hosts(hosts_directory: pathlib.Path) -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.close()


@pytest.fixture
def plane(hosts_directory: pathlib.Path) -> Iterator[Plane]:
    """Have a data plane of the test's own, in a hosts directory that is entered for it."""
    made = Plane(hosts_directory.parent)
    yield made
    made.close()
    assert not made.faults
