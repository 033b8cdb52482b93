"""Where nothing may be missing, a skipped test fails, unless it is not applicable; and no module is
without tests."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.covered import ELSEWHERE, LESS, PACKAGE, file_of_tests, modules

ROOT = pathlib.Path(__file__).parent.parent

SKIPPED = """
import pytest

@pytest.fixture
def tool():
    pytest.skip("strace is missing: install strace")

def test_asks_for_a_fixture(tool):
    pass

def test_asks_by_itself():
    pytest.skip("dist/sniproxy is missing: run `make executable` first")

@pytest.mark.skipif(True, reason="cc is missing: install gcc")
def test_is_marked():
    pass

@pytest.mark.skipif(True, reason="only root can change its root")
def test_is_for_root():
    pass

def test_does_not_apply():
    pytest.skip("not applicable: in the hashed flavour no path is too long")
"""


@pytest.mark.parametrize(
    ("option", "outcome"),
    [
        ([], "5 skipped"),
        (["--nothing-missing"], "1 failed, 1 skipped, 3 errors"),
        (["--nothing-missing", "-n1"], "1 failed, 1 skipped, 3 errors"),
    ],
)
def test_skips(tmp_path: pathlib.Path, option: list[str], outcome: str) -> None:
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    (tmp_path / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", *option, tmp_path]
    # The options of the run that this test is part of are none of that run's.
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f" {outcome} in " in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if option else 0)


@pytest.mark.parametrize("processes", [0, 1])
def test_tests_that_run_too_little_of_their_module(processes: int) -> None:
    """The file of tests fails as a whole, after those that passed, in whichever process it is."""
    command = [sys.executable, "-m", "pytest", "--covered", f"-n{processes}", "--dist=loadfile"]
    done = subprocess.run(
        [*command, "tests/test_timers.py::test_each_is_called_once_it_is_due_in_the_order_of_that"],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert " 1 passed, 1 error in " in done.stdout, done.stdout + done.stderr
    assert "its own tests run " in done.stdout
    assert done.returncode == 1


def test_each_module_has_its_tests() -> None:
    """Of which ``make coverage`` asks that they run most of it."""
    assert [one for one in modules() if not file_of_tests(one).exists()] == []
    for name in (*ELSEWHERE, *LESS):
        assert (PACKAGE / name).exists(), name
