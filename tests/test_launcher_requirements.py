"""What is missing is named before anything starts, with the package that has it."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.chain import requirements
from launcher.chain.failure import BuildFailure

BUILD = Path(__file__).resolve().parent.parent / "launcher" / "build.py"


def missing(environment: dict[str, str], *absent: str) -> list[str]:
    return requirements.missing(
        environment,
        find_tool=lambda tool: None if tool in absent else f"/usr/bin/{tool}",
        has_file=lambda file: file not in absent,
        has_module=lambda name: name not in absent,
    )


def test_nothing_is_missing_where_all_is_there() -> None:
    assert missing({}) == []


@pytest.mark.parametrize(
    ("absent", "line"),
    [
        ("make", "make: make"),
        ("dpkg-source", "dpkg-source: dpkg-dev"),
        ("/usr/include/stdio.h", "/usr/include/stdio.h: libc6-dev"),
        ("venv", "python3 -m venv: python3-venv"),
    ],
)
def test_what_is_missing_is_named_with_its_package(absent: str, line: str) -> None:
    assert missing({}, absent) == [line]


def test_a_named_source_needs_no_apt() -> None:
    assert missing({"PYTHON_SOURCE": "/x"}, "apt-get", "dpkg-source") == []


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(BuildFailure) as failure:
        requirements.require(missing({}, "gcc", "zstd", "apt-get"))
    text = str(failure.value)
    assert all(
        word in text for word in ("gcc: gcc", "zstd: zstd", "apt-get: apt", "PYTHON_SOURCE=")
    )


def test_the_build_stops_before_its_first_stage() -> None:
    done = subprocess.run(
        [sys.executable, BUILD],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "  make: make\n" in done.stderr
