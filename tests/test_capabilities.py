"""Capabilities, given up for good by a process of the test's own."""

import os
import pathlib

import pytest

from sniproxy.tools.capabilities import dropper
from tests.processes import in_child


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has any")
def test_none_is_left() -> None:
    def held() -> list[str]:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        names = ("CapInh", "CapPrm", "CapEff", "CapAmb")
        return [line.split()[1] for line in lines if line.startswith(names)]

    def work() -> None:
        drop = dropper()
        assert held() != ["0" * 16] * 4
        drop()
        assert held() == ["0" * 16] * 4
        drop()  # who has none may give up all

    in_child(work)
