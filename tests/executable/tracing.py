"""Tracing: which paths a program touches, as strace(1) tells."""

import pathlib
import re
import shutil
from collections.abc import Sequence

import pytest

from bench.calls import SAME
from tests.end_to_end.harness import wait_until

CALLS = "%file,fchdir,connect,accept4"
"""Every system call that takes a path, what else changes or uses one, and accept4, from which on a
proxy is at work."""

_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


def traced(command: Sequence[str], trace: pathlib.Path, *options: str) -> list[str]:
    """Give a command that runs ``command`` as the same process, its calls written to ``trace``."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing: install strace")
    return [
        "strace",
        "-D",
        "-f",
        "-o",
        str(trace),
        "-e",
        f"trace={CALLS}",
        *options,
        "--",
        *command,
    ]


def finished(trace: pathlib.Path, pid: int) -> list[str]:
    """Wait for the last line of the process ``pid``; give all lines."""
    last = re.compile(rf"^{pid} +\+\+\+ ", re.MULTILINE)
    wait_until(lambda: trace.exists() and last.search(trace.read_text()) is not None)
    return trace.read_text().splitlines()


def touched(lines: Sequence[str]) -> set[tuple[str, str]]:
    """List what was touched: system call, alike on each architecture, and path. A call about a
    descriptor has no path."""
    found = set()
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        _, call, arguments = match.groups()
        path = _PATH.search(arguments)
        if call == "fchdir":
            found.add((call, ""))
        elif call != "accept4" and path and path[1]:
            found.add((SAME.get(call, call), path[1]))
    return found


def phases(lines: Sequence[str]) -> list[list[str]]:
    """Cut a proxy's trace: before the first accepted connection, then a phase for each."""
    cut: list[list[str]] = [[]]
    for line in lines:
        if re.search(r"\baccept4\b.* = \d", line):
            cut.append([])
        cut[-1].append(line)
    return cut
