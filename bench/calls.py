"""System calls of a program, counted by strace.

``Trace`` follows a trace file while it grows; the tests' budgets and the benchmark count with it.
"""

import pathlib
import re
from collections import Counter

STRACE = ("strace", "-f", "-qq", "-e", "signal=none", "-o")
"""What to start a program with; the trace file and the program's command come next."""

SAME = {
    "epoll_pwait": "epoll_wait",
    "faccessat": "access",
    "faccessat2": "access",
    "readlinkat": "readlink",
}
"""Calls that do the work of an older one, which aarch64 has not, by the name of the latter."""

_CALL = re.compile(r"(?:\d+ +)?(\w+)\(")
_NEW = "accept4", "accept"


class Trace:
    """A trace file, read from where the last count ended."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._at = 0

    def calls(self) -> list[str]:
        """Name the system calls since the last time, in their order, alike on each architecture. A
        call that another process interrupted has two lines and counts when it begins; an
        unfinished line waits."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        return [SAME.get(match[1], match[1]) for match in map(_CALL.match, lines) if match]


def of_connections(calls: list[str], wanted: int) -> Counter[str]:
    """Count what ``wanted`` connections one after another have cost, from the accept of the first
    of them to the accept of the one after the last; the very first is left out, it warms up.

    Raises ValueError where there were not so many.
    """
    accepts = [place for place, name in enumerate(calls) if name in _NEW]
    if len(accepts) < wanted + 2:
        message = f"expected {wanted + 2} connections, found {len(accepts)}"
        raise ValueError(message)
    return Counter(calls[accepts[1] : accepts[wanted + 1]])
