"""Options of the test run, and fixtures that several files use."""

import os
import pathlib
import signal
from collections.abc import Iterator

import pytest

from tests.plane import Plane


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


@pytest.fixture
def plane(tmp_path: pathlib.Path) -> Iterator[Plane]:
    """Have a data plane of the test's own, in a hosts directory that is entered for it."""
    before = os.open(".", os.O_PATH)
    (tmp_path / "hosts").mkdir()
    os.chdir(tmp_path / "hosts")
    made = Plane(tmp_path)
    yield made
    made.close()
    os.fchdir(before)
    os.close(before)
    assert not made.faults
