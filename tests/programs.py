"""Programs of Debian's packages that tests need."""

import shutil

import pytest


def need(program: str, package: str) -> str:
    """Find a program, where daemons are as well; skip the test that has none."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is missing: install {package}")
    return path
