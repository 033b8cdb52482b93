"""Each test of ``inside``, in each Debian: run there, reported here."""

import ast
from collections.abc import Callable

import pytest

from tests.deployment.conftest import RELEASES
from tests.deployment.machine import BOOTS, FILES, INSIDE, MACHINES, TIMEOUT, Report


def promises() -> list[str]:
    """Name the tests of ``inside`` as ``file::function``."""
    return [
        f"{file}::{node.name}"
        for file in FILES
        for node in ast.parse((INSIDE / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_no_file_is_left_out() -> None:
    assert sorted(FILES) == sorted(path.name for path in INSIDE.glob("test_*.py"))


@pytest.mark.timeout(TIMEOUT * len(BOOTS) * max(one.patience for one in MACHINES.values()) + 300)
@pytest.mark.parametrize("promise", promises())
@pytest.mark.parametrize("release", RELEASES)
def test_promise(report_of: Callable[[str], Report], release: str, promise: str) -> None:
    report = report_of(release)
    wrong = report.outcomes.get(promise, "it was not run")
    assert not wrong, f"{wrong}\n{report.output[-4000:]}"
