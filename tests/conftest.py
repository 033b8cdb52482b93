"""Options of the test run."""

import pytest


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
